"""Training: the arguments, the alternating trainer, kept regions, and the run from a configuration to a folder."""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "CMFAHTrainer": "trainer",
        "CMFAHTrainingArguments": "arguments",
        "DataArguments": "arguments",
        "bundled_configuration": "configuration",
        "keep_regions": "region_cache",
        "train": "run",
        "parse_run": "configuration",
    },
)
