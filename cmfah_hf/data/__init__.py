"""Image-text pairs: loading, checking, splitting, preparation of released data sets, and synthetic scenes.

The names load on first use, so that importing this package does not import `datasets`.
"""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "FolderReport": "from_folder.report",
        "LabelCounts": "label_counts",
        "Matrices": "matrices.dataset",
        "TableRequest": "from_folder.tables",
        "collect_classes": "labels",
        "convert_matrices": "matrices.conversion",
        "decode_image": "images.decoding",
        "drop_unreadable": "images.streams",
        "encode_labels": "labels",
        "hash_split": "splits",
        "inspect_pairs": "inspection.counting",
        "load_image_text": "loading",
        "load_scenes": "scenes",
        "make_scenes": "scenes",
        "open_matrices": "matrices.opening",
        "prepare_folder": "from_folder.preparation",
        "prepare_mirflickr25k": "releases.mirflickr",
        "prepare_nus_wide": "releases.nus_wide",
        "prepare_wikipedia": "releases.wikipedia",
        "resolve_data_path": "sources.request",
        "to_rgb": ".models.image_modes",
        "train_validation_split": "splits",
        "write_imagefolder": "imagefolder",
    },
)
