"""The library mteb, which is optional."""

from types import ModuleType

from cmfah_hf.errors import CMFAHError


def import_mteb() -> ModuleType:
    """The library, with its parts for models and tasks; `CMFAHError` if it is not installed."""
    try:
        import mteb
        import mteb.abstasks.retrieval
        import mteb.models.model_meta
    except ImportError as error:
        raise CMFAHError(f"MTEB needs mteb ({error}); install it: pip install 'cmfah-hf[mteb]'.") from error
    return mteb
