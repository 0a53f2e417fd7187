"""Embeds a corpus, and builds, opens and updates the index over it."""
