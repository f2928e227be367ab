"""The ways to show answers: printed, as paths for other programs, as a page, in the system's viewer."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import typer

from cmfah_hf.atomic import regular_target, write_text
from cmfah_hf.cli.output import say
from cmfah_hf.cli.search.answers import Answers
from cmfah_hf.errors import CMFAHError, printable


@dataclass(frozen=True)
class Showing:
    """Options of output: the form of the answers, and where they go.

    Attributes:
        json: Print them as JSON.
        paths_only: Print only the paths.
        null: End each path with a null character instead of a line break.
        thumbnails: Print them with their images, if standard input and output are terminals.
        html: A file to write as a page, or None.
        open: Open the page, or without one the first answer.
    """

    json: bool = False
    paths_only: bool = False
    null: bool = False
    thumbnails: bool = False
    html: Path | None = None
    open: bool = False

    def check(self) -> None:
        """Refuses what cannot be shown, before anything is searched."""
        chosen = ["--json"] * self.json + ["--paths-only"] * self.paths_only + ["--thumbnails"] * self.thumbnails
        if len(chosen) > 1:
            raise CMFAHError(f"{chosen[0]} and {chosen[1]} print different things; give one of them.")
        if self.null and not self.paths_only:
            raise CMFAHError("--null is about the ends of paths; give --paths-only too.")
        if self.thumbnails:
            from cmfah_hf.cli.search.thumbnails import image_printer

            image_printer()
        if self.html is not None:
            regular_target(self.html)

    def show(self, answers: Answers) -> None:
        """Shows answers in all ways that were asked for."""
        if self.html is not None:
            from cmfah_hf.cli.search.html_page import page_of

            page, unseen = page_of(answers)
            write_text(self.html, page)
            say(f"{self.html}: {len(answers.hits)} answers, {unseen} of them without their image.", err=True)
        if self.json:
            answers.print_json()
        elif self.paths_only:
            _print_paths(answers, self.null)
        elif self.thumbnails:
            from cmfah_hf.cli.search.thumbnails import print_thumbnails

            print_thumbnails(answers)
        else:
            answers.print_table()
        if self.open:
            _open(self.html or _first(answers))


def _print_paths(answers: Answers, null: bool) -> None:
    """Prints the paths as the system has them, whatever their bytes; on a terminal, printable ones."""
    known = [path for path in answers.paths if path is not None]
    unknown = len(answers.paths) - len(known)
    if unknown:
        reason = "the index follows no folder that they are in (docs/search.md, Folders)"
        if not known:
            raise CMFAHError(f"The paths of all {unknown} answers are unknown: {reason}.")
        say(f"Left out {unknown} answers whose paths are unknown: {reason}.", err=True)
    if sys.stdout.isatty() and not null:
        for path in known:
            say(path)
        return
    broken = sum("\n" in path for path in known)
    if broken and not null:
        say(f"{broken} of the paths contain line breaks; --null keeps paths apart.", err=True)
    sys.stdout.flush()
    sys.stdout.buffer.write(b"".join(os.fsencode(path) + (b"\0" if null else b"\n") for path in known))
    sys.stdout.buffer.flush()


def _first(answers: Answers) -> Path:
    """The image of the first answer, which has to be there."""
    if not answers.hits:
        raise CMFAHError("There is no answer to open.")
    path = answers.paths[0]
    if path is None:
        name = printable(str(answers.hits[0]["id"]))
        raise CMFAHError(f"{name}: the index follows no folder that it is in, so its path is unknown.")
    if not os.path.isfile(path):  # noqa: PTH113 - a name of any length
        raise CMFAHError(f"{path}: there is no such file any more; update the index with `cmfah index`.")
    return Path(path)


def _open(path: Path) -> None:
    if typer.launch(os.path.abspath(path)):  # noqa: PTH100 - not an option, nor an address
        raise CMFAHError(f"{path}: the system has no program to open it.")
