"""JPEG XL images, decoded by imagecodecs (libjxl)."""

import struct
from typing import Any

import numpy as np
from PIL import Image

from cmfah_hf.data.images.library_file import LibraryImageFile

_CODESTREAM, _CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
# Width as a multiple of the height, by the ratio in the header (ISO/IEC 18181-1, section D.2).
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
_SIZE_BITS = (9, 13, 18, 30)


def is_jpeg_xl(prefix: bytes) -> bool:
    """Whether a file with these first bytes is JPEG XL."""
    return prefix.startswith((_CODESTREAM, _CONTAINER))


class JPEGXLImageFile(LibraryImageFile):
    """A JPEG XL image, upright as its header says; of an animation, the first frame."""

    format = "JXL"
    format_description = "JPEG XL"

    def _header(self, content: bytes) -> tuple[int, int]:
        try:
            return _size(_codestream(content))
        except (struct.error, IndexError) as error:
            raise SyntaxError(f"the header is cut short ({error})") from error

    def _decoded(self, content: bytes) -> Image.Image:
        import imagecodecs

        try:
            return _as_image(imagecodecs.jpegxl_decode(content, index=0))
        except (RuntimeError, ValueError, TypeError) as error:
            raise OSError(str(error)) from error


def _codestream(content: bytes) -> bytes:
    """The first bytes of the codestream, out of its container if there is one."""
    if content.startswith(_CODESTREAM):
        return content[2:32]
    at = 0
    while at < len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        head = 8
        if size == 1:
            size, head = struct.unpack_from(">Q", content, at + 8)[0], 16
        if kind in (b"jxlc", b"jxlp"):
            start = at + head + (4 if kind == b"jxlp" else 0)  # a part begins with its number
            if content[start : start + 2] == _CODESTREAM:
                return content[start + 2 : start + 32]
        if size < head:  # 0: up to the end of the file
            break
        at += size
    raise SyntaxError("there is no codestream")


def _size(header: bytes) -> tuple[int, int]:
    bits = _Bits(header)
    is_small = bits.read(1)
    height = _extent(bits, is_small)
    ratio = bits.read(3)
    if ratio == 0:
        return _extent(bits, is_small), height
    over, under = _RATIOS[ratio]
    return height * over // under, height


def _extent(bits: "_Bits", is_small: int) -> int:
    return 8 * (1 + bits.read(5)) if is_small else 1 + bits.read(_SIZE_BITS[bits.read(2)])


class _Bits:
    """Reads bits, the lowest of each byte first."""

    def __init__(self, content: bytes):
        self._value, self._left = int.from_bytes(content, "little"), 8 * len(content)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError("no more bits")
        value = self._value & ((1 << count) - 1)
        self._value >>= count
        return value


def _as_image(values: Any) -> Image.Image:
    """Gray, color or both with opacity as a Pillow image of 8 bits, and gray of 16 bits as it is."""
    values = np.asarray(values)
    if values.dtype == np.uint16 and values.ndim == 3:
        values = (values >> 8).astype(np.uint8)
    elif values.dtype.kind == "f":  # 1 is white
        values = np.rint(np.clip(np.nan_to_num(values.astype(np.float32)), 0, 1) * 255).astype(np.uint8)
    if values.ndim == 3 and values.shape[2] > 4:
        raise ValueError(f"{values.shape[2]} channels are no colors")
    return Image.fromarray(values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values)
