"""Servers: search over the pages."""
