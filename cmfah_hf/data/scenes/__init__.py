"""Synthetic scenes: images of several things with noisy tags, drawn by code. The names load on first use."""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "FIRST_QUERY": "dataset",
        "SCENE_CLASSES": "scene",
        "Scene": "scene",
        "draw_scene": "scene",
        "load_scenes": "dataset",
        "make_scenes": "dataset",
    },
)
