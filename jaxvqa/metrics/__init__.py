"""Metrics, NumPy only, checked against the numbers of the official evaluation scripts."""
