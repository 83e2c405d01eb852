"""Golden cases: what the systems' original implementations computed, and the program that checks ours against it."""
