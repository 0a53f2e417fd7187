"""Images and where they lie on a page: coordinate frames, crop and zoom, image files."""
