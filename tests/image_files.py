"""Image files of many formats in memory, from the same pixels."""

import gzip
import io
import struct

import imagecodecs
import numpy as np
import pillow_heif
from PIL import Image

SIZE = (48, 32)
# Formats that Pillow writes, by ending.
_BY_PILLOW = {
    "jpg": "JPEG", "png": "PNG", "gif": "GIF", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF", "ppm": "PPM", "tga": "TGA",
    "pcx": "PCX", "ico": "ICO", "jp2": "JPEG2000", "dds": "DDS", "avif": "AVIF", "heic": "HEIF", "eps": "EPS",
    "pdf": "PDF",
}  # fmt: skip


def image(seed: int = 0) -> Image.Image:
    """Left red, right blue, with some noise, so that no two seeds give the same file."""
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    pixels[:, : SIZE[0] // 2, 0] = pixels[:, SIZE[0] // 2 :, 2] = 240
    pixels += np.random.default_rng(seed).integers(0, 8, pixels.shape, np.uint8)
    return Image.fromarray(pixels)


def image_file(ending: str, seed: int = 0, **options) -> bytes:
    """An image file of a format by its ending."""
    if ending in _BY_PILLOW:
        if ending == "heic":
            pillow_heif.register_heif_opener()
        content = io.BytesIO()
        image(seed).save(content, _BY_PILLOW[ending], **options)
        return content.getvalue()
    if ending == "jxl":
        return imagecodecs.jpegxl_encode(np.asarray(image(seed)), lossless=True, **options)
    if ending == "dng":
        return raw_file(seed, **options)
    drawing = svg_file(f"<!-- {seed} -->").encode()
    return gzip.compress(drawing, mtime=0) if ending == "svgz" else drawing


def svg_file(more: str = "", attributes: str = 'width="48" height="32"') -> str:
    """A drawing, left red, right blue, with further elements."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {attributes}>'
        f'<rect width="24" height="32" fill="#f00000"/><rect x="24" width="24" height="32" fill="#0000f0"/>{more}</svg>'
    )


def raw_file(seed: int = 0, orientation: int = 1, size: tuple[int, int] = SIZE) -> bytes:
    """A DNG: left red, right blue behind a color filter array, without compression."""
    width, height = size
    pixels = np.full((height, width), 100, "<u2")
    pixels[0::2, : width // 2 : 2] = 60_000  # red
    pixels[1::2, width // 2 + 1 :: 2] = 60_000  # blue
    pixels[0, 0] += seed
    one, zero = struct.pack("<ii", 1, 1), struct.pack("<ii", 0, 1)
    tags: list[tuple[int, int, int, bytes]] = [
        (254, 4, 1, _long(0)), (256, 4, 1, _long(width)), (257, 4, 1, _long(height)), (258, 3, 1, _long(16)),
        (259, 3, 1, _long(1)), (262, 3, 1, _long(32803)), (271, 2, 6, b"Maker\0"), (272, 2, 6, b"Model\0"),
        (273, 4, 1, b"----"), (274, 3, 1, _long(orientation)), (277, 3, 1, _long(1)), (278, 4, 1, _long(height)),
        (279, 4, 1, _long(pixels.nbytes)), (33421, 3, 2, struct.pack("<HH", 2, 2)), (33422, 1, 4, bytes([0, 1, 1, 2])),
        (50706, 1, 4, bytes([1, 4, 0, 0])), (50708, 2, 12, b"Maker Model\0"),
        (50721, 10, 9, one + zero * 3 + one + zero * 3 + one), (50728, 5, 3, one * 3),
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag, kind, count, value in tags:
        if len(value) > 4:
            place, values = start + len(values), values + value + b"\0" * (len(value) % 2)
            value = _long(place)
        entries += struct.pack("<HHI", tag, kind, count) + value
    entries = entries.replace(b"----", _long(start + len(values)))
    return b"II*\0" + _long(8) + struct.pack("<H", len(tags)) + entries + _long(0) + values + pixels.tobytes()


def _long(value: int) -> bytes:
    return struct.pack("<I", value)
