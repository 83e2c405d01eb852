"""Original checkpoints to ours and back.

A system's conversion is a table of keys (`jaxvqa/convert/table.py`), read in either direction; files are read without ever
unpickling code (`jaxvqa/convert/files.py`). The command is `python -m jaxvqa.convert`.
"""

from jaxvqa.convert.table import Report, Rule, Table, nested, to_jax, to_torch

__all__ = ["Report", "Rule", "Table", "nested", "to_jax", "to_torch"]
