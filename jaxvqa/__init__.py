"""Visual question answering in JAX: train, evaluate, explain and convert published VQA systems."""

from jaxvqa import jaxlib_faults

__version__ = "0.1.0"

jaxlib_faults.protect()
