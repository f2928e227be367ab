"""The card of a data set, as far as it says which files are which split."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cmfah_hf.data.data_root import refuse_links_outside
from cmfah_hf.documents import file_of, parse_yaml, read_bytes
from cmfah_hf.errors import DataError

CARD_NAME = "README.md"
SPLIT_NAME = re.compile(r"\w+(\.\w+)*")

# What the Hub takes for the head of a card.
_HEAD = re.compile(r"\s*---[\r\n]+(.*?)[\r\n]+---(\r?\n|$)", re.DOTALL)
_MOST_BYTES = 2**24
_FORM = 'give "path", or entries with "split" and "path"'


def card_splits(folder: Path) -> dict[str, list[str]] | None:
    """The Parquet files of each split, as the `configs` of a folder's card name them.

    Returns:
        Split names with files, of the configuration that is called or marked as the default, else of the first. None
        if there is no card, it names no files, or it names other files than Parquet.

    Raises:
        DataError: If the head of the card cannot be read, a pattern fits no file, or one outside the folder.
    """
    card = file_of(folder / CARD_NAME)
    if card is None:
        return None
    refuse_links_outside(folder, [card])
    text = read_bytes(card, DataError, _MOST_BYTES).decode("utf-8", "replace")
    head = _HEAD.match(text)
    content = parse_yaml(head[1], f"{card}, its head between the lines ---,", DataError) if head else None
    configs = content.get("configs") if isinstance(content, dict) else None
    if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
        return None
    configs = [config for config in configs if config.get("data_files")]
    if not configs:
        return None
    chosen = next((c for c in configs if c.get("default") or c.get("config_name") == "default"), configs[0])
    named = _patterns(card, chosen["data_files"])
    splits = {name: _matching(card, patterns) for name, patterns in named.items()}
    if not all(file.endswith(".parquet") for files in splits.values() for file in files):
        return None
    return splits


def _patterns(card: Path, data_files: Any) -> dict[str, list[str]]:
    """By split, from the forms that the Hub takes: one pattern, a list of them, or a list of splits with theirs."""
    found: dict[str, list[str]] = {}
    for entry in data_files if isinstance(data_files, list) else [data_files]:
        split, paths = "train", entry
        if isinstance(entry, dict):
            split, paths = entry.get("split", "train"), entry.get("path")
        paths = paths if isinstance(paths, list) else [paths]
        if not paths or not all(isinstance(path, str) and path for path in paths):
            raise DataError(f"{card}: an entry of `data_files` lacks `path`, or it is no text; {_FORM}.")
        if not isinstance(split, str) or SPLIT_NAME.fullmatch(split) is None:
            raise DataError(
                f"{card}: {str(split)[:80]!r} cannot be a split's name (letters, digits and '_'); rename it."
            )
        found.setdefault(split, []).extend(paths)
    return found


def _matching(card: Path, patterns: Sequence[str]) -> list[str]:
    files: list[str] = []
    for pattern in patterns:
        path = PurePosixPath(pattern)
        if path.is_absolute() or ".." in path.parts or "://" in pattern:
            raise DataError(
                f"{card}: the pattern {pattern[:200]!r} in its configs leads outside the folder; correct it."
            )
        try:
            found = sorted(card.parent.glob(pattern))
        except (NotImplementedError, ValueError, IndexError, OSError):  # a path of another machine, or no pattern
            found = []
        if not found:
            raise DataError(
                f"{card}: names the files {pattern[:200]!r} in its configs, and none is there; fetch them, or correct "
                "it."
            )
        refuse_links_outside(card.parent, found)
        files += map(str, found)
    return files
