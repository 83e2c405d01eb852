"""From a keyword to figures, panels and sub-captions: find, fetch, read, split, pair, write, and a page to look at."""
