"""NLVR2: sentences about two photographs each, true or false."""
