"""Shallow methods, which learn codes of precomputed features without gradients through a network."""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "CCAITQ": "cca_itq",
        "CMFH": "cmfh",
        "CMSSH": "cmssh",
        "FeatureMap": "maps",
        "SCM": "scm",
        "SCRATCH": "scratch",
        "SePH": "seph",
        "ShallowHasher": "hasher",
    },
)
