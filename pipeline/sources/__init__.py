"""Where images and their truth come from: one module per kind of source, each turning its files into a key table."""
