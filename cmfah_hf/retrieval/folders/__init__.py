"""Folders of images that an index follows: scanning, comparing, updating, watching. The names load on first use."""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "FolderChanges": "changes",
        "FolderRequest": "roots",
        "ModelOnDemand": "model",
        "UpdateOptions": "update",
        "describe_index": "contents",
        "folder_index_path": "update",
        "remove_items": "contents",
        "update_folder_index": "update",
        "update_folders": "update",
        "watch_folders": "watching",
    },
)
