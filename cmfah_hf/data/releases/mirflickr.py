"""Preparation of MIRFlickr-25k.

The release is two archives, `mirflickr25k.zip` (images, `doc/common_tags.txt`, `meta/tags/`) and
`mirflickr25k_annotations_v080.zip` (a file of image numbers for each class). Huiskes and Lew, The MIR Flickr
Retrieval Evaluation, MIR 2008.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from cmfah_hf.data.releases.card import Provenance
from cmfah_hf.data.releases.files import ReleaseFiles
from cmfah_hf.data.releases.preparation import PreparedReport, prepare
from cmfah_hf.data.releases.protocols import choose_variant, split_rows
from cmfah_hf.data.releases.shards import Writing
from cmfah_hf.data.releases.table import Corrections, CountChecks, Lists, ReleaseTable, decode_lines
from cmfah_hf.errors import DataError

CLASSES = (
    "animals", "baby", "bird", "car", "clouds", "dog", "female", "flower", "food", "indoor", "lake", "male", "night",
    "people", "plant_life", "portrait", "river", "sea", "sky", "structures", "sunset", "transport", "tree", "water",
)  # fmt: skip


@dataclass(frozen=True)
class MIRFlickrRelease:
    """Known counts of a release of MIRFlickr; the defaults are those of MIRFlickr-25k.

    A variant is a number of pairs, with whether these need a common tag in addition to a label.
    """

    num_rows: int = 25_000  # images, which are numbered from 1
    num_tags: int = 1_386  # in `common_tags.txt`
    tag_ones: int = 94_281  # common tags over all rows
    label_ones: int = 92_902  # labels over all rows
    variants: dict[int, bool] = field(default_factory=lambda: {20_015: True, 24_581: False})
    queries: int = 2_000  # of the published protocol
    train: int = 10_000  # likewise
    classes: tuple[str, ...] = CLASSES  # their annotation files are `<class>.txt`


MIRFLICKR25K = MIRFlickrRelease()

_PROVENANCE = Provenance(
    name="MIRFlickr-25k",
    sources=("https://press.liacs.nl/mirflickr/", "https://press.liacs.nl/mirflickr/mirdownload.html"),
    license_name="flickr-creative-commons",
    license_link="https://press.liacs.nl/mirflickr/",
    license=(
        "The photographs belong to their photographers, each under its own Creative Commons license; photographer, "
        "title and license of each are in the release's `mirflickr/meta/license/`. Use requires credit to the "
        "photographer, and some licenses require more."
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
    """Checks MIRFlickr-25k as released, and writes it as Parquet with a card.

    Args:
        root: The folder with the two archives, or with their content.
        out: The folder to write. None: only read and check.
        variant: 20015, the pairs with a common tag and a label, as in publications, or 24581, those with a label.
        split: `"paper"` (random by `seed`), `"dcmh"` or `"dadh"`, see `split_rows`.
        seed: Seed of the split.
        queries: Number of queries. None: 2,000.
        train: Number of training pairs. None: 10,000.
        allow_other_counts: Accept a copy with other counts than the release's; the card lists the differences.
        writing: Options of checking images and writing shards.
        release: Expected counts.

    Raises:
        DataError: If a file is missing or damaged, a count differs, images are missing, or `out` cannot be written.
    """
    pairs, with_text = choose_variant(release.variants, variant)
    num_queries = release.queries if queries is None else queries
    num_train = release.train if train is None else train
    with ReleaseFiles(root) as files:
        checks = CountChecks(allow_other_counts, Corrections(files))
        table = read_mirflickr(files, release, checks)
        needs = "a label and a common tag" if with_text else "a label"
        rows = checks.checked_rows(table, with_text, needs, pairs)
        parts = split_rows([table.ids[row] for row in rows], split, num_queries, num_train, seed)
        settings = {
            "dataset": "mirflickr25k", "variant": pairs, "split": split, "seed": seed, "queries": num_queries,
            "train": num_train, "allow_other_counts": allow_other_counts,
        }  # fmt: skip
        facts = [
            f"{len(table):,} images in the release, {len(rows):,} of them with {needs}: these are the rows.",
            f"{len(table.class_names)} classes; {len(table.tag_names):,} common tags, which occur at least 20 times.",
            "`text` and `tags` are an image's common tags in the order given by its photographer.",
        ]
        return prepare(files, table, rows, parts, out, _PROVENANCE, settings, facts, checks.corrections, writing)


def read_mirflickr(files: ReleaseFiles, release: MIRFlickrRelease, checks: CountChecks) -> ReleaseTable:
    """Reads and checks tags and annotations of all rows; row i is the image `im<i + 1>.jpg`."""
    correct = checks.corrections.add
    key = files.need("doc/common_tags.txt", "the common tags, in mirflickr25k.zip")
    names = list(_common_tags(files, key))
    checks.check(files.describe(key), "tags", len(names), release.num_tags)
    numbers = {name: number for number, name in enumerate(names)}
    latin: list[int] = []
    tags = Lists.of(_tags(files, release.num_rows, numbers, latin))
    if latin:
        correct(f"{len(latin):,} files of tags (the first is tags{latin[0]}.txt) are Latin-1 and read as such.")
    checks.check(f"{files.root}, meta/tags", "common tags over all rows", len(tags.numbers), release.tag_ones)

    in_class = [_annotated(files, name, release) for name in release.classes]
    stricter = [name for name in release.classes if files.find(f"{name}_r1.txt")]
    if stricter:
        correct(
            f"{len(stricter)} files *_r1.txt list the images that show a class clearly; they are subsets of these "
            "classes, and are not used."
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
                f"{files.describe(key)}, line {number}: {line[:40]!r} is not a tag with its count; fetch it again."
            )
        if fields[0] in seen:
            raise DataError(f"{files.describe(key)}, line {number}: {fields[0]!r} occurs twice; fetch it again.")
        seen.add(fields[0])
        yield fields[0]


def _tags(files: ReleaseFiles, num_rows: int, numbers: dict[str, int], latin: list[int]) -> Iterator[list[int]]:
    for row in range(1, num_rows + 1):
        key = files.find(f"tags/tags{row}.txt") or files.need(
            f"meta/tags/tags{row}.txt", f"the tags of image {row} of {num_rows:,}, in mirflickr25k.zip"
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
    key = files.need(f"{name}.txt", f"the images of class {name!r}, in mirflickr25k_annotations_v080.zip")
    rows: dict[int, None] = {}
    for number, line in enumerate(files.lines(key), 1):
        value = line.strip()
        if not value:
            continue
        if not value.isdigit() or not 1 <= int(value) <= release.num_rows:
            shown = value[:20].decode("latin-1")
            raise DataError(
                f"{files.describe(key)}, line {number}: {shown!r} is not the number of an image (1 to "
                f"{release.num_rows:,}); fetch it again."
            )
        rows[int(value) - 1] = None
    return np.array(list(rows), np.int64)
