"""MTEB: a model as its encoder, and retrieval tasks of own data in its form. The names load on first use."""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {"MTEBEncoder": "encoder", "load_task": "tasks", "retrieval_tasks": "tasks", "run_tasks": "running"},
)
