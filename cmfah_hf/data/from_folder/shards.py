"""Held-out queries of a folder of shards, which are read as they are."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cmfah_hf.atomic import write_text
from cmfah_hf.data.from_folder.report import FolderReport
from cmfah_hf.data.sources.request import usual_order
from cmfah_hf.data.sources.shard_division import DIVISION_NAME, QUERY, TRAIN, ShardDivision, read_division
from cmfah_hf.data.sources.webdataset import is_image
from cmfah_hf.data.tar_samples import read_samples, stem_of
from cmfah_hf.errors import DataError


def divide_shards(
    folder: Path,
    splits: Mapping[str, Sequence[str]],
    queries: float | None,
    seed: int | None,
    overwrite: bool,
    progress: Callable[[int], None] | None,
) -> FolderReport:
    """Writes into a folder of shards how their split `train` is divided, and counts the samples of each split.

    Args:
        folder: The folder.
        splits: Its shards by split.
        queries, seed, overwrite, progress: As in `prepare_folder`.
    """
    if QUERY in splits or TRAIN not in splits:
        raise DataError(
            f"{folder}: its shards have the splits {', '.join(splits)} already; load, index or train on the folder."
        )
    former = read_division(folder)
    default = former or ShardDivision(0.1)
    division = ShardDivision(default.queries if queries is None else queries, default.seed if seed is None else seed)
    if not 0 < division.queries < 1:
        raise DataError(f"queries={division.queries:g}: the share of queries must be above 0 and below 1.")
    if former not in (None, division) and not overwrite:
        raise DataError(
            f"{folder / DIVISION_NAME}: its queries were drawn with --queries {former.queries:g} and --seed "
            f"{former.seed}; leave these out to keep them, or pass --overwrite too, to draw all anew."
        )
    report = FolderReport(str(folder), str(folder), shards=sum(map(len, splits.values())))
    report.written, report.unchanged = [str(folder / DIVISION_NAME)], former == division
    counts: Counter[str] = Counter()
    for split, files in splits.items():
        for file in files:
            for sample in read_samples(file, lambda ending: False):
                if not any(map(is_image, sample.files)):
                    report.problems["samples without an image"] += 1
                    continue
                counts[division.split_of(stem_of(file), sample.key) if split == TRAIN else split] += 1
                if progress is not None:
                    progress(1)
    if not counts[QUERY] or not counts[TRAIN]:
        raise DataError(
            f"{folder}: of its {counts.total():,} samples with an image, {counts[QUERY]:,} would be queries and "
            f"{counts[TRAIN]:,} training pairs; choose another --queries, or give more samples."
        )
    report.images, report.splits = counts.total(), {name: counts[name] for name in sorted(counts, key=usual_order)}
    if not report.unchanged:
        write_text(folder / DIVISION_NAME, division.as_text(), DataError)
    return report
