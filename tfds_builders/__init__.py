"""TFDS builders of the project's data sets, one folder each, and the command that builds them without TensorFlow.

`python -m tfds_builders.build NAME` builds `tfds_builders/NAME`; `build.py` says what a builder may declare.
"""
