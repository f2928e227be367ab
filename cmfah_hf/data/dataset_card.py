"""The card of a data set, as far as it says which files are which split."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmfah_hf.errors import DataError

CARD_NAME = "README.md"


def card_splits(folder: Path) -> dict[str, list[str]] | None:
    """The Parquet files of each split, as the `configs` of a folder's card name them.

    Returns:
        Split names with files, of the configuration that is called or marked as the default, else of the first. None
        if there is no card, it names no files, or it names other files than Parquet.

    Raises:
        DataError: If the head of the card cannot be read, or a pattern fits no file.
    """
    from huggingface_hub.repocard import metadata_load

    card = folder / CARD_NAME
    if not card.is_file():
        return None
    try:
        configs = (metadata_load(card) or {}).get("configs")
    except Exception as error:  # of YAML, of encodings, of the Hub's own checks
        reason = " ".join(str(error).split())
        raise DataError(f"{card}: its head between the lines --- cannot be read ({reason}); correct it.") from error
    if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
        return None
    configs = [config for config in configs if config.get("data_files")]
    if not configs:
        return None
    chosen = next((c for c in configs if c.get("default") or c.get("config_name") == "default"), configs[0])
    try:
        named = _patterns(chosen["data_files"])
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{card}: an entry of `data_files` lacks `split` or `path` ({error}); give every one both."
        ) from error
    splits = {name: _matching(card, patterns) for name, patterns in named.items()}
    if not all(file.endswith(".parquet") for files in splits.values() for file in files):
        return None
    return splits


def _patterns(data_files: Any) -> dict[str, list[str]]:
    """By split, from the forms that the Hub takes: one pattern, a list of them, or a list of splits with theirs."""
    if isinstance(data_files, str):
        data_files = [data_files]
    found: dict[str, list[str]] = {}
    for entry in data_files:
        split, paths = ("train", entry) if isinstance(entry, str) else (entry["split"], entry["path"])
        found.setdefault(str(split), []).extend([paths] if isinstance(paths, str) else paths)
    return found


def _matching(card: Path, patterns: Sequence[str]) -> list[str]:
    files: list[str] = []
    for pattern in patterns:
        try:
            found = sorted(map(str, card.parent.glob(pattern)))
        except (NotImplementedError, ValueError):  # an address, or a path of another machine
            found = []
        if not found:
            raise DataError(
                f"{card}: names the files {pattern!r} in its configs, and none is there; fetch them, or correct it."
            )
        files += found
    return files
