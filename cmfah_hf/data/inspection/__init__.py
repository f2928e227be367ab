"""Inspection of data sets: contents, defects and duplicates. The names load on first use."""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__, {"Inspection": "report", "inspect_pairs": "counting", "plot_inspection": "plots"}
)
