"""`cmfah index`; `cmfah index info` and `cmfah index remove` have files of their own."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmfah_hf.cli.options import Backend, DoneAsJson, Precision, RemoteCode, second_words

if TYPE_CHECKING:
    from cmfah_hf.retrieval.folders.changes import FolderChanges
    from cmfah_hf.retrieval.folders.model import ModelOnDemand
    from cmfah_hf.retrieval.folders.sources import IndexSources
    from cmfah_hf.retrieval.folders.update import UpdateOptions

_TERMINATED = 143  # the exit code that shells expect after SIGTERM


def index(
    model: Annotated[str, typer.Argument(help="A trained model: a folder or a Hub id.", autocompletion=second_words)],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders of images, images, or data sets with images: folders, files, Hub ids. Default: the folders "
            "that the index follows."
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The index file.")] = Path("images.index"),
    root: Annotated[
        list[str] | None,
        typer.Option(help="'NAME=PATH': a folder with its name in the index, or its new place; may be repeated."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, and update the index at every change.")] = False,
    prune_missing_root: Annotated[
        bool, typer.Option("--prune-missing-root", help="Remove the images of folders that are gone or empty.")
    ] = False,
    restore_removed: Annotated[
        bool, typer.Option("--restore-removed", help="Take back the images that `cmfah index remove` removed.")
    ] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make the index anew, whatever the file holds.")] = False,
    split: Annotated[
        str | None, typer.Option(help="The split to index. Default: all, with ids such as train/cat.jpg.")
    ] = None,
    texts: Annotated[bool, typer.Option("--texts", help="Index the texts instead of the images.")] = False,
    keep: Annotated[
        list[str] | None, typer.Option(help="A metadata column to store with the codes, for --where; may be repeated.")
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Add to an existing index of data sets.")] = False,
    hidden: Annotated[
        bool, typer.Option("--hidden", help="Include hidden files and folders, and those of thumbnails.")
    ] = False,
    any_model: Annotated[bool, typer.Option("--any-model", help="Accept an index made by another model.")] = False,
    batch_size: Annotated[int, typer.Option(help="Items encoded at once.")] = 32,
    workers: Annotated[
        int | None, typer.Option(help="Threads that read images. Default: one for each processor, at most 8.")
    ] = None,
    fast_decoding: Annotated[
        bool, typer.Option("--fast-decoding", help="Decode large JPEGs at a fraction of their size.")
    ] = False,
    half: Annotated[bool, typer.Option("--half", help="Encode images in bfloat16; faster on GPUs.")] = False,
    backend: Backend = "torch",
    precision: Precision = "fp32",
    trust_remote_code: RemoteCode = False,
    json: DoneAsJson = False,
) -> None:
    """Index images (or texts), or bring the index of folders up to date.

    The index of a folder of images, with or without metadata, follows it: a further call encodes only new and changed
    images, removes those that are gone, and follows renamed ones. It can be interrupted at any time. The id of an image
    is its path below its folder. With metadata of several splits, the split precedes it (train/boats/p003.jpg), and
    with several folders, the folder's name. Data sets are encoded anew each time. Unreadable images and skipped files
    are counted.

    `cmfah index info INDEX` shows what an index holds, and `cmfah index remove INDEX ID...` removes items.
    """
    from cmfah_hf.retrieval.folders.model import ModelOnDemand
    from cmfah_hf.retrieval.folders.sources import IndexSources
    from cmfah_hf.retrieval.folders.update import UpdateOptions
    from cmfah_hf.retrieval.folders.watching import watch_folders, watcher
    from cmfah_hf.retrieval.image_options import ImageOptions

    own = IndexSources(output, sources or [], root or [], keep or [], split, hidden, texts, rebuild)
    own.refuse_data_sets(["--dry-run"] * dry_run + ["--watch"] * watch)
    if watch:
        watcher()  # refused before anything is encoded
    image_options = ImageOptions(workers, fast_decoding, half)
    demand = ModelOnDemand(
        model, any_model, trust_remote_code=trust_remote_code, image_options=image_options, backend=backend,
        precision=precision,
    )  # fmt: skip
    options = UpdateOptions(
        batch_size, not json, dry_run, prune_missing_root, restore_removed, add, rebuild, bool(own.data_sets)
    )
    with saving_on_termination():
        _show(own.update(demand, options), output, json, watch)
        if watch:
            later = replace(options, rebuild=False, restore=False)
            watch_folders(lambda: _update_quietly(own, demand, later, output, json), own.followed(), output)


def _update_quietly(
    own: "IndexSources", demand: "ModelOnDemand", options: "UpdateOptions", output: Path, json: bool
) -> None:
    """An update that prints a line only if it changed something."""
    changes = own.update(demand, options)
    if changes.added or changes.changed or changes.renamed or changes.removed:
        _show(changes, output, json, True)


def _show(changes: "FolderChanges", output: Path, json: bool, as_line: bool = False) -> None:
    """Prints the result of an update; `as_line`: JSON on one line."""
    from cmfah_hf.cli.output import print_json, say
    from cmfah_hf.retrieval import HashIndex

    if changes.steps is not None:
        _show_steps(changes, output, json)
        return
    filled = HashIndex.load(output, mmap=True)
    if json:
        facts = {"index": str(output), "items": len(filled), "bits": filled.bits, "model": filled.model}
        done = {**facts, **changes.counts()}
        say(dumps(done)) if as_line else print_json(done)
        return
    say(f"{output}: {len(filled):,} items, {len(filled) * filled.bits // 8:,} bytes of codes: {changes}.")
    for line in changes.unreadable_lines():
        say(line)


def _show_steps(changes: "FolderChanges", output: Path, json: bool) -> None:
    from cmfah_hf.cli.output import print_json, say

    steps: dict[str, list[Any]] = changes.steps or {}
    if json:
        print_json({"index": str(output), "dry_run": True, **changes.counts(), "steps": steps})
        return
    for name, mark in (("added", "+"), ("changed", "*"), ("removed", "-")):
        for item_id in steps[name]:
            say(f"{mark} {item_id}")
    for former, new in steps["renamed"]:
        say(f"> {former} -> {new}")
    for line in changes.unreadable_lines():
        say(line)
    say(f"{output}: {changes} (not done).")


@contextmanager
def saving_on_termination() -> Iterator[None]:
    """Ends the command at SIGTERM as at Ctrl-C, so that what was encoded is saved."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_terminated = threading.Event()

    def end(*_: object) -> None:
        is_terminated.set()
        sys.exit(_TERMINATED)

    former = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        if is_terminated.is_set():  # watchfiles raises this one for whatever a signal's handler raises
            sys.exit(_TERMINATED)
        raise
    finally:
        signal.signal(signal.SIGTERM, former)
