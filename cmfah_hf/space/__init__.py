"""The Space: search, and why, in a browser. The names load on first use, so that nothing else pays for its page."""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "Engine": "engine",
        "SpaceSettings": "settings",
        "build_app": "app",
        "copy_model": "files",
        "export_page": "static.export",
        "serve": "serving",
        "serve_folder": "serving",
        "space_files": "files",
    },
)
