"""Guided feature inversion (Du et al. 2018): the part of an image that a network needs to see its class."""
