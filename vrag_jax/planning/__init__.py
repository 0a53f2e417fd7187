"""A run without its weights: what it will hold, and its programs compiled ahead of time."""
