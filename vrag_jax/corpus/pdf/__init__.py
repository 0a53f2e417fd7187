"""PDF pages as a person sees them: images, lines of text, word boxes."""
