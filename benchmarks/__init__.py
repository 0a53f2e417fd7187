"""Side-by-side measurements; see README.md. Torch is needed by the other side only."""
