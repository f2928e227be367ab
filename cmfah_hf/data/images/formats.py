"""Formats of images beyond Pillow's own, each read by an optional library: HEIC, JPEG XL, camera raw, SVG.

They are registered with Pillow, so that `datasets` decodes them too. Their readers give the size before anything is
decoded, and Pillow refuses images that are too large by it.
"""

from collections.abc import Callable
from functools import cache

from PIL import Image

from cmfah_hf.data.images.extras import EXTRAS, is_usable


@cache
def register_formats() -> None:
    """Registers with Pillow the formats of the extras that can be used."""
    Image.init()
    steps: dict[str, Callable[[], None]] = {
        "pillow_heif": _register_heif,
        "imagecodecs": _register_jxl,
        "rawpy": _register_raw,
        "resvg_py": _register_svg,
    }
    for module, register in steps.items():
        if is_usable(module):
            register()


def _register_heif() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()


def _register_jxl() -> None:
    from cmfah_hf.data.images.jpeg_xl import JPEGXLImageFile, is_jpeg_xl

    _register(JPEGXLImageFile, is_jpeg_xl, "jxl")


def _register_raw() -> None:
    from cmfah_hf.data.images.raw import RawImageFile, may_be_raw

    _register(RawImageFile, may_be_raw, "raw")
    # Many raw files are TIFF files with a small preview first, which Pillow would read.
    Image.ID.remove(RawImageFile.format)
    Image.ID.insert(0, RawImageFile.format)


def _register_svg() -> None:
    from cmfah_hf.data.images.svg import SVGImageFile, may_be_svg

    _register(SVGImageFile, may_be_svg, "svg")


def _register(reader: type, accept: Callable[[bytes], bool], extra: str) -> None:
    name = reader.format  # type: ignore[attr-defined]
    Image.register_open(name, reader, accept)
    Image.register_extensions(name, sorted(next(own for own in EXTRAS if own.name == extra).endings))
