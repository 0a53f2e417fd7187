"""Visual RAG agents in JAX: search, select a region, zoom, answer."""

__version__ = '0.1.0'
