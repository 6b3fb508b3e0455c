"""The demo: drawn scenes, a network trained on them on the spot, and every job run on both."""
