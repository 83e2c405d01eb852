"""What a model looked at: attention over words and regions, drawn for people.

`attention` reads a work directory and its data, `overlay` draws, and `python -m jaxvqa.explain` writes pictures.
"""
