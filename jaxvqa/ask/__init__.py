"""Asking a trained run about images that are in no data set.

`model` has what Python programs use (`jaxvqa.load`), `given` reads what a user gives, `results` writes what came out, `sample`
writes what can be asked, and the command `python -m jaxvqa.ask` puts them together.
"""
