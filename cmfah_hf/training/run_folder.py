"""The folder of a run: created, locked against other trainings, its files replaced atomically"""

import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cmfah_hf.atomic import flush, flush_folder, locked, regular_target
from cmfah_hf.errors import CheckpointError

UNFINISHED_NAME = "unfinished"
_LINGERING_S = 10.0


def make_output_folder(path: str | Path) -> Path:
    """Creates the folder of a run, if it does not exist.

    Raises:
        CheckpointError: If the path is not a folder, or the folder cannot be created.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise CheckpointError(f"{path}: something other than a folder is there; name another --output_dir.") from None
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: the folder cannot be made ({reason}); name another --output_dir.") from error
    return Path(path)


@contextmanager
def held(output: str | Path, name: str) -> Iterator[None]:
    """Locks the folder of a run with a file `.NAME.lock`; the lock of a process that died is free.

    A `CheckpointError` names the process and machine of another training that holds it.
    """
    # Waits some seconds, because the workers of a loader outlive a process that was killed.
    with locked(Path(output) / name, CheckpointError, _LINGERING_S):
        yield


@contextmanager
def replacing_files(output: str | Path) -> Iterator[Path]:
    """A folder to write files in; at the end of the block each file replaces the one in `output` atomically."""
    staged = Path(output) / UNFINISHED_NAME / "files"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        yield staged
        files = [path for path in sorted(staged.rglob("*")) if path.is_file()]
        open_to_others(files)
        for path in files:
            flush(path)
            target = Path(output) / path.relative_to(staged)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(regular_target(target, CheckpointError))
        flush_folder(Path(output))
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        with suppress(OSError):  # a checkpoint is being written there
            staged.parent.rmdir()


def remove_unfinished(output: str | Path) -> None:
    """Removes the rest of checkpoints whose writing or removal was interrupted."""
    shutil.rmtree(Path(output) / UNFINISHED_NAME, ignore_errors=True)


def open_to_others(files: list[Path]) -> None:
    """Sets permissions by the umask; safetensors writes files that only the owner can read."""
    if not files:
        return
    probe = files[0].with_name(".umask")
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in files:
        path.chmod(mode)
