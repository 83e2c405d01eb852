"""PyTorch, which some tests compare with: they carry the mark `oracle`, and are skipped where it is not installed."""

import importlib.util
from typing import Any

WITHOUT = "PyTorch is not installed, which this test compares with (extra oracle)"

torch: Any = None
Module: Any = object
"""What networks of tests derive from."""

if importlib.util.find_spec("torch"):
    import torch

    Module = torch.nn.Module
