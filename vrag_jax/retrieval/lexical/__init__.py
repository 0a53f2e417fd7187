"""Retrieval by words: terms, inverted lists, BM25, n-gram vectors."""
