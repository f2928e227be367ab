"""Any Pillow picture as plain RGB.

The image processor travels to the Hub with this file, so it needs nothing but Pillow and NumPy.
"""

import numpy as np
from PIL import Image

_WIDE_GREY_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in mode `RGB`, whatever mode it came in.

    - Transparency (`LA`, `RGBA`, palettes and PNG colours marked as transparent) is laid over white.
    - 16-bit grey (`I;16` and its byte orders) is divided by 257, so that 0..65535 becomes 0..255.
    - 32-bit grey (`I`) and float grey (`F`) do not say where white lies, so their values decide: `F` within 0..1 is
      multiplied by 255, values within 0..255 stay, values within 0..65535 are divided by 257, and anything else is
      stretched from its own minimum and maximum to 0..255. Values that are not finite count as black.
    - All other modes (`L`, `1`, `P`, `CMYK`, `YCbCr`, `HSV`, `LAB`) are Pillow's own conversion.

    Returns:
        A picture of the same size; the very same object if it was plain RGB already.

    Raises:
        ValueError: If Pillow knows no way from the picture's mode to RGB.
    """
    if image.mode in _WIDE_GREY_MODES:
        return Image.fromarray(_grey_to_bytes(np.asarray(image), image.mode)).convert("RGB")
    if image.has_transparency_data:
        # Pillow goes from premultiplied and two-band modes to RGBA only by way of their plain form.
        plain = {"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)
        layer = image.convert(plain).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_to_bytes(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey values of more than 8 bits as `uint8`, by the rule in `to_rgb`."""
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = (0.0, 0.0) if values.size == 0 else (values.min(), values.max())
    if mode.startswith("I;16"):
        values = values / 257
    elif mode == "F" and low >= 0 and high <= 1:
        values = values * 255
    elif low >= 0 and high <= 255:
        pass
    elif low >= 0 and high <= 65535:
        values = values / 257
    else:
        # `high > low` holds: a constant within 0..65535 was caught above, any other constant becomes black.
        values = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    return np.rint(values).astype(np.uint8)
