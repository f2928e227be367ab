"""Reading of NUS-WIDE as released: image list, concepts, labels and tags."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from cmfah_hf.data.releases.files import ReleaseFiles
from cmfah_hf.data.releases.table import (
    Corrections,
    CountChecks,
    Lists,
    ReleaseTable,
    decode_lines,
    read_names,
    read_ones,
)
from cmfah_hf.errors import DataError

# The most frequent concepts, by their number, in the order of Concepts81.txt.
MOST_FREQUENT = {
    10: ("animal", "buildings", "clouds", "grass", "lake", "person", "plants", "sky", "water", "window"),
    21: (
        "animal", "beach", "buildings", "clouds", "flowers", "grass", "lake", "mountain", "ocean", "person", "plants",
        "reflection", "road", "rocks", "sky", "snow", "sunset", "tree", "vehicle", "water", "window",
    ),
}  # fmt: skip
TAGS = ("1k", "5018")

_IMAGE_PATH = re.compile(r"(?:.*[/\\])?([^/\\]+)[/\\](\d+_(\d+)\.jpg)", re.IGNORECASE)


@dataclass(frozen=True)
class NUSWideRelease:
    """Known counts of a release of NUS-WIDE; the defaults are those of the whole data set.

    Concepts (None: all), their ones over all rows (None: unknown) and variants are by the number of classes. A variant
    is a number of pairs, with whether these need a tag in addition to a label.
    """

    num_rows: int = 269_648  # lines in `Imagelist.txt` and every other file
    num_concepts: int = 81  # lines in `Concepts81.txt`
    num_tags: dict[str, int] = field(default_factory=lambda: {"1k": 1_000, "5018": 5_018})
    tag_ones: int = 1_559_464  # ones in `AllTags1k.txt`
    repeated_photos: int = 6  # photo ids that occur in two lines
    class_names: dict[int, tuple[str, ...] | None] = field(default_factory=lambda: {**MOST_FREQUENT, 81: None})
    label_ones: dict[int, int | None] = field(default_factory=lambda: {10: 332_189, 21: 411_438, 81: None})
    variants: dict[int, dict[int, bool]] = field(
        default_factory=lambda: {
            10: {186_577: False, 181_365: True},
            21: {195_834: False, 190_421: True},
            81: {209_347: False},
        }
    )
    queries: int = 2_100  # of the paper's protocol
    train: int = 10_500  # likewise


def read_nus_wide(
    files: ReleaseFiles, release: NUSWideRelease, checks: CountChecks, classes: int, tags: str, selects_by_tag: bool
) -> ReleaseTable:
    """Reads and checks list, tags (`"1k"` or `"5018"`) and labels of all rows.

    `selects_by_tag`: the tags of `AllTags1k.txt` select rows, so that it is read for any `tags`.
    """
    corrections = checks.corrections
    for name in files.unread_archives():
        if name.lower().startswith("nus-wide-urls"):
            corrections.add(f"{name}: is not read, and not needed; it holds addresses of images.")
    ids, photos = _image_list(files, release, checks)
    key = files.need("Concepts81.txt", "the names of the concepts, in ConceptsList.zip")
    concepts = read_names(files, key)
    checks.check(files.describe(key), "concepts", len(concepts), release.num_concepts)
    wanted: Sequence[str] = release.class_names[classes] or concepts
    if missing := [name for name in wanted if name not in concepts]:
        raise DataError(f"{files.describe(key)}: the concept {missing[0]!r} is not listed; fetch the file again.")
    names = [name for name in concepts if name in wanted]
    labels = Lists.of_columns([_labels(files, name, len(ids), corrections) for name in names], len(ids))
    checks.check(
        f"{files.root}, AllLabels", f"ones of {classes} classes", len(labels.numbers), release.label_ones[classes]
    )
    selecting = None
    if tags == "1k":
        tag_names, lists = _tags_1k(files, release, checks, len(ids))
    else:
        if selects_by_tag:
            selecting = _tags_1k(files, release, checks, len(ids))[1].lengths
        tag_names, lists = _tags_5018(files, release, checks, photos)
    return ReleaseTable(ids, [f"{name}.jpg" for name in ids], tag_names, lists, names, labels, selecting)


def _image_list(files: ReleaseFiles, release: NUSWideRelease, checks: CountChecks) -> tuple[list[str], list[int]]:
    key = files.need("Imagelist.txt", "the list of images, in ImageList.zip")
    name = files.describe(key)
    ids, photos, slashes, prefixes = [], [], 0, 0
    for number, (line, _) in enumerate(decode_lines(files.lines(key)), 1):
        line = line.strip()
        if not line:
            continue
        match = _IMAGE_PATH.fullmatch(line)
        if match is None:
            raise DataError(
                f"{name}, line {number}: {line[:60]!r} is not <folder>/<n>_<photo id>.jpg; fetch the file again."
            )
        folder, image, photo = match.groups()
        slashes += "\\" in line
        prefixes += len(folder) + 1 + len(image) < len(line)
        ids.append(f"{folder}/{image[:-4]}")
        photos.append(int(photo))
    checks.check(name, "lines", len(ids), release.num_rows)
    correct = checks.corrections.add
    if slashes:
        correct(f"{name}: {slashes:,} paths with backslashes, read as slashes.")
    if prefixes:
        correct(f"{name}: {prefixes:,} paths start with a folder of another machine, which is removed.")
    if (repeated_id := _first_repeated(ids)) is not None:
        raise DataError(f"{name}: the path {repeated_id}.jpg occurs twice; fetch the file again.")
    counts = np.unique(photos, return_counts=True)[1]
    repeated = int((counts > 1).sum())
    checks.check(name, "repeated photo ids", repeated, release.repeated_photos)
    if repeated:
        correct(
            f"{name}: {repeated} photo ids occur twice, in different folders, some of them with other labels. "
            "All publications count both rows, so both are kept; their ids differ by the folder."
        )
    return ids, photos


def _labels(files: ReleaseFiles, concept: str, num_rows: int, corrections: Corrections) -> np.ndarray:
    """The rows that have a concept."""
    key = files.need(
        f"AllLabels/Labels_{concept}.txt", f"the labels of {concept!r}, in Groundtruth.zip as Groundtruth/AllLabels"
    )
    rows = _ones_of(files, key, 1, num_rows)
    # The release also has the same labels by its own split. These files are not used, but have a known defect, which
    # changes the counts of those who use them.
    for part in ("Train", "Test"):
        other = files.find(f"TrainTestLabels/Labels_{concept}_{part}.txt")
        for number, line in enumerate(files.lines(other) if other is not None else (), 1):
            if line.strip() not in (b"0", b"1", b""):
                value = line.strip()[:20].decode("latin-1")
                corrections.add(
                    f"Labels_{concept}_{part}.txt, line {number:,}: {value} is neither 0 nor 1; the labels are "
                    f"those of AllLabels/Labels_{concept}.txt, which is valid."
                )
    return rows


def _tags_1k(
    files: ReleaseFiles, release: NUSWideRelease, checks: CountChecks, num_rows: int
) -> tuple[list[str], Lists]:
    names = _tag_list(files, "TagList1k.txt", release.num_tags["1k"], checks)
    key = files.need("AllTags1k.txt", "the matrix of images and 1,000 tags, in NUS_WID_Tags.zip")
    ones = _ones_of(files, key, len(names), num_rows)
    checks.check(files.describe(key), "ones", len(ones), release.tag_ones)
    rows, numbers = np.divmod(ones, len(names))
    return names, Lists(numbers.astype(np.int32), np.cumsum(np.bincount(rows, minlength=num_rows)))


def _tags_5018(
    files: ReleaseFiles, release: NUSWideRelease, checks: CountChecks, photos: list[int]
) -> tuple[list[str], Lists]:
    names = _tag_list(files, "Final_Tag_List.txt", release.num_tags["5018"], checks)
    numbers = {name: number for number, name in enumerate(names)}
    key = files.need("All_Tags.txt", "the tags of all images, in NUS_WID_Tags.zip")
    latin = [0]
    lists = Lists.of(_tags_of_rows(files, key, photos, numbers, latin))
    _require_rows(files, key, len(lists), len(photos))
    if latin[0]:
        checks.corrections.add(f"{files.describe(key)}: {latin[0]:,} lines are Latin-1 and read as such.")
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


def _tag_list(files: ReleaseFiles, name: str, expected: int, checks: CountChecks) -> list[str]:
    key = files.need(name, "the list of tags, in NUS_WID_Tags.zip")
    names = read_names(files, key)
    checks.check(files.describe(key), "tags", len(names), expected)
    if (repeated := _first_repeated(names)) is not None:
        raise DataError(f"{files.describe(key)}: the tag {repeated!r} occurs twice; fetch the file again.")
    return names


def _first_repeated(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _ones_of(files: ReleaseFiles, key: str, width: int, num_rows: int) -> np.ndarray:
    found, first = [np.zeros(0, np.int64)], 0
    for rows, ones in read_ones(files, key, width):
        found.append(ones + first * width)
        first += rows
    _require_rows(files, key, first, num_rows)
    return np.concatenate(found)


def _require_rows(files: ReleaseFiles, key: str, found: int, expected: int) -> None:
    """Always an error, since such files do not describe the same images."""
    if found != expected:
        raise DataError(
            f"{files.describe(key)}: {found:,} lines instead of {expected:,}, as in Imagelist.txt; fetch both again."
        )
