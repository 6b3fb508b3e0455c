"""CHIP: channel-wise disentangled interpretation of convolutional networks."""
