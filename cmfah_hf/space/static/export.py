"""`export_page`: writes the static page of a model and its images, a folder that any static host serves as it is."""

import html
import json
import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cmfah_hf.atomic import ANYTHING, atomic_folder
from cmfah_hf.documents import file_of, read_json
from cmfah_hf.errors import CMFAHError
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.retrieval.onnx.files import OnnxFiles
from cmfah_hf.space.examples import example_queries
from cmfah_hf.space.settings import SpaceSettings
from cmfah_hf.space.static.items import PageItems, page_items
from cmfah_hf.space.static.sources import npm_parts, page_files, page_sources
from cmfah_hf.space.static.texts import text_files
from cmfah_hf.space.static.towers import onnx_towers

FORMAT = 1
MANIFEST = "page.json"
CODES, ITEMS, PACK = "data/codes.bin", "data/items.json", "data/thumbnails.bin"
# Thumbnails together up to this many bytes are one file, which is loaded at the start.
MOST_PACKED_BYTES = 16 * 2**20
# Thumbnails of their own files in one folder.
_PER_FOLDER = 1_000
_EXAMPLES = 6
_MOST_BYTES = 64 * 2**20
_TOP_LEVEL = frozenset({".nojekyll", "README.md", "data", "index.html", "model", "npm", "offline.js", "page", MANIFEST})


@dataclass(frozen=True)
class ExportedPage:
    """The result of `export_page`.

    Attributes:
        folder: The folder.
        items: Searchable items.
        code_bytes: Bytes of their codes.
        start_bytes: Bytes that a browser loads at the start.
        all_bytes: Bytes of all files.
    """

    folder: Path
    items: int
    code_bytes: int
    start_bytes: int
    all_bytes: int


def export_page(
    settings: SpaceSettings,
    output: str | os.PathLike,
    folder: str | os.PathLike = ".",
    thumbnails: bool = True,
    links: str | None = None,
    precision: str = "fp32",
    overwrite: bool = False,
    progress: bool = False,
) -> ExportedPage:
    """Writes the page, completely or not at all.

    Args:
        settings: The model, the data, the title and the examples, as for the Space's page. The data is an index, or is
            encoded here.
        output: The folder to write.
        folder: The Space's folder, below which a relative model is looked for.
        thumbnails: Whether the page has thumbnails. Otherwise it shows ids and texts.
        links: An address to which an id is appended: where an answer's image is opened, on a click. None: nowhere.
        precision: Of the towers: `"fp32"`, `"fp16"` or `"int8"`.
        overwrite: Whether to replace an earlier page.
        progress: Show progress bars.

    Raises:
        CMFAHError: If the output holds anything but such a page, npm is missing, or links are of another kind.
        CheckpointError: If the model cannot be loaded, or the page cannot read texts or images as it does.
        HashIndexError: If the index is empty, damaged, or of another model.
        DataError: If the data cannot be used.
    """
    _check_output(output, overwrite)
    _check_links(links)
    source = settings.model_source(Path(folder))
    retriever = CrossMediaRetriever.from_pretrained(source, device="cpu", calibration=False)
    texts = text_files(retriever, source)
    parts = npm_parts(with_tokenizers=not retriever.processor.word_level)
    with onnx_towers(source, retriever.fingerprint, precision) as (files, towers):
        items = page_items(retriever, settings, thumbnails, progress)
        if not settings.examples:
            settings = replace(settings, examples=_examples(retriever, items))
        with atomic_folder(output, CMFAHError, ANYTHING) as place:
            written = _Written(place)
            for name, path in {**page_files(), **parts, **_tower_places(towers)}.items():
                written.add(name, path.read_bytes())
            for name, content in texts.items():
                written.add(name, content)
            data = _data(written, items)
            for name, content in _documents(settings, items, files).items():
                written.add(name, content)
            manifest = _manifest(settings, items, files, towers, links) | data
            written.add(MANIFEST, json.dumps(manifest | {"files": written.described}, ensure_ascii=False).encode())
            _check_output(output, overwrite)
    start = sum(described["bytes"] for described in written.described.values())
    return ExportedPage(Path(output), len(items), items.codes.nbytes, start, written.bytes)


class _Written:
    """Files that are written below a folder: their sizes and checksums."""

    def __init__(self, folder: Path):
        self.folder, self.described, self.bytes = folder, dict[str, dict[str, int]](), 0

    def add(self, name: str, content: bytes, described: bool = True) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.bytes += len(content)
        if described and name not in (MANIFEST, "README.md", ".nojekyll"):
            self.described[name] = {"bytes": len(content), "crc32": zlib.crc32(content)}


