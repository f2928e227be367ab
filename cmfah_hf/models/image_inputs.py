"""Images from paths, URLs and data URIs, upright, for code that is saved with the weights."""

import base64
import binascii
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

# Seconds until a server must have answered.
_TIMEOUT = 30.0


def open_image(source: str | Path | Image.Image) -> Image.Image:
    """An image as its EXIF orientation shows it, in its own mode.

    Args:
        source: A Pillow image, a `Path`, or a string: a path, an `http` or `https` URL, or a data URI with base64.

    Raises:
        ValueError: If it is not an image that can be read, or the server does not answer with one.
    """
    if isinstance(source, Image.Image):
        return ImageOps.exif_transpose(source)
    try:
        with Image.open(_file_of(source)) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
        shown = str(source) if len(str(source)) <= 200 else f"{str(source)[:197]}..."
        raise ValueError(f"{shown}: not an image that can be read ({error}).") from error


def _file_of(source: str | Path) -> str | Path | BytesIO:
    if isinstance(source, Path):
        return source
    if source.startswith("data:image/"):
        return BytesIO(base64.b64decode(source.partition(",")[2], validate=True))
    if source.startswith(("http://", "https://")):
        return BytesIO(_download(source))
    return source


def _download(url: str) -> bytes:
    # httpx or its successor: the one that `huggingface_hub` requires, and with it `transformers`.
    from huggingface_hub.utils import httpx

    try:
        response = httpx.get(url, follow_redirects=True, timeout=_TIMEOUT)
        response.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OSError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    return response.content
