"""SVG drawings, rendered by resvg. They show nothing from outside their file."""

import base64
import binascii
import io
import re
import zlib
from xml.etree.ElementTree import Element, tostring

from PIL import Image

from cmfah_hf.data.images.library_file import LibraryImageFile
from cmfah_hf.documents import parse_xml
from cmfah_hf.errors import DataError

_GZIP = b"\x1f\x8b"
_SVG = "{http://www.w3.org/2000/svg}svg"
# Bytes of a drawing, unpacked.
_MOST_BYTES = 8 * 2**20
# Pixels of the longer side: a drawing has no resolution of its own, and models read fewer.
_LONGER_SIDE = 1024
# Pixels of all images inside a drawing together.
_MOST_INNER_PIXELS = 32 * 2**20
_NUMBER = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)(?:px|pt|pc|mm|cm|in|em|ex)?\s*")
_INNER = re.compile(r"\s*data:image/(?:png|jpe?g|gif|webp)\s*(?:;[^,;]*)*;base64\s*,(.*)", re.DOTALL | re.IGNORECASE)


def may_be_svg(prefix: bytes) -> bool:
    """Whether a file with these first bytes may be a drawing."""
    return prefix.startswith(_GZIP) or prefix.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")


class SVGImageFile(LibraryImageFile):
    """A drawing, rendered with 1,024 pixels on its longer side. Links to other files and to addresses are removed."""

    format = "SVG"
    format_description = "drawing"

    def _header(self, content: bytes) -> tuple[int, int]:
        if content.startswith(_GZIP):
            try:
                content = zlib.decompressobj(wbits=31).decompress(content, _MOST_BYTES + 1)
            except zlib.error as error:
                raise SyntaxError(str(error)) from error
        if b"<svg" not in content and b":svg" not in content:
            raise SyntaxError("not a drawing")
        if len(content) > _MOST_BYTES:
            raise OSError(f"a drawing of more than {_MOST_BYTES:,} bytes")
        try:
            root = parse_xml(content, "the drawing", DataError, allow_entities=True)
        except DataError as error:
            raise OSError(str(error)) from error
        if root.tag != _SVG:
            raise SyntaxError("not a drawing")
        size = _set_size(root)
        _remove_links(root)
        self._content = tostring(root, encoding="utf-8")
        return size

    def _decoded(self, content: bytes) -> Image.Image:
        import resvg_py

        try:
            rendered = Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=content.decode())), formats=["PNG"])
        except ValueError as error:
            raise OSError(str(error)) from error
        rendered.load()
        return rendered


def _set_size(root: Element) -> tuple[int, int]:
    """Sets width and height, in pixels, with the proportions of the drawing."""
    box = [_number(text) for text in re.split(r"[\s,]+", root.get("viewBox", "").strip())]
    width, height = _number(root.get("width", "")), _number(root.get("height", ""))
    if len(box) == 4 and box[2] and box[3]:
        width, height = (width, height) if width and height else (box[2], box[3])
    elif width and height:
        root.set("viewBox", f"0 0 {width} {height}")
    else:
        root.attrib.pop("viewBox", None)
        width = height = _LONGER_SIDE
    scale = _LONGER_SIDE / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    root.set("width", str(size[0]))
    root.set("height", str(size[1]))
    return size


def _number(text: str) -> float:
    """A positive length; 0 if the text is none, such as a percentage, or has no bound."""
    match = _NUMBER.fullmatch(text)
    value = float(match[1]) if match else 0.0
    return value if 1e-6 < value < 1e9 else 0.0


def _remove_links(root: Element) -> None:
    """Leaves links within the drawing, and images in it that are small enough."""
    pixels = 0
    for element in root.iter():
        for name in [name for name in element.attrib if name.rpartition("}")[2] == "href"]:
            link = element.attrib[name]
            if link.lstrip().startswith("#"):
                continue
            size = _inner_size(link)
            pixels += size
            if not size or pixels > _MOST_INNER_PIXELS:
                del element.attrib[name]


def _inner_size(link: str) -> int:
    """The number of pixels of an image in a drawing; 0 if it is none."""
    match = _INNER.fullmatch(link)
    if match is None:
        return 0
    try:
        with Image.open(io.BytesIO(base64.b64decode(match[1])), formats=["PNG", "JPEG", "GIF", "WEBP"]) as image:
            return image.width * image.height
    except (OSError, SyntaxError, ValueError, binascii.Error, Image.DecompressionBombError):
        return 0
