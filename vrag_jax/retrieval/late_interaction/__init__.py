"""Retrieval by several vectors a page: candidates from ScaNN, exact MaxSim of these."""
