"""From PDFs, images and folders to the pages of an index: images, texts, word boxes, metadata."""
