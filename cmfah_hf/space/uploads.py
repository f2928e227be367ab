"""A picture that somebody sends: what is refused before a pixel of it is decoded, and what is made of the rest."""

import io
import warnings
from pathlib import Path

from PIL import Image

from cmfah_hf.errors import ImageError

MAX_BYTES = 8 * 2**20
# Decoded, that is 75 MB at a time; of a file that claims more, only the header is ever read.
MAX_PIXELS = 25_000_000
# Parsers of rare formats are where malformed files do harm, so only these are opened at all.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
# What is kept of it: more than any model's input.
_SIDE = 1024


def read_upload(path: Path) -> Image.Image:
    """An uploaded file as an upright RGB picture, at most 1024 pixels long.

    Raises:
        ImageError: If it is larger than `MAX_BYTES` or `MAX_PIXELS`, in none of `FORMATS`, damaged or cut short. The
            message names no path.
    """
    from cmfah_hf.data.images import decode_image
    from cmfah_hf.models.image_modes import to_rgb

    if path.stat().st_size > MAX_BYTES:
        raise ImageError(f"The picture is larger than {MAX_BYTES // 2**20} MB; send a smaller one.")
    content = path.read_bytes()
    try:
        with warnings.catch_warnings():
            # Pillow's own limit depends on the machine's settings; the one here is checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            header = Image.open(io.BytesIO(content), formats=FORMATS)
            width, height = header.size
    except Image.DecompressionBombError as error:
        raise ImageError(_too_many_pixels()) from error
    except Exception as error:  # Pillow's parsers raise whatever they stumble over
        kinds = ", ".join(FORMATS[:-1])
        raise ImageError(f"This file is no picture that can be read; send {kinds} or {FORMATS[-1]}.") from error
    if width * height > MAX_PIXELS:
        raise ImageError(_too_many_pixels(width, height))
    # Of a large JPEG a smaller one is decoded, with an eighth of the memory.
    header.draft("RGB", (_SIDE, _SIDE))
    try:
        picture = to_rgb(decode_image(header, "The picture"))
    except ImageError as error:
        raise ImageError("The picture is damaged or cut short; send another.") from error
    picture.thumbnail((_SIDE, _SIDE))
    return picture


def _too_many_pixels(width: int = 0, height: int = 0) -> str:
    size = f"{width:,} x {height:,} pixels" if width else "too many pixels"
    return f"The picture has {size}; send one of at most {MAX_PIXELS // 10**6} megapixels."
