"""Retrieval by one vector a page, in ScaNN."""
