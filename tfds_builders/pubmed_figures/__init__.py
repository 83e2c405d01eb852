"""Figures of open-access articles with their captions, split into panels and sub-captions."""
