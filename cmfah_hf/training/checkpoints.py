"""Checkpoints on disk: written atomically, checked before use, older ones removed.

A checkpoint is written below `unfinished/`, gets a list of its files with sizes and checksums, is flushed to disk, and
is then renamed to `checkpoint-<step>`. A folder of that name was therefore complete once, and the list shows later
damage.
"""

import errno
import json
import logging
import math
import os
import re
import shutil
import time
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from cmfah_hf.atomic import flush, flush_folder, write_text
from cmfah_hf.documents import read_json
from cmfah_hf.errors import CheckpointError
from cmfah_hf.training.checkpoint_contents import check_contents
from cmfah_hf.training.run_folder import UNFINISHED_NAME, open_to_others, remove_unfinished

logger = logging.getLogger(__name__)

LIST_NAME = "checkpoint.json"
EARLIER_NAME = "earlier_checkpoints.json"

_NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)$")
_LAST, _NONE = ("true", "last", "yes", "1"), ("", "false", "none", "null", "no", "0")


def wants_to_resume(wanted: str | bool | Path | None) -> bool:
    """Whether a value of `resume_from_checkpoint` asks for a checkpoint."""
    return wanted is not None and str(wanted).lower() not in _NONE


def find_checkpoint(wanted: str | bool | Path | None, output: str | Path) -> Path | None:
    """The checkpoint that a run resumes from.

    Args:
        wanted: `True`, `"true"` or `"last"`: the newest complete one of the run in `output`; a warning names those that
            are skipped. The folder of a checkpoint: that one. The folder of a run: its newest complete one. `None`,
            `False` or `"false"`: none.
        output: The folder of the run.

    Returns:
        None if the run has no checkpoint yet; it then starts from the beginning.

    Raises:
        CheckpointError: If there are checkpoints but none is complete, or the given one is not. It names the file.
    """
    if not wants_to_resume(wanted):
        return None
    if str(wanted).lower() in _LAST:
        found = newest_checkpoint(output)
        if found is None:
            logger.warning("%s: it has no checkpoint yet; the training starts from the beginning.", output)
        return found
    folder = Path(str(wanted))
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: this folder does not exist; give the folder of a checkpoint, or 'last'.")
    if not _NAME.match(folder.name) and not (folder / LIST_NAME).is_file():
        found = newest_checkpoint(folder)
        if found is None:
            raise CheckpointError(f"{folder}: neither a checkpoint nor a folder with checkpoints.")
        return found
    check_whole(folder)
    return folder


def newest_checkpoint(output: str | Path) -> Path | None:
    """The complete checkpoint of a folder that was written last; None if the folder has no checkpoint.

    Raises:
        CheckpointError: If there are checkpoints, but none is complete.
    """
    output = Path(output)
    for folder in _numbered(output / UNFINISHED_NAME):
        logger.warning("Skipped %s: its writing was interrupted.", folder)
    damages: dict[Path, str] = {}
    begun = _time_in(output / EARLIER_NAME, "begun") or 0.0
    # By time and not by step: an earlier run in the same folder may have more steps.
    for folder in sorted(_numbered(output), key=_written, reverse=True):
        if _written(folder)[0] < begun:
            continue
        damage = damage_of(folder)
        if damage is None:
            for skipped, reason in damages.items():
                logger.warning("Skipped %s: %s.", skipped, reason)
            return folder
        damages[folder] = damage
    if damages:
        folder, damage = next(iter(damages.items()))
        raise CheckpointError(
            f"{folder}: {damage}, and {output} has no complete checkpoint; start again without resume_from_checkpoint."
        )
    return None


def begin_anew(output: str | Path) -> None:
    """Records that a run starts from the beginning, so that no checkpoint of an earlier run counts as its last.

    Earlier checkpoints stay until those of the new run replace them, and can be given by name.
    """
    output = Path(output)
    earlier = _numbered(output)
    if earlier:
        logger.warning(
            "%s holds checkpoints of an earlier run. This one starts from the beginning and replaces them; to "
            "resume the earlier one, give --resume_from_checkpoint %s",
            output,
            max(earlier, key=_written),
        )
        write_text(output / EARLIER_NAME, json.dumps({"begun": time.time()}) + "\n", CheckpointError)


def check_whole(folder: str | Path) -> None:
    """Raises a `CheckpointError` that names the file, if a checkpoint is not complete."""
    if (damage := damage_of(folder)) is not None:
        raise CheckpointError(f"{folder}: {damage}; this checkpoint cannot be used; resume from another.")


def damage_of(folder: str | Path) -> str | None:
    """The fault of a checkpoint, with the name of the file; None if it is intact."""
    folder = Path(folder)
    if not (folder / LIST_NAME).exists():
        return f"{LIST_NAME}, written last, is missing, so its writing was interrupted"
    try:
        files = _listed_files(folder)
        for name, (size, checksum) in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            if _checksum(path) != checksum:
                return f"{name} is damaged, its checksum is another"
        check_contents(folder, step_of(folder), set(files))
    except CheckpointError as error:
        return str(error).rstrip(".")
    return None


