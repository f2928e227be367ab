"""Preparation of released data sets for the Hub: checks, corrections, Parquet. The names load on first use."""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__, {"prepare_mirflickr25k": "mirflickr", "prepare_nus_wide": "nus_wide"}
)
