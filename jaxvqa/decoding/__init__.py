"""Texts from a model that writes: the loop, searches, rules on scores, and the ranking of given answers."""
