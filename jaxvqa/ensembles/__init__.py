"""Answers that several runs give as an ensemble: `masks` and `voting` in NumPy, `evaluation` of the runs."""
