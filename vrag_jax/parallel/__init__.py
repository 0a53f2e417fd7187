"""The device mesh and the rules by which arrays are spread over it."""
