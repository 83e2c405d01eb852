"""easy-VQA: coloured shapes with real questions, from the PyPI package of that name."""
