"""Visual question answering in JAX: train, evaluate, explain and convert published VQA systems."""

__version__ = "0.1.0"
