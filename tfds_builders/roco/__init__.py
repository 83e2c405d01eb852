"""ROCO: radiology figures of articles, and others, with their captions."""
