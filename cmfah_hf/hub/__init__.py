"""To the Hub: data sets, models and Spaces, each in one commit. The names load on first use."""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "push_dataset": "pushing",
        "PushedDataset": "pushing",
        "push_model": "model_push",
        "PushedModel": "model_push",
        "make_model_card": "model_card",
        "push_space": "pushing_spaces",
        "PushedSpace": "pushing_spaces",
        "publish": "publishing",
        "Published": "publishing",
    },
)
