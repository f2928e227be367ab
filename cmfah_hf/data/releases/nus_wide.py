"""NUS-WIDE as it was released, prepared for the Hub.

The release is several archives: `Groundtruth.zip` (a file of 0 and 1 for each concept), `ConceptsList.zip`,
`ImageList.zip`, `NUS_WID_Tags.zip`, and the pictures at `Flickr/<folder>/<n>_<photo id>.jpg`. Row i of every file is
line i of `Imagelist.txt`. Chua, Tang, Hong, Li, Luo and Zheng, NUS-WIDE, CIVR 2009.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from cmfah_hf.data.releases.card import Provenance
from cmfah_hf.data.releases.files import ReleaseFiles
from cmfah_hf.data.releases.preparation import PreparedReport, prepare
from cmfah_hf.data.releases.protocols import split_rows
from cmfah_hf.data.releases.shards import Writing
from cmfah_hf.data.releases.table import CheckSums, Corrections, Lists, ReleaseTable, decode_lines, read_ones
from cmfah_hf.errors import DataError

# The concepts with the most pictures, by how many of them are taken; in the order of Concepts81.txt.
MOST_FREQUENT = {
    10: ("animal", "buildings", "clouds", "grass", "lake", "person", "plants", "sky", "water", "window"),
    21: (
        "animal", "beach", "buildings", "clouds", "flowers", "grass", "lake", "mountain", "ocean", "person", "plants",
        "reflection", "road", "rocks", "sky", "snow", "sunset", "tree", "vehicle", "water", "window",
    ),
}  # fmt: skip
TAGS = ("1k", "5018")

_PICTURE = re.compile(r"(?:.*[/\\])?([^/\\]+)[/\\](\d+_(\d+)\.jpg)", re.IGNORECASE)


@dataclass(frozen=True)
class NUSWideRelease:
    """What a release of NUS-WIDE holds; the defaults are those of the whole of it.

    Args:
        num_rows: Lines of `Imagelist.txt`, and of every file beside it.
        num_concepts: Lines of `Concepts81.txt`.
        num_tags: Tags in the list for `AllTags1k.txt`, and in `Final_Tag_List.txt`, by what `--tags` calls them.
        tag_ones: Ones in `AllTags1k.txt`.
        repeated_photos: Photo ids that stand in two lines.
        class_names: By the number of classes, which concepts they are; None where it is all.
        label_ones: By the number of classes, their ones over all rows; None where it is not known.
        variants: By the number of classes, by the number of pairs: whether a pair needs a tag, beside a label.
        queries: Of the paper's protocol.
        train: Training pairs, likewise.
    """

    num_rows: int = 269_648
    num_concepts: int = 81
    num_tags: dict[str, int] = field(default_factory=lambda: {"1k": 1_000, "5018": 5_018})
    tag_ones: int = 1_559_464
    repeated_photos: int = 6
    class_names: dict[int, tuple[str, ...] | None] = field(default_factory=lambda: {**MOST_FREQUENT, 81: None})
    label_ones: dict[int, int | None] = field(default_factory=lambda: {10: 332_189, 21: 411_438, 81: None})
    variants: dict[int, dict[int, bool]] = field(
        default_factory=lambda: {
            10: {186_577: False, 181_365: True},
            21: {195_834: False, 190_421: True},
            81: {209_347: False},
        }
    )
    queries: int = 2_100
    train: int = 10_500


NUS_WIDE = NUSWideRelease()

_SITE = "https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html"
_PROVENANCE = Provenance(
    name="NUS-WIDE",
    sources=(_SITE,),
    licence_name="flickr-photographers-and-nus",
    licence_link=_SITE,
    licence=(
        "The photographs are their photographers', under the terms that each chose on Flickr, which the release does "
        "not list; the university hands them out for research on request, against a signed agreement. So do not "
        "publish them with this table unless you may. Tags, labels and lists are the university's, published for "
        "research with the request to cite the paper."
    ),
    citation="""@inproceedings{nus-wide-civr09,
  author = {Tat-Seng Chua and Jinhui Tang and Richang Hong and Haojie Li and Zhiping Luo and Yan-Tao Zheng},
  title = {{NUS-WIDE}: A Real-World Web Image Database from {N}ational {U}niversity of {S}ingapore},
  booktitle = {Proceedings of the ACM International Conference on Image and Video Retrieval (CIVR '09)},
  year = {2009}
}""",
)


def prepare_nus_wide(
    root: str | os.PathLike,
    out: str | os.PathLike | None,
    *,
    variant: int | str | None = None,
    classes: int = 21,
    tags: str = "1k",
    split: str = "paper",
    seed: int = 0,
    queries: int | None = None,
    train: int | None = None,
    allow_other_counts: bool = False,
    writing: Writing | None = None,
    release: NUSWideRelease = NUS_WIDE,
) -> PreparedReport:
    """Check NUS-WIDE as released, and write it as Parquet with a card.

    Args:
        root: The folder with the archives, or with what was unpacked from them.
        out: The folder to write. None: only read and check.
        variant: The number of pairs. Of 21 classes 195834, those with a label, or 190421, those with one of the 1,000
            tags as well; of 10 classes 186577 or 181365; of 81 classes 209347.
        classes: 21 or 10, the most frequent concepts, or all 81.
        tags: `"1k"`: the 1,000 tags of `AllTags1k.txt`. `"5018"`: those of `Final_Tag_List.txt`, out of
            `All_Tags.txt`; which pairs count as tagged is `AllTags1k.txt`'s to say all the same.
        split: `"paper"` (random by `seed`), `"dcmh"` or `"dadh"`, see `split_rows`.
        seed: Of the split.
        queries: How many; 2,100 if not given.
        train: How many training pairs; 10,500 if not given.
        allow_other_counts: Take a copy whose counts are not the release's; the card says so.
        writing: How pictures are checked and shards are written.
        release: What is expected.

    Raises:
        DataError: If a file is missing or damaged, a count differs, pictures are missing, or `out` cannot be written.
    """
    if classes not in release.variants:
        raise DataError(f"classes={classes} is not known; take one of {', '.join(map(str, release.variants))}.")
    if tags not in TAGS:
        raise DataError(f"tags={tags!r} is not known; take one of {', '.join(TAGS)}.")
    variants = release.variants[classes]
    wanted = next(iter(variants)) if variant is None else int(variant)
    if wanted not in variants:
        raise DataError(
            f"variant={variant} is not known with {classes} classes; take one of {', '.join(map(str, variants))}."
        )
    with ReleaseFiles(root) as files:
        corrections = Corrections(files)
        checks = CheckSums(allow_other_counts, corrections)
        table = read_nus_wide(files, release, checks, classes, tags, with_1k=tags == "1k" or variants[wanted])
        rows = table.rows(with_text=variants[wanted])
        needs = "a label and one of the 1,000 tags" if variants[wanted] else "a label"
        checks.check(str(files.root), f"pairs with {needs}", len(rows), wanted)
        num_queries = release.queries if queries is None else queries
        num_train = release.train if train is None else train
        parts = split_rows([table.ids[row] for row in rows], split, num_queries, num_train, seed)
        settings = {
            "dataset": "nus-wide", "variant": wanted, "classes": classes, "tags": tags, "split": split, "seed": seed,
            "queries": num_queries, "train": num_train, "allow_other_counts": allow_other_counts,
        }  # fmt: skip
        which = "all concepts" if release.class_names[classes] is None else "the concepts with the most pictures"
        where = (
            "`AllTags1k.txt` says, which differs in some rows from `All_Tags.txt` cut down to these tags; in the order "
            "of `TagList1k.txt`"
            if tags == "1k"
            else "`All_Tags.txt` has and `Final_Tag_List.txt` lists, in the order of the row"
        )
        facts = [
            f"{len(table):,} lines in the release, {len(rows):,} of them with {needs}: these are the rows.",
            f"{len(table.class_names)} classes: {which}. {len(table.tag_names):,} tags.",
            f"`text` and `tags` are what {where}.",
            f"{int((table.tags.lengths[rows] == 0).sum()):,} rows have an empty text; they are kept.",
            "`id` is folder, number and photo id of the picture, `<folder>/<n>_<photo id>`.",
        ]
        return prepare(files, table, rows, parts, out, _PROVENANCE, settings, facts, corrections, writing)


def read_nus_wide(
    files: ReleaseFiles, release: NUSWideRelease, checks: CheckSums, classes: int, tags: str, with_1k: bool = True
) -> ReleaseTable:
    """Read and check list, tags and labels of all rows.

    Args:
        files: The release.
        release: What is expected of it.
        checks: Where counts are compared.
        classes: How many of the concepts.
        tags: `"1k"` or `"5018"`.
        with_1k: Whether `AllTags1k.txt` is read.

    Raises:
        DataError: If a file is missing, a line is not what the format asks for, or a check sum differs.
    """
    corrections = checks.corrections
    for name in files.unread_archives():
        if name.lower().startswith("nus-wide-urls"):
            corrections.say(f"{name}: is not read, and not needed; it holds addresses of pictures.")
    ids, photos = _image_list(files, release, checks)
    key = files.need("Concepts81.txt", "the names of the concepts, in ConceptsList.zip")
    concepts = [line.strip() for line, _ in decode_lines(files.lines(key)) if line.strip()]
    checks.check(files.describe(key), "concepts", len(concepts), release.num_concepts)
    names = release.class_names[classes]
    names = tuple(concepts) if names is None else names
    if missing := [name for name in names if name not in concepts]:
        raise DataError(f"{files.describe(key)}: the concept {missing[0]!r} is not listed; fetch the file again.")
    names = [name for name in concepts if name in names]
    labels = Lists.of_columns([_labels(files, name, len(ids), corrections) for name in names], len(ids))
    checks.check(
        f"{files.root}, AllLabels", f"ones of {classes} classes", len(labels.numbers), release.label_ones[classes]
    )
    tag_names, ones, selecting = [], None, None
    if with_1k:
        tag_names, ones = _tags_1k(files, release, checks, len(ids))
        selecting = ones.lengths
    if tags == "5018":
        tag_names, ones = _tags_5018(files, release, checks, photos)
    return ReleaseTable(ids, [f"{name}.jpg" for name in ids], tag_names, ones, names, labels, selecting)


def _image_list(files: ReleaseFiles, release: NUSWideRelease, checks: CheckSums) -> tuple[list[str], list[int]]:
    key = files.need("Imagelist.txt", "the list of pictures, in ImageList.zip")
    name = files.describe(key)
    ids, photos, slashes, prefixes = [], [], 0, 0
    for number, (line, _) in enumerate(decode_lines(files.lines(key)), 1):
        line = line.strip()
        if not line:
            continue
        match = _PICTURE.fullmatch(line)
        if match is None:
            raise DataError(
                f"{name}, line {number}: {line[:60]!r} is not <folder>/<n>_<photo id>.jpg; fetch the file again."
            )
        folder, picture, photo = match.groups()
        slashes += "\\" in line
        prefixes += len(folder) + 1 + len(picture) < len(line)
        ids.append(f"{folder}/{picture[:-4]}")
        photos.append(int(photo))
    checks.check(name, "lines", len(ids), release.num_rows)
    say = checks.corrections.say
    if slashes:
        say(f"{name}: {slashes:,} paths with backslashes, read as slashes.")
    if prefixes:
        say(f"{name}: {prefixes:,} paths begin with a folder of another machine, which is dropped.")
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(row_id for row_id in ids if row_id in seen or seen.add(row_id))
        raise DataError(f"{name}: the path {twice}.jpg stands there twice; fetch the file again.")
    counts = np.unique(photos, return_counts=True)[1]
    repeated = int((counts > 1).sum())
    checks.check(name, "photo ids that stand there twice", repeated, release.repeated_photos)
    if repeated:
        say(
            f"{name}: {repeated} photo ids stand there twice, in different folders, some of them with other labels. "
            "All publications count both rows, so both are kept; their ids differ by the folder."
        )
    return ids, photos


def _labels(files: ReleaseFiles, concept: str, num_rows: int, corrections: Corrections) -> np.ndarray:
    """The rows in which a concept has a one."""
    key = files.need(
        f"AllLabels/Labels_{concept}.txt", f"the labels of {concept!r}, in Groundtruth.zip as Groundtruth/AllLabels"
    )
    rows = _ones_of(files, key, 1, num_rows)
    # Beside them the release has the same labels once more, by its own split. They are not used, but a known defect is
    # there that others who count ones stumble over.
    for part in ("Train", "Test"):
        beside = files.find(f"TrainTestLabels/Labels_{concept}_{part}.txt")
        if beside is not None:
            for number, line in enumerate(files.lines(beside), 1):
                if line.strip() not in (b"0", b"1", b""):
                    value = line.strip()[:20].decode("latin-1")
                    corrections.say(
                        f"Labels_{concept}_{part}.txt, line {number:,}: {value} is neither 0 nor 1; the labels are "
                        f"those of AllLabels/Labels_{concept}.txt, which is sound."
                    )
    return rows


def _tags_1k(files: ReleaseFiles, release: NUSWideRelease, checks: CheckSums, num_rows: int) -> tuple[list[str], Lists]:
    names = _tag_list(files, "TagList1k.txt", release.num_tags["1k"], checks)
    key = files.need("AllTags1k.txt", "which picture has which of the 1,000 tags, in NUS_WID_Tags.zip")
    ones = _ones_of(files, key, len(names), num_rows)
    checks.check(files.describe(key), "ones", len(ones), release.tag_ones)
    rows, numbers = np.divmod(ones, len(names))
    return names, Lists(numbers.astype(np.int32), np.cumsum(np.bincount(rows, minlength=num_rows)))


def _tags_5018(
    files: ReleaseFiles, release: NUSWideRelease, checks: CheckSums, photos: list[int]
) -> tuple[list[str], Lists]:
    names = _tag_list(files, "Final_Tag_List.txt", release.num_tags["5018"], checks)
    numbers = {name: number for number, name in enumerate(names)}
    key = files.need("All_Tags.txt", "the tags of all pictures, in NUS_WID_Tags.zip")
    latin = [0]
    lists = Lists.of(_tags_of_rows(files, key, photos, numbers, latin))
    _require_rows(files, key, len(lists), len(photos))
    if latin[0]:
        checks.corrections.say(f"{files.describe(key)}: {latin[0]:,} lines hold Latin-1, not UTF-8: read as such.")
    return names, lists


def _tags_of_rows(
    files: ReleaseFiles, key: str, photos: list[int], numbers: dict[str, int], latin: list[int]
) -> Iterator[list[int]]:
    row = -1
    for number, (line, is_latin) in enumerate(decode_lines(files.lines(key)), 1):
        photo, *tags = line.split() or [""]
        if not photo:
            continue
        row += 1
        if row < len(photos) and not (photo.isdecimal() and int(photo) == photos[row]):
            raise DataError(
                f"{files.describe(key)}, line {number}: photo id {photo[:20]!r} instead of {photos[row]}, as line "
                f"{row + 1} of Imagelist.txt has it; fetch both files again."
            )
        latin[0] += is_latin
        yield list(dict.fromkeys(numbers[tag] for tag in tags if tag in numbers))


def _tag_list(files: ReleaseFiles, name: str, expected: int, checks: CheckSums) -> list[str]:
    key = files.need(name, "the list of tags, in NUS_WID_Tags.zip")
    names = [line.strip() for line, _ in decode_lines(files.lines(key)) if line.strip()]
    checks.check(files.describe(key), "tags", len(names), expected)
    if len(set(names)) < len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise DataError(f"{files.describe(key)}: the tag {twice!r} stands there twice; fetch the file again.")
    return names


def _ones_of(files: ReleaseFiles, key: str, width: int, num_rows: int) -> np.ndarray:
    found, first = [np.zeros(0, np.int64)], 0
    for rows, ones in read_ones(files, key, width):
        found.append(ones + first * width)
        first += rows
    _require_rows(files, key, first, num_rows)
    return np.concatenate(found)


def _require_rows(files: ReleaseFiles, key: str, found: int, expected: int) -> None:
    """No option helps here: rows that do not belong to each other are no data."""
    if found != expected:
        raise DataError(
            f"{files.describe(key)}: {found:,} lines instead of {expected:,}, as Imagelist.txt has; fetch both again."
        )
