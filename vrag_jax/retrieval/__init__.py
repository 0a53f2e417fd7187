"""Page images, their text, the index over them, and search."""
