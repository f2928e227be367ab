"""Images of data sets: reading, file search, decoding switched off and on. The names load on first use."""

from typing import TYPE_CHECKING

from cmfah_hf.lazy import lazy_names

if TYPE_CHECKING:
    from cmfah_hf.data.images.decoding import MOST_BYTES as MOST_BYTES
    from cmfah_hf.data.images.decoding import decode_image as decode_image
    from cmfah_hf.data.images.decoding import is_image_file as is_image_file
    from cmfah_hf.data.images.decoding import read_image_bytes as read_image_bytes
    from cmfah_hf.data.images.files import describe_skipped as describe_skipped
    from cmfah_hf.data.images.files import find_image_files as find_image_files
    from cmfah_hf.data.images.files import list_image_files as list_image_files
    from cmfah_hf.data.images.streams import decoding_off as decoding_off
    from cmfah_hf.data.images.streams import decoding_on as decoding_on
    from cmfah_hf.data.images.streams import drop_unreadable as drop_unreadable

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "MOST_BYTES": "decoding",
        "decode_image": "decoding",
        "decoding_off": "streams",
        "decoding_on": "streams",
        "describe_skipped": "files",
        "drop_unreadable": "streams",
        "find_image_files": "files",
        "is_image_file": "decoding",
        "list_image_files": "files",
        "read_image_bytes": "decoding",
    },
)
