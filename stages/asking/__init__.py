"""Asking networks: an agent that looks at an image, asks where it is unsure, and goes on with the answers."""
