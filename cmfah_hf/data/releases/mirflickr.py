"""MIRFlickr-25k as it was released, prepared for the Hub.

The release is two archives, `mirflickr25k.zip` (pictures, `doc/common_tags.txt`, `meta/tags/`) and
`mirflickr25k_annotations_v080.zip` (a file of picture numbers for each class). Huiskes and Lew, The MIR Flickr
Retrieval Evaluation, MIR 2008.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from cmfah_hf.data.releases.card import Provenance
from cmfah_hf.data.releases.files import ReleaseFiles
from cmfah_hf.data.releases.preparation import PreparedReport, prepare
from cmfah_hf.data.releases.protocols import split_rows
from cmfah_hf.data.releases.shards import Writing
from cmfah_hf.data.releases.table import CheckSums, Corrections, Lists, ReleaseTable, decode_lines
from cmfah_hf.errors import DataError

CLASSES = (
    "animals", "baby", "bird", "car", "clouds", "dog", "female", "flower", "food", "indoor", "lake", "male", "night",
    "people", "plant_life", "portrait", "river", "sea", "sky", "structures", "sunset", "transport", "tree", "water",
)  # fmt: skip


@dataclass(frozen=True)
class MIRFlickrRelease:
    """What a release of MIRFlickr holds; the defaults are those of MIRFlickr-25k.

    Args:
        num_rows: Pictures, numbered from 1.
        num_tags: Tags in `common_tags.txt`.
        tag_ones: Common tags over all rows.
        label_ones: Labels over all rows.
        variants: By the number of pairs: whether a pair needs a common tag, beside a label.
        queries: Of the published protocol.
        train: Training pairs, likewise.
        classes: Their annotation files are `<class>.txt`.
    """

    num_rows: int = 25_000
    num_tags: int = 1_386
    tag_ones: int = 94_281
    label_ones: int = 92_902
    variants: dict[int, bool] = field(default_factory=lambda: {20_015: True, 24_581: False})
    queries: int = 2_000
    train: int = 10_000
    classes: tuple[str, ...] = CLASSES


MIRFLICKR25K = MIRFlickrRelease()

_PROVENANCE = Provenance(
    name="MIRFlickr-25k",
    sources=(
        "https://press.liacs.nl/mirflickr/",
        "https://press.liacs.nl/mirflickr/mirdownload.html",
    ),
    licence_name="flickr-creative-commons",
    licence_link="https://press.liacs.nl/mirflickr/",
    licence=(
        "The photographs are their photographers', each under a Creative Commons licence of its own; photographer, "
        "title and licence of each stand in the release's `mirflickr/meta/license/`. Use asks for credit to the "
        "photographer, and some licences for more."
    ),
    citation="""@inproceedings{huiskes08,
  author = {Mark J. Huiskes and Michael S. Lew},
  title = {The {MIR} {F}lickr Retrieval Evaluation},
  booktitle = {MIR '08: Proceedings of the 2008 ACM International Conference on Multimedia Information Retrieval},
  year = {2008},
  publisher = {ACM}
}""",
)


def prepare_mirflickr25k(
    root: str | os.PathLike,
    out: str | os.PathLike | None,
    *,
    variant: int | str | None = None,
    split: str = "paper",
    seed: int = 0,
    queries: int | None = None,
    train: int | None = None,
    allow_other_counts: bool = False,
    writing: Writing | None = None,
    release: MIRFlickrRelease = MIRFLICKR25K,
) -> PreparedReport:
    """Check MIRFlickr-25k as released, and write it as Parquet with a card.

    Args:
        root: The folder with the two archives, or with what was unpacked from them.
        out: The folder to write. None: only read and check.
        variant: 20015, the pairs with a common tag and a label that publications use, or 24581, those with a label.
        split: `"paper"` (random by `seed`), `"dcmh"` or `"dadh"`, see `split_rows`.
        seed: Of the split.
        queries: How many; 2,000 if not given.
        train: How many training pairs; 10,000 if not given.
        allow_other_counts: Take a copy whose counts are not the release's; the card says so.
        writing: How pictures are checked and shards are written.
        release: What is expected.

    Raises:
        DataError: If a file is missing or damaged, a count differs, pictures are missing, or `out` cannot be written.
    """
    variants = release.variants
    wanted = next(iter(variants)) if variant is None else int(variant)
    if wanted not in variants:
        raise DataError(f"variant={variant} is not known; take one of {', '.join(map(str, variants))}.")
    with ReleaseFiles(root) as files:
        corrections = Corrections(files)
        checks = CheckSums(allow_other_counts, corrections)
        table = read_mirflickr(files, release, checks)
        rows = table.rows(with_text=variants[wanted])
        needs = "a label and a common tag" if variants[wanted] else "a label"
        checks.check(str(files.root), f"pairs with {needs}", len(rows), wanted)
        num_queries = release.queries if queries is None else queries
        num_train = release.train if train is None else train
        parts = split_rows([table.ids[row] for row in rows], split, num_queries, num_train, seed)
        settings = {
            "dataset": "mirflickr25k", "variant": wanted, "split": split, "seed": seed, "queries": num_queries,
            "train": num_train, "allow_other_counts": allow_other_counts,
        }  # fmt: skip
        facts = [
            f"{len(table):,} pictures in the release, {len(rows):,} of them with {needs}: these are the rows.",
            f"{len(table.class_names)} classes; {len(table.tag_names):,} common tags, which occur at least 20 times.",
            "`text` and `tags` are a picture's common tags in the order in which its photographer gave them.",
        ]
        return prepare(files, table, rows, parts, out, _PROVENANCE, settings, facts, corrections, writing)


def read_mirflickr(files: ReleaseFiles, release: MIRFlickrRelease, checks: CheckSums) -> ReleaseTable:
    """Read and check tags and annotations of all rows; row i is picture `im<i + 1>.jpg`.

    Raises:
        DataError: If a file is missing, a line is not what the format asks for, or a check sum differs.
    """
    say = checks.corrections.say
    key = files.need("doc/common_tags.txt", "the common tags, in mirflickr25k.zip")
    names = list(_common_tags(files, key))
    checks.check(files.describe(key), "tags", len(names), release.num_tags)
    numbers = {name: number for number, name in enumerate(names)}
    latin: list[int] = []
    tags = Lists.of(_tags(files, release.num_rows, numbers, latin))
    if latin:
        say(f"{len(latin):,} files of tags (the first is tags{latin[0]}.txt) hold Latin-1, not UTF-8: read as such.")
    checks.check(f"{files.root}, meta/tags", "common tags over all rows", len(tags.numbers), release.tag_ones)

    in_class = [_annotated(files, name, release) for name in release.classes]
    stricter = [name for name in release.classes if files.find(f"{name}_r1.txt")]
    if stricter:
        say(
            f"{len(stricter)} files *_r1.txt hold the pictures that show a class clearly; they are parts of these "
            "classes and not classes of their own: left out."
        )
    labels = Lists.of_columns(in_class, release.num_rows)
    checks.check(f"{files.root}, annotations", "labels over all rows", len(labels.numbers), release.label_ones)
    ids = [f"im{number}" for number in range(1, release.num_rows + 1)]
    return ReleaseTable(ids, [f"{name}.jpg" for name in ids], names, tags, list(release.classes), labels)


def _common_tags(files: ReleaseFiles, key: str) -> Iterator[str]:
    seen = set()
    for number, (line, _) in enumerate(decode_lines(files.lines(key)), 1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != 2 or not fields[1].isdecimal():
            raise DataError(
                f"{files.describe(key)}, line {number}: {line[:40]!r} is not a tag and its count; fetch it again."
            )
        if fields[0] in seen:
            raise DataError(f"{files.describe(key)}, line {number}: {fields[0]!r} stands there twice; fetch it again.")
        seen.add(fields[0])
        yield fields[0]


def _tags(files: ReleaseFiles, num_rows: int, numbers: dict[str, int], latin: list[int]) -> Iterator[list[int]]:
    for row in range(1, num_rows + 1):
        key = files.find(f"tags/tags{row}.txt") or files.need(
            f"meta/tags/tags{row}.txt", f"the tags of picture {row} of {num_rows:,}, in mirflickr25k.zip"
        )
        found: dict[int, None] = {}
        is_latin = False
        for line, was_latin in decode_lines(files.lines(key)):
            is_latin |= was_latin
            if (number := numbers.get(line.strip())) is not None:
                found[number] = None
        if is_latin:
            latin.append(row)
        yield list(found)


def _annotated(files: ReleaseFiles, name: str, release: MIRFlickrRelease) -> np.ndarray:
    key = files.need(f"{name}.txt", f"the pictures of class {name!r}, in mirflickr25k_annotations_v080.zip")
    rows: dict[int, None] = {}
    for number, line in enumerate(files.lines(key), 1):
        value = line.strip()
        if not value:
            continue
        if not value.isdigit() or not 1 <= int(value) <= release.num_rows:
            shown = value[:20].decode("latin-1")
            raise DataError(
                f"{files.describe(key)}, line {number}: {shown!r} is no number of a picture (1 to "
                f"{release.num_rows:,}); fetch it again."
            )
        rows[int(value) - 1] = None
    return np.array(list(rows), np.int64)
