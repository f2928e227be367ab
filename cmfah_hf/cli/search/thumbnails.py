"""Answers with their images, in a terminal: by Kitty's protocol, Sixel, or colored half blocks."""

import os
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from cmfah_hf.cli.search.answers import Answers
from cmfah_hf.errors import CMFAHError, ImageError, printable

# Rows of a terminal for one image, and its longer side in pixels, which is enough for any of them.
_ROWS, _SIDE = 10, 640


def image_printer() -> Any:
    """The class of textual-image that prints images on this terminal; None if there is no terminal.

    It asks the terminal for its abilities, so standard input has to be one too.

    Raises:
        CMFAHError: If textual-image is not installed.
    """
    if not _is_screen():
        return None
    try:
        from textual_image.renderable import Image
    except ImportError as error:
        raise CMFAHError("--thumbnails needs textual-image; install it: pip install 'cmfah-hf[terminal]'.") from error
    return Image


def _is_screen() -> bool:
    """Whether standard input and output are a terminal that has a size."""
    return sys.stdin.isatty() and sys.stdout.isatty() and all(os.get_terminal_size(sys.stdout.fileno()))


def print_thumbnails(answers: Answers) -> None:
    """Prints each answer as its image and a line below it; without a terminal, a table."""
    printer = image_printer()
    if printer is None:
        answers.print_table()
        return
    console = Console()
    console.print(Text(printable(answers.query), style="bold"))
    for row, path in zip(answers.rows(), answers.paths, strict=True):
        shown = _image(printer, path)
        console.print(shown, soft_wrap=isinstance(shown, Text))
        cells = (f"{cell:.3f}" if isinstance(cell, float) else printable(str(cell)) for cell in row)
        console.print(Text("  ".join(cells)), soft_wrap=True)


def _image(printer: Any, path: str | None) -> Any:
    from cmfah_hf.data.images import decode_image
    from cmfah_hf.models.image_modes import to_rgb

    if path is None:
        return Text("(its path is unknown)")
    try:
        image = to_rgb(decode_image(path))
    except ImageError as error:
        return Text(f"({error})")
    image.thumbnail((_SIDE, _SIDE))
    return printer(image, width="auto", height=_ROWS)
