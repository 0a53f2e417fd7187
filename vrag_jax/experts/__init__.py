"""Experts that show how an episode is played, for SFT data."""
