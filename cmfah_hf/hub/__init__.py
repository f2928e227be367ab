"""To the Hub: data sets and Spaces, each in one commit. The names load on first use."""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "push_dataset": "pushing",
        "PushedDataset": "pushing",
        "push_space": "pushing_spaces",
        "PushedSpace": "pushing_spaces",
        "publish": "publishing",
    },
)
