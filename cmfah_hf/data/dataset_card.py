"""The card of a data set (`README.md`): the files of each split by its `configs`, names of splits, and sizes."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cmfah_hf.data.data_root import refuse_links_outside
from cmfah_hf.documents import file_of, parse_yaml, read_bytes
from cmfah_hf.errors import DataError

CARD_NAME = "README.md"

_SPLIT_NAME = re.compile(r"\w+(\.\w+)*")
# The head of a card, by the rule of the Hub.
_HEAD = re.compile(r"\s*---[\r\n]+(.*?)[\r\n]+---(\r?\n|$)", re.DOTALL)
_MOST_BYTES = 2**24
# Powers of ten from 1,000 on, as the Hub names them.
_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
_FORM = 'give "path", or entries with "split" and "path"'


def check_split_name(name: Any, where: str = "") -> None:
    """Refuses a name that `datasets` does not accept for a split; `where` names its file in the error."""
    if not isinstance(name, str) or _SPLIT_NAME.fullmatch(name) is None:
        prefix = f"{where}: " if where else ""
        raise DataError(f"{prefix}{str(name)[:80]!r} cannot be a split's name (letters, digits and '_'); rename it.")


def card_splits(folder: Path) -> dict[str, list[str]] | None:
    """The Parquet files of each split, by the default (else the first) of the `configs` in a folder's card.

    `None` if there is no card, or it names no files or other files than Parquet.
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
    """Patterns by split, from the forms that the Hub accepts: a pattern, a list of patterns, or a list of splits."""
    found: dict[str, list[str]] = {}
    for entry in data_files if isinstance(data_files, list) else [data_files]:
        split, paths = "train", entry
        if isinstance(entry, dict):
            split, paths = entry.get("split", "train"), entry.get("path")
        paths = paths if isinstance(paths, list) else [paths]
        if not paths or not all(isinstance(path, str) and path for path in paths):
            raise DataError(f"{card}: an entry of `data_files` lacks `path`, or its value is not a text; {_FORM}.")
        check_split_name(split, str(card))
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
        except (NotImplementedError, ValueError, IndexError, OSError):  # a path of another system, or not a pattern
            found = []
        if not found:
            raise DataError(
                f"{card}: no file matches {pattern[:200]!r} of its configs; fetch the files, or correct the pattern."
            )
        refuse_links_outside(card.parent, found)
        files += map(str, found)
    return files


def size_category(pairs: int) -> str:
    """The range of sizes by which the Hub filters data sets, such as `1K<n<10K`."""
    place = sum(pairs >= 10**power for power in range(3, 13))
    if place == 0:
        return f"n<{_SIZES[0]}"
    return f"n>{_SIZES[-1]}" if place == len(_SIZES) else f"{_SIZES[place - 1]}<n<{_SIZES[place]}"
