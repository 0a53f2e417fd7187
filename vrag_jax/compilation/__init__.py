"""Programs compiled for accelerators that may not be there: what they do and take."""