def _listed_files(folder: Path) -> dict[str, list[int]]:
    """The files in a checkpoint's list, with size and checksum.

    Raises:
        CheckpointError: If the list is damaged, or names a file elsewhere.
    """
    try:
        files = read_json(folder / LIST_NAME, CheckpointError)["files"]
        sound = all(list(map(type, entry)) == [int, int] for entry in files.values())
    except (CheckpointError, LookupError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise CheckpointError(f"{LIST_NAME} is damaged")
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\0" in name or "\\" in name:
            raise CheckpointError(f"{LIST_NAME} names {name[:80]!r}, which is no file of a checkpoint")
    return files


def step_of(folder: str | Path) -> int:
    """The step after which a checkpoint was written, from its name."""
    match = _NAME.match(Path(folder).name)
    return int(match[1]) if match else -1


def finish_checkpoint(staged: Path, final: Path) -> None:
    """Turns the folder `staged` into the checkpoint `final`, which is replaced if an earlier run left it.

    Lists the files, flushes them to disk and renames the folder.
    """
    files = {
        path.relative_to(staged).as_posix(): [path.stat().st_size, _checksum(path)]
        for path in sorted(staged.rglob("*"))
        if path.is_file()
    }
    document = {"format_version": 1, "written": time.time(), "files": files}
    (staged / LIST_NAME).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    open_to_others([staged / name for name in files])
    for path in (*staged.rglob("*"), staged):
        flush(path)
    old = _put_aside(final) if final.exists() else None
    staged.rename(final)
    flush_folder(final.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    remove_unfinished(final.parent)


def rotate(output: str | Path, limit: int | None, newest: Path, best: str | Path | None) -> None:
    """Removes the oldest checkpoints until `limit` are left; never the newest or the best one."""
    if limit is None or limit <= 0:
        return
    protected = {newest.resolve()} | ({Path(best).resolve()} if best is not None else set())
    folders = sorted(_numbered(Path(output)), key=_written)
    surplus = len(folders) - max(limit, len(protected))
    for folder in [folder for folder in folders if folder.resolve() not in protected][: max(surplus, 0)]:
        # Renamed first: the remainder of an interrupted removal is then not a checkpoint.
        shutil.rmtree(_put_aside(folder), ignore_errors=True)
        remove_unfinished(output)


@contextmanager
def disk_errors(output: str | Path, what: str) -> Iterator[None]:
    """Turns errors of a full or failing disk while `what` is written into a one-line `CheckpointError`."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = _disk_reason(error)
        if reason is None:
            raise
        remove_unfinished(output)
        raise CheckpointError(_cannot_write(Path(output), what, reason)) from error


def _cannot_write(output: Path, what: str, reason: str) -> str:
    whole = [folder for folder in sorted(_numbered(output), key=_written, reverse=True) if damage_of(folder) is None]
    free = f"{_megabytes(shutil.disk_usage(output).free)} are free there"
    if not whole:
        return f"{output}: {what} could not be written ({reason}; {free}). Make room and start again."
    needed = sum(path.stat().st_size for path in whole[0].rglob("*") if path.is_file())
    return (
        f"{output}: {what} could not be written ({reason}; {free}, a checkpoint takes {_megabytes(needed)}). "
        f"{whole[0].name} is complete: make room, then resume with --resume_from_checkpoint last."
    )


def _disk_reason(error: Exception) -> str | None:
    """The system's reason for a failed write; None for another error."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else str(error)
    message = " ".join(str(error).split())
    if isinstance(error, SafetensorError):
        found = re.search(r"os error (\d+)", message)
        return os.strerror(int(found[1])) if found else message
    # PyTorch's writer has many messages for a failed write; none gives a reason.
    frames = traceback.extract_tb(error.__traceback__)
    if frames and Path(frames[-1].filename).parts[-2:] == ("torch", "serialization.py"):
        return f"{os.strerror(errno.ENOSPC)}, or the disk fails"
    return None


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _numbered(folder: Path) -> list[Path]:
    """The folders of checkpoints in a folder, by step."""
    found = (path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _NAME.match(path.name) and path.is_dir())
    return sorted(found, key=step_of)


def _written(folder: Path) -> tuple[float, int]:
    return _time_in(folder / LIST_NAME, "written") or folder.stat().st_mtime, step_of(folder)


def _time_in(path: Path, name: str) -> float | None:
    try:
        content = read_json(path, CheckpointError)
    except CheckpointError:  # missing or damaged, which is reported elsewhere
        return None
    value = content.get(name) if isinstance(content, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def _put_aside(folder: Path) -> Path:
    aside = folder.parent / UNFINISHED_NAME / f"removed-{folder.name}"
    aside.parent.mkdir(exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    return folder.rename(aside)


def _checksum(path: Path) -> int:
    # It detects damage, not tampering; CRC-32 is fast, and weights are large.
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum
