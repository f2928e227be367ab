"""Shallow methods, which learn codes of precomputed features without gradients through a network."""
