"""Stands before PyTorch on the path of the runs that tests start: nothing in jaxvqa may need it."""

raise ImportError("Nothing in jaxvqa needs PyTorch.")
