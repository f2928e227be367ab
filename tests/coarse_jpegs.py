"""Small JPEGs of which no two have the same content."""

from pathlib import Path

import numpy as np
from PIL import Image


def draw(path: Path, seed: int) -> Path:
    """Writes a JPEG of coarse noise, another for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST).save(path, "JPEG", quality=95)
    return path
