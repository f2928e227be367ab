"""Formats of images beyond Pillow's own, each read by an optional library: HEIC, JPEG XL, camera raw, SVG.

They are registered with Pillow, so that `datasets` decodes them too. Their readers give the size before anything is
decoded, and Pillow refuses images that are too large by it.
"""

from collections.abc import Callable
from functools import cache

from PIL import Image

from cmfah_hf.data.images.extras import EXTRAS, Extra, is_usable

# Brands of HEIC and AVIF files in their first box.
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_AVIF = frozenset({b"avif", b"avis"})


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


def extra_of_content(prefix: bytes) -> Extra | None:
    """The extra that reads a file with these first bytes; `None` if they do not tell."""
    from cmfah_hf.data.images.jpeg_xl import is_jpeg_xl
    from cmfah_hf.data.images.raw import has_raw_head

    name = None
    if prefix[4:8] == b"ftyp" and not has_raw_head(prefix):
        box = prefix[8 : max(16, min(int.from_bytes(prefix[:4], "big"), len(prefix)))]
        brands = {box[at : at + 4] for at in range(0, len(box), 4)}
        name = "avif" if brands & _AVIF else "heic" if brands & _HEIC else None
    elif is_jpeg_xl(prefix):
        name = "jxl"
    elif has_raw_head(prefix):
        name = "raw"
    elif b"<svg" in prefix:
        name = "svg"
    return next((extra for extra in EXTRAS if extra.name == name), None)


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