def _tower_places(towers: dict[str, Path]) -> dict[str, Path]:
    return {f"model/{path.name}": path for path in towers.values()}


def _data(written: _Written, items: PageItems) -> dict[str, Any]:
    """Writes codes, thumbnails, ids and texts; returns how the manifest describes thumbnails."""
    written.add(CODES, items.codes.tobytes())
    sizes = None if items.thumbnails is None else _write_thumbnails(written, items.thumbnails)
    content = {"ids": items.ids, "texts": items.texts, "sizes": sizes}
    written.add(ITEMS, json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode())
    if sizes is None:
        return {"thumbnails": None}
    return {"thumbnails": "pack" if PACK in written.described else "files", "per_folder": _PER_FOLDER}


def _write_thumbnails(written: _Written, thumbnails: Iterable[bytes]) -> list[int]:
    """Writes thumbnails as one file if they are few, else as files of their own; returns their sizes."""
    sizes: list[int] = []
    packed: list[bytes] | None = []
    for row, thumbnail in enumerate(thumbnails):
        sizes.append(len(thumbnail))
        if packed is None:
            _write_thumbnail(written, row, thumbnail)
            continue
        packed.append(thumbnail)
        if sum(sizes) > MOST_PACKED_BYTES:
            for place, own in enumerate(packed):
                _write_thumbnail(written, place, own)
            packed = None
    if packed is not None:
        written.add(PACK, b"".join(packed))
    return sizes


def _write_thumbnail(written: _Written, row: int, thumbnail: bytes) -> None:
    if thumbnail:
        written.add(f"data/thumbnails/{row // _PER_FOLDER}/{row}.webp", thumbnail, described=False)


def _documents(settings: SpaceSettings, items: PageItems, files: OnnxFiles) -> dict[str, bytes]:
    """The page and the card, with title and figures filled in."""
    sources = page_sources()
    page = (sources / "index.html").read_text(encoding="utf-8")
    card = (sources / "README.md").read_text(encoding="utf-8")
    one_line = " ".join(settings.title.split())
    front, _, rest = card.partition("\n---\n")
    front = front.replace("{{title}}", json.dumps(one_line, ensure_ascii=False))
    for name, value in {"title": one_line, "count": f"{len(items):,}", "bits": str(files.hash_bits)}.items():
        rest = rest.replace("{{" + name + "}}", value)
    return {
        "index.html": page.replace("{{title}}", html.escape(one_line)).encode(),
        "README.md": f"{front}\n---\n{rest}".encode(),
        ".nojekyll": b"",
    }


def _manifest(
    settings: SpaceSettings, items: PageItems, files: OnnxFiles, towers: dict[str, Path], links: str | None
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "title": settings.title,
        "examples": settings.examples,
        "fingerprint": files.fingerprint,
        "bits": files.hash_bits,
        "count": len(items),
        "links": links,
        "images": asdict(files.image_processor),
        "texts": asdict(files.text),
        "towers": {tower: f"model/{path.name}" for tower, path in towers.items()},
    }


def _examples(retriever: CrossMediaRetriever, items: PageItems) -> tuple[str, ...]:
    """Example queries of which the model knows a word."""
    found = example_queries(retriever.reader, items.texts or [], _EXAMPLES)
    expanded = retriever.expand(found)
    return tuple(text for text, read in zip(found, expanded, strict=True) if retriever.reader.has_known_tokens(read))


def _check_links(links: str | None) -> None:
    if links is not None and (re.match(r"(?!https?:)[a-z][a-z0-9+.-]*:", links, re.IGNORECASE) or not links.strip()):
        raise CMFAHError(f"links={links!r:.80}: give an address that begins with http:// or https://, or a folder.")


def _check_output(output: str | os.PathLike, overwrite: bool) -> None:
    """Refuses a folder that holds anything but an earlier page, and one without `overwrite`."""
    try:
        target = Path(output)
        if target.exists() and not target.is_dir():
            raise CMFAHError(f"{output} is a file; name a folder for the page.")
        held = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    except OSError as error:
        raise CMFAHError(f"{output} cannot be read ({error.strerror or error}); name another folder.") from error
    others = [name for name in held if name not in _TOP_LEVEL]
    if others or (held and not _is_page(target)):
        raise CMFAHError(f"{output} holds {(others or held)[0]!r}, which is not part of a page; name another folder.")
    if held and not overwrite:
        raise CMFAHError(f"{output} holds a page already; name another folder, or have it replaced by --overwrite.")


def _is_page(folder: Path) -> bool:
    path = folder / MANIFEST
    if file_of(path) is None:
        return False
    found = read_json(path, CMFAHError, _MOST_BYTES)
    return isinstance(found, dict) and {"format", "fingerprint", "towers"} <= set(found)
