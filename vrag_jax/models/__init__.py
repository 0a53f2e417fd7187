"""Policy families in Flax NNX, a folder each, and what they have in common."""
