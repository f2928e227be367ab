"""Answers as one HTML page that needs no other file: thumbnails inside, links to the images."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from cmfah_hf.cli.search.answers import Answers
from cmfah_hf.data.images import decode_image
from cmfah_hf.errors import ImageError, printable
from cmfah_hf.models.image_modes import to_rgb
from cmfah_hf.space.images import Images

# Nothing is fetched and no script runs, whatever names and texts contain.
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }
body { margin: 1.5rem; }
h1 { font-size: 1.25rem; overflow-wrap: anywhere; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1rem; }
ol { list-style: none; padding: 0; }
li { border: 1px solid #8886; border-radius: 6px; padding: .6rem; overflow-wrap: anywhere; }
img, .none { display: block; width: 100%; height: 12rem; object-fit: contain; margin-bottom: .4rem; }
.none { color: #888; overflow: hidden; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 0 .6rem; margin: .4rem 0 0; font-size: .85em; }
dt { color: #888; } dd { margin: 0; }
</style>
</head>
"""


def page_of(answers: Answers) -> tuple[str, int]:
    """The page, and the number of answers whose image could not be shown."""
    items, unseen = [], 0
    for row, path in zip(answers.rows(), answers.paths, strict=True):
        image, is_seen = _image(path, str(row[1]))
        unseen += not is_seen
        items.append(f"<li>{image}{_facts(row, answers.header)}</li>")
    query = _text(answers.query)
    body = f"<body>\n<h1>{query}</h1>\n<p>{len(items)} answers by {_text(answers.metric)}</p>\n<ol>\n"
    return "\n".join(
        [_HEAD.replace("{title}", query) + body + "\n".join(items), "</ol>", "</body>", "</html>\n"]
    ), unseen


def _image(path: str | None, item_id: str) -> tuple[str, bool]:
    """The image as a link to its file, or a reason, and whether it is the image."""
    if path is None:
        return '<p class="none">Its path is unknown.</p>', False
    thumbnails = Images()
    try:
        thumbnails.add(item_id, to_rgb(decode_image(path)), "")
    except ImageError as error:
        return f'<p class="none">{_text(str(error))}</p>', False
    image = f'<img src="{thumbnails.address(0)}" alt="{_text(item_id)}" loading="lazy">'
    return f'<a href="{escape(Path(path).as_uri())}">{image}</a>', True


def _facts(row: Sequence[Any], header: Sequence[str]) -> str:
    rank, item_id, *others = (f"{cell:.3f}" if isinstance(cell, float) else _text(str(cell)) for cell in row)
    listed = "".join(f"<dt>{_text(name)}</dt><dd>{cell}</dd>" for name, cell in zip(header[2:], others, strict=True))
    return f"<b>{rank}. {item_id}</b><dl>{listed}</dl>"


def _text(text: str) -> str:
    return escape(printable(text))
