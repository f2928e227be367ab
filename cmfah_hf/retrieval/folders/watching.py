"""Watching of the folders of an index, with the library watchfiles."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cmfah_hf.errors import CMFAHError

logger = logging.getLogger(__name__)

# Milliseconds without events after which the folders' places are looked at.
_QUIET_MS = 5_000
# Seconds between two comparisons if no event arrives, as on network drives that report none.
_RESCAN_S = 3_600


def watcher() -> Any:
    """The function `watch` of watchfiles. Raises a `CMFAHError` if it is not installed."""
    try:
        from watchfiles import watch
    except ImportError as error:
        raise CMFAHError("--watch needs watchfiles; install it: pip install 'cmfah-hf[watch]'.") from error
    return watch


def watch_folders(update: Callable[[], None], folders: Sequence[str], index: str | Path) -> None:
    """Calls `update` whenever something changes in folders, and once an hour. Ends with `KeyboardInterrupt`.

    An error of this package in an update is a warning, and the next event calls it again. Folders may disappear and
    come back, such as those on drives.

    Args:
        update: Brings the index up to date.
        folders: The folders.
        index: The index file, which may lie in one of them: its own events do not count.
    """
    watch = watcher()
    own = Path(os.path.realpath(index))

    def is_foreign(_: Any, path: str) -> bool:
        return own.name not in Path(path).name or Path(path).parent != own.parent

    while True:
        present = _present(folders)
        if not present:
            time.sleep(_QUIET_MS / 1_000)
            continue
        due = 0.0  # the first round, since a change may have come between the last update and the first event
        events = watch(
            *present,
            watch_filter=is_foreign,
            rust_timeout=_QUIET_MS,
            yield_on_timeout=True,
            ignore_permission_denied=True,
        )
        for changed in events:
            if changed or time.monotonic() >= due:
                _without_stopping(update)
                due = time.monotonic() + _RESCAN_S
            if _present(folders) != present:
                break


def _present(folders: Sequence[str]) -> list[str]:
    return [folder for folder in folders if os.path.isdir(folder)]  # noqa: PTH112 - a path of any length


def _without_stopping(update: Callable[[], None]) -> None:
    try:
        update()
    except CMFAHError as error:
        logger.warning("%s", error)
