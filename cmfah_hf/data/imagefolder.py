"""Writing of a data set as a folder of PNG files with a `metadata.jsonl`."""

import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmfah_hf.atomic import atomic_folder
from cmfah_hf.data.dataset_card import check_split_name
from cmfah_hf.data.images.decoding import decode_image
from cmfah_hf.errors import DataError
from cmfah_hf.models.image_modes import to_rgb

# Characters of a file name without its ending; a name has at most 255 bytes.
_LONGEST_STEM = 60
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def write_imagefolder(dataset: Any, folder: str | os.PathLike) -> Path:
    """Writes a data set with the uniform columns as an imagefolder: PNG files and a `metadata.jsonl`.

    PNG files are copied byte for byte. All other images are decoded and saved as PNG, without loss for every mode of
    PNG and as RGB for other modes. All further columns go into the metadata.

    Args:
        dataset: A `Dataset` or `IterableDataset` (written without subfolders), or a dictionary of them (a subfolder per
            split).
        folder: The folder to write, created if needed. It appears completely or not at all.

    Returns:
        The folder.

    Raises:
        DataError: If the folder holds anything already, it cannot be written, or a value cannot be written as JSON.
        ImageError: If an image cannot be read.
    """
    folder = Path(folder)
    if folder.is_dir() and (present := next(folder.iterdir(), None)) is not None:
        raise DataError(f"{present}: exists already; choose another folder or remove it.")
    parts = dataset if isinstance(dataset, dict) else {"": dataset}
    for name in filter(None, parts):
        check_split_name(name)
    with atomic_folder(folder, DataError) as whole:
        for name, part in parts.items():
            _write_split(part, whole / name)
    return folder


def _write_split(dataset: Any, folder: Path) -> None:
    from cmfah_hf.data.images.streams import decoding_off

    folder.mkdir(exist_ok=True)
    taken: set[str] = set()
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as lines:
        for row, example in enumerate(decoding_off(dataset)):
            where = f"row {row} ({example['id']})"
            content = _png_bytes(example.pop("image"), where)
            stem = re.sub(r"[^\w-]+", "_", example["id"])[:_LONGEST_STEM] or "image"
            name = f"{stem}.png" if stem.lower() not in taken else f"{stem}-{row:06d}.png"
            taken.add(name[: -len(".png")].lower())
            (folder / name).write_bytes(content)
            try:
                lines.write(json.dumps({"file_name": name, **example}, ensure_ascii=False) + "\n")
            except (TypeError, UnicodeEncodeError) as error:  # dates, bytes; half of a surrogate pair
                raise DataError(f"{where}: a value cannot be written as JSON ({error}); leave it out.") from error


def _png_bytes(value: Mapping[str, Any], name: str) -> bytes:
    image = decode_image(dict(value), name=name)
    content = value.get("bytes")
    if content is not None and content.startswith(_PNG_HEAD):
        return content
    if image.mode not in _PNG_MODES:
        image = to_rgb(image)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
