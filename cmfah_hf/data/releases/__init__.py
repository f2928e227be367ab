"""Data sets as they were released, checked, put right, and prepared for the Hub. The names load on first use."""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__, {"prepare_mirflickr25k": "mirflickr", "prepare_nus_wide": "nus_wide"}
)
