"""Twenty kinds of folders and twenty formats of images: what works, what is skipped and counted, what is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import image_file
from PIL import Image
from shards import write_shard

from cmfah_hf.data import FolderReport, decode_image, load_image_text, prepare_folder
from cmfah_hf.data.from_folder.tables import TableRequest
from cmfah_hf.data.images import decoding_off
from cmfah_hf.errors import DataError, ImageError

FORMATS = (
    "jpg", "png", "gif", "webp", "bmp", "tif", "ppm", "tga", "pcx", "ico",
    "jp2", "dds", "avif", "heic", "jxl", "dng", "svg", "svgz", "eps", "pdf",
)  # fmt: skip
FILES = {ending: image_file(ending, number) for number, ending in enumerate(FORMATS)}
XMP = (
    '<x xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><r:Description xmlns:d="http://purl.org/dc/elements/1.1/">'
    "<d:subject><r:Bag><r:li>dog</r:li></r:Bag></d:subject></r:Description></x>"
)


def write(folder: Path, name: str, content: bytes | str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def plain(folder: Path, below: str = "") -> None:
    """The images `im.jpg` and so on, each in a folder of its own, because they have one name."""
    for ending, content in FILES.items():
        write(folder, f"{below}{ending}/im.{ending}", content)


def sidecars(name: str, content: str) -> Callable[[Path], None]:
    """Images with a sidecar each; `{0}` in its name is that of the image, `{1}` the same without its ending."""

    def make(folder: Path) -> None:
        plain(folder)
        for ending in FILES:
            write(folder, f"{ending}/" + name.format(f"im.{ending}", "im"), content)

    return make


def table(name: str, text: Callable[[list[str]], str]) -> Callable[[Path], None]:
    """Images and a table of them next to their folder."""

    def make(folder: Path) -> None:
        plain(folder)
        write(folder.parent, name, text([f"{ending}/im.{ending}" for ending in FILES]))

    return make


def lines(*values: str) -> str:
    return "\n".join(values) + "\n"


def coco(names: list[str]) -> str:
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    annotations = [{"image_id": number, "caption": "a dog"} for number, _ in enumerate(names)]
    return json.dumps({"images": images, "annotations": annotations})


def classes(folder: Path) -> None:
    for number, (ending, content) in enumerate(FILES.items()):
        write(folder, f"{'dog' if number % 2 else 'cat'}/{ending}.{ending}", content)


def splits(folder: Path) -> None:
    plain(folder, "train/")
    write(folder, "test/other.jpg", image_file("jpg", 99))


def hidden(folder: Path) -> None:
    plain(folder, ".trash/")
    write(folder, "a.jpg", image_file("jpg", 99))


def looped(folder: Path) -> None:
    plain(folder)
    (folder / "again").symlink_to(folder)


def metadata(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        plain(folder)
        names = [f"{ending}/im.{ending}" for ending in FILES]
        rows = [json.dumps({"file_name": own, "text": "a dog"}) for own in names]
        rows = rows if name.endswith("jsonl") else ["file_name,text", *(f"{own},a dog" for own in names)]
        write(folder, name, lines(*rows))

    return make


def parquet(folder: Path) -> None:
    folder.mkdir()
    images = [{"bytes": content, "path": f"im.{ending}"} for ending, content in FILES.items()]
    columns = {"id": [f"im.{ending}" for ending in FILES], "image": images, "text": ["a dog"] * len(FILES)}
    pq.write_table(pa.table(columns), folder / "train.parquet")


def shard(folder: Path) -> None:
    samples = {f"{ending}/im": {ending: content, "txt": "a dog"} for ending, content in FILES.items()}
    write_shard(folder / "x.tar", samples)


def several_shards(folder: Path) -> None:
    for number, (ending, content) in enumerate(FILES.items()):
        samples = {ending: {ending: content, "cls": "1"}, "other": {"jpg": FILES["jpg"]}}
        write_shard(folder / f"x-{number:03d}.tar", samples)


def cut_shard(folder: Path) -> None:
    shard(folder)
    (folder / "x.tar").write_bytes((folder / "x.tar").read_bytes()[:700])


def inside(folder: Path) -> None:
    plain(folder)
    exif = Image.Exif()
    exif[0x010E] = "a dog"
    for ending in ("jpg", "png", "webp", "avif"):
        write(folder, f"{ending}/im.{ending}", image_file(ending, exif=exif))


def empty(folder: Path) -> None:
    write(folder, "notes.txt", "no image here")


class Kind(NamedTuple):
    """A kind of folder.

    Attributes:
        make: Writes it.
        formats: For each of `FORMATS`: `+` works, `s` is skipped and counted, `x` is refused with one line.
        source: Where the texts of its images come from, as reported; `-`: nowhere; empty: it is a data set already.
        table: The table next to it.
        message: Of the problem that is counted, or of the error if the whole folder is refused.
    """

    make: Callable[[Path], None]
    formats: str
    source: str = ""
    table: str = ""
    message: str = ""


TAKEOUT = '{"title": "im.jpg", "description": "a dog", "photoTakenTime": {"timestamp": "1580000000"}}'
PROSE = "a dog on the beach"
KINDS = {
    #                                                              jpg-ico    jp2-svgz eps pdf
    "sidecars .txt": Kind(sidecars("{1}.txt", PROSE),             "++++++++++ ++++++++ ss", "txt"),
    "sidecars .json": Kind(sidecars("{1}.json", TAKEOUT),         "++++++++++ ++++++++ ss", "json"),
    "Takeout": Kind(sidecars("{0}.json", TAKEOUT),                "++++++++++ ++++++++ ss", "json"),
    "Takeout, new": Kind(sidecars("{0}.supplemental-metadata.json", TAKEOUT), "++++++++++ ++++++++ ss", "json"),
    "sidecars .xmp": Kind(sidecars("{1}.xmp", XMP),               "++++++++++ ++++++++ ss", "keywords"),
    "sidecars .jpg.xmp": Kind(sidecars("{0}.xmp", XMP),           "++++++++++ ++++++++ ss", "keywords"),
    "XMP that is no XML": Kind(sidecars("{1}.xmp", "no XML"),     "++++++++++ ++++++++ ss", "-", "", "not valid XML"),
    "metadata inside": Kind(inside,                               "++++++++++ ++++++++ ss", "exif"),
    "photos alone": Kind(plain,                                   "++++++++++ ++++++++ ss", "-"),
    "class folders": Kind(classes,                                "++++++++++ ++++++++ ss", "-"),
    "train and test": Kind(splits,                                "++++++++++ ++++++++ ss", "-"),
    "CSV with other columns": Kind(table("t.csv", lambda own: lines("Bild;text", *(f"{n};a dog" for n in own))),
                                                                  "xxxxxxxxxx xxxxxxxx xx", "table", "t.csv", "Bild"),
    "table .tsv": Kind(table("t.tsv", lambda own: lines("file\ttext", *(f"{n}\ta dog" for n in own))),
                                                                  "++++++++++ ++++++++ ss", "table", "t.tsv"),
    "table .json": Kind(table("t.json", lambda own: json.dumps([{"image": n, "text": PROSE} for n in own])),
                                                                  "++++++++++ ++++++++ ss", "table", "t.json"),
    "table of COCO": Kind(table("t.json", coco),                  "++++++++++ ++++++++ ss", "table", "t.json"),
    "metadata.jsonl": Kind(metadata("metadata.jsonl"),            "++++++++++ ++++++++ xx"),
    "metadata.csv": Kind(metadata("metadata.csv"),                "++++++++++ ++++++++ xx"),
    "Parquet": Kind(parquet,                                      "++++++++++ ++++++++ xx"),
    "one shard": Kind(shard,                                      "++++++++++ ++++++++ ss"),
    "several shards": Kind(several_shards,                        "++++++++++ ++++++++ ss"),
    "a shard cut short": Kind(cut_shard,                          "xxxxxxxxxx xxxxxxxx xx", message="is cut short"),
    "linked into itself": Kind(looped,                            "++++++++++ ++++++++ ss", "-"),
    "hidden images": Kind(hidden,                                 "ssssssssss ssssssss ss", "-"),
    "no images": Kind(empty,                                      "xxxxxxxxxx xxxxxxxx xx", "-", "", "no image below"),
}  # fmt: skip


OTHERS = ("test/other.jpg", "a.jpg")


def format_of(item_id: str) -> str | None:
    return next((part for part in re.split(r"[/.]", item_id)[::-1] if part in FORMATS), None)


class Found(NamedTuple):
    """The report on a folder, if it was described, its rows, and the message of the error that refused it."""

    report: FolderReport | None
    rows: list[dict]
    error: str | None = None


def read(kind: Kind, folder: Path) -> Found:
    report = None
    try:
        if kind.source:
            table = TableRequest(folder.parent / kind.table) if kind.table else None
            report = prepare_folder(folder, table=table, queries=0, verify=False)
        loaded = load_image_text(folder, streaming=True)
        return Found(report, [row for part in loaded.values() for row in decoding_off(part)])
    except DataError as error:
        return Found(report, [], str(error))


def outcome(row: dict) -> str:
    try:
        decode_image(row["image"], row["id"])
    except ImageError as error:
        return "x" if "\n" not in str(error) else "?"
    return "+"


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_folders(name, tmp_path, datasets_cache, caplog):
    kind = KINDS[name]
    kind.make(tmp_path / "folder")
    expected = dict(zip(FORMATS, kind.formats.replace(" ", ""), strict=True))
    report, rows, error = read(kind, tmp_path / "folder")
    if error is not None:
        assert set(expected.values()) == {"x"}, error
        assert kind.message, error
        assert kind.message in error
        assert "\n" not in error
        return
    found = {format_of(row["id"]): outcome(row) for row in rows if row["id"] not in OTHERS and "other" not in row["id"]}
    counted = sum(map(int, re.findall(r"left out (\d+) samples without an image", caplog.text)))
    counted += sum(report.skipped.values()) if report else 0
    assert {ending: found.get(ending, "s") for ending in FORMATS} == expected
    assert counted >= list(expected.values()).count("s") or name == "hidden images"  # which count as one folder
    if report is not None:
        assert bool(report.text_from.get(kind.source)) == (kind.source != "-")
        # EPS and PDF are no images, so a table may not name them.
        assert sum(report.problems.values()) == (len(FORMATS) - 2 if kind.message else 2 if kind.table else 0)
        assert all(kind.message in line for line in report.named)
        assert (report.classes == 2) == (name == "class folders")
        assert report.splits.get("query", 0) == (name == "train and test")
        assert report.skipped.get("linked folders", 0) == (name == "linked into itself")
        assert report.skipped.get("hidden", 0) == (name == "hidden images")


def test_the_table_has_twenty_of_each():
    assert len(FORMATS) == 20
    assert len(KINDS) >= 20
    assert len({kind.formats for kind in KINDS.values()}) == 4  # works, refused, hidden, and rows that name EPS and PDF
