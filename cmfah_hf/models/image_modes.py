"""Conversion of Pillow images of any mode to RGB.

This file is saved with the processor, so it only needs Pillow and NumPy.
"""

import numpy as np
from PIL import Image

_WIDE_GRAY_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to RGB; returns the same object if it is RGB without transparency.

    - Transparency (`LA`, `RGBA`, transparent palette entries and PNG colors) is composited over white.
    - 16-bit gray (`I;16` and its byte orders) is divided by 257, so that 0..65535 becomes 0..255.
    - 32-bit gray (`I`) and float gray (`F`) do not define white, so the values decide: `F` within 0..1 is multiplied by
      255, values within 0..255 stay, values within 0..65535 are divided by 257, and all others are stretched from their
      minimum and maximum to 0..255. Values that are not finite count as black.
    - All other modes (`L`, `1`, `P`, `CMYK`, `YCbCr`, `HSV`, `LAB`) are converted by Pillow.

    Raises:
        ValueError: If Pillow cannot convert the image's mode to RGB.
    """
    if image.mode in _WIDE_GRAY_MODES:
        return Image.fromarray(_gray_to_bytes(np.asarray(image), image.mode)).convert("RGB")
    if image.has_transparency_data:
        # Pillow converts premultiplied modes to RGBA only through their plain form.
        plain = {"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)
        layer = image.convert(plain).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _gray_to_bytes(values: np.ndarray, mode: str) -> np.ndarray:
    """Gray values of more than 8 bits as `uint8`, by the rule in `to_rgb`."""
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
        # Constants within 0..65535 are handled above; all other constants become black.
        values = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    return np.rint(values).astype(np.uint8)
