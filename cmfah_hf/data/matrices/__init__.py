"""Matrices of research code (`.mat`, `.h5`), read lazily. The names load on first use."""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__, {"Matrices": "dataset", "convert_matrices": "conversion", "open_matrices": "opening"}
)
