"""A page that opens from disk: every filter of an image-to-image network, pixel by pixel."""
