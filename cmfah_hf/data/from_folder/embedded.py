"""Metadata inside image files: EXIF, IPTC, XMP, and the texts of PNG."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

from PIL import ExifTags, Image, ImageFile, IptcImagePlugin

from cmfah_hf.data.from_folder.description import Description, as_date, cleaned, is_of_camera
from cmfah_hf.data.from_folder.xmp import parse_xmp
from cmfah_hf.data.images.decoding import DAMAGED, opened_image
from cmfah_hf.errors import DataError

_XMP_OF_TIFF = 700
# Datasets of IPTC's record 2, its charset in record 1, and the escape sequence of UTF-8 there.
_IPTC_TITLE, _IPTC_KEYWORDS, _IPTC_DATE, _IPTC_CAPTION = (2, 5), (2, 25), (2, 55), (2, 120)
_IPTC_CHARSET, _UTF8 = (1, 90), b"\x1b%G"
_COMMENT_HEAD = 8  # bytes that name the encoding of a comment


class Embedded(NamedTuple):
    """Descriptions in an image file by their kind (`xmp`, `iptc`, `exif`, `png`), and what could not be read."""

    descriptions: dict[str, Description]
    problems: list[str]


def read_embedded(path: Path, verify: bool = True) -> Embedded:
    """The metadata of an image file; damaged metadata is a problem, not an error.

    Args:
        verify: Decode the image, JPEG at an eighth of its size, to find out whether it is cut short.

    Raises:
        ImageError: If the image cannot be read.
    """
    with opened_image(path, str(path)) as image:
        # The texts of PNG may follow the pixels; the tags of TIFF cannot be read any more after them.
        is_png = image.format == "PNG"
        if verify and is_png:
            image.load()
        found = Embedded({}, [])
        readers: dict[str, Callable[[Image.Image, Path], Description]] = {
            "xmp": _xmp, "iptc": _iptc, "exif": _exif, "png": _png,
        }  # fmt: skip
        for kind, read in readers.items():
            try:
                found.descriptions[kind] = read(image, path)
            except DataError as error:
                found.problems.append(str(error))
            except DAMAGED as error:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                found.problems.append(f"{path}: its {kind.upper()} is damaged ({reason}); write it anew.")
        if verify and not is_png:
            if image.format in ("JPEG", "MPO"):
                image.draft("RGB", (1, 1))
            image.load()
        return found


def _xmp(image: Image.Image, path: Path) -> Description:
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    if packet is None and hasattr(image, "tag_v2"):
        packet = image.tag_v2.get(_XMP_OF_TIFF)
    if not packet or not isinstance(packet, str | bytes):
        return Description()
    return parse_xmp(packet, f"{path}: its XMP", path.name)


def _iptc(image: Image.Image, path: Path) -> Description:
    try:
        found = IptcImagePlugin.getiptcinfo(cast(ImageFile.ImageFile, image)) or {}
    except SyntaxError as error:  # the data sets before the damaged one are lost too
        raise DataError(f"{path}: its IPTC is damaged ({error}); write it anew.") from error
    charset = found.get(_IPTC_CHARSET)
    is_utf8 = charset == _UTF8

    def texts(name: tuple[int, int]) -> tuple[str, ...]:
        value = found.get(name, [])
        return cleaned(_decoded(part, is_utf8) for part in (value if isinstance(value, list) else [value]))

    captions = _captions([*texts(_IPTC_CAPTION)] or [*texts(_IPTC_TITLE)], path)
    date = next(iter(texts(_IPTC_DATE)), "")
    return Description(captions, texts(_IPTC_KEYWORDS), date=as_date(f"{date[:4]}-{date[4:6]}-{date[6:8]}"))


def _exif(image: Image.Image, path: Path) -> Description:
    tags = image.getexif()
    inner = tags.get_ifd(ExifTags.IFD.Exif)
    captions = [
        _text_of(tags.get(ExifTags.Base.ImageDescription)),
        _wide(tags.get(ExifTags.Base.XPComment)),
        _wide(tags.get(ExifTags.Base.XPTitle)),
        _comment(inner.get(ExifTags.Base.UserComment)),
    ]
    kept = _captions(captions, path)
    dates = (inner.get(ExifTags.Base.DateTimeOriginal), inner.get(ExifTags.Base.DateTimeDigitized))
    return Description(
        kept[:1],
        cleaned(_wide(tags.get(ExifTags.Base.XPKeywords)).split(";")),
        date=next((found for value in dates if (found := as_date(_text_of(value)))), None),
    )


def _png(image: Image.Image, path: Path) -> Description:
    if image.format != "PNG":
        return Description()
    texts = [image.info.get(name) for name in ("Description", "Title")]
    return Description(_captions([text for text in texts if isinstance(text, str)], path)[:1])


def _captions(texts: list[str], path: Path) -> tuple[str, ...]:
    return tuple(text for text in cleaned(texts) if not is_of_camera(text, path.name))


def _text_of(value: Any) -> str:
    """Text of EXIF, where many programs write UTF-8 although the standard has ASCII. Pillow reads it as Latin-1."""
    if isinstance(value, str):
        try:
            value = value.encode("latin-1")
        except UnicodeEncodeError:
            return value
    return _decoded(value, False).strip("\0 ") if isinstance(value, bytes) else ""


def _decoded(content: bytes, is_utf8: bool) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("utf-8" if is_utf8 else "latin-1", "replace")


def _wide(value: Any) -> str:
    """Text of the tags of Windows: UTF-16."""
    value = bytes(value) if isinstance(value, tuple) and all(isinstance(part, int) for part in value) else value
    return value.decode("utf-16-le", "replace").partition("\0")[0] if isinstance(value, bytes) else ""


def _comment(value: Any) -> str:
    """Text of a comment, whose first 8 bytes name its encoding."""
    if not isinstance(value, bytes):
        return value if isinstance(value, str) else ""
    head, text = value[:_COMMENT_HEAD], value[_COMMENT_HEAD:]
    if head.startswith(b"UNICODE"):
        even = text[: len(text) // 2 * 2]
        # The byte order is that of the file, which some programs ignore: zeros are in the higher bytes.
        order = "utf-16-be" if even[::2].count(0) > even[1::2].count(0) else "utf-16-le"
        return even.decode(order, "replace").lstrip("\ufeff").strip("\0 ")
    if head.rstrip(b"\0") in (b"ASCII", b""):
        return _decoded(text, False).strip("\0 ")
    return ""
