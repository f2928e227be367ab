"""Training: settings, pairs, the alternating trainer, and the run from settings to a folder"""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "CMFAHTrainer": "trainer",
        "CMFAHTrainingArguments": "settings.arguments",
        "DataArguments": "settings.arguments",
        "bundled_configuration": "settings.bundled",
        "keep_regions": "data.region_cache",
        "train": "run",
        "parse_run": "settings.configuration",
    },
)
