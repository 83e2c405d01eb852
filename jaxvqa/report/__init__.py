"""The page of a run, `python -m jaxvqa.report`: what came out of it, in one file that opens anywhere.

`page` writes it. `tables` is light, so that evaluators can make tables of their own without loading what draws.
"""
