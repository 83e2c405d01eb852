"""Experiments: one function each, `get_config(arg=None)`, that returns a ConfigDict."""
