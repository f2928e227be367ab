"""Matrices of research code (`.mat`, `.h5`), read lazily."""
