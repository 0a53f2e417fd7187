"""The pages of a corpus: images, texts, names, and what of them is kept on disk."""
