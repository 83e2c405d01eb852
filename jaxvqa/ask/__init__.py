"""Asking a trained run about images that are in no data set.

`model` has what Python programs use (`jaxvqa.load`), `given` reads what a user gives, `results` writes what came out, and the
command `python -m jaxvqa.ask` puts them together.
"""
