"""Vectors of pages and queries from pretrained models: visual ones and text encoders."""
