"""The former name of `jaxvqa.golden`."""
