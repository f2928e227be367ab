"""Preparation of NUS-WIDE.

The release is several archives: `Groundtruth.zip` (a file of 0 and 1 for each concept), `ConceptsList.zip`,
`ImageList.zip`, `NUS_WID_Tags.zip`, and the images at `Flickr/<folder>/<n>_<photo id>.jpg`. Row i of every file is
line i of `Imagelist.txt`. Chua, Tang, Hong, Li, Luo and Zheng, NUS-WIDE, CIVR 2009.
"""

import os

from cmfah_hf.data.releases.card import Provenance
from cmfah_hf.data.releases.files import ReleaseFiles
from cmfah_hf.data.releases.nus_wide_files import TAGS, NUSWideRelease, read_nus_wide
from cmfah_hf.data.releases.preparation import PreparedReport, prepare
from cmfah_hf.data.releases.protocols import choose_variant, split_rows
from cmfah_hf.data.releases.shards import Writing
from cmfah_hf.data.releases.table import Corrections, CountChecks
from cmfah_hf.errors import DataError

NUS_WIDE = NUSWideRelease()

_SITE = "https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html"
_PROVENANCE = Provenance(
    name="NUS-WIDE",
    sources=(_SITE,),
    license_name="flickr-photographers-and-nus",
    license_link=_SITE,
    license=(
        "The photographs belong to their photographers, under the terms that each chose on Flickr, which the release "
        "does not list; the university provides them for research on request, against a signed agreement. Do not "
        "publish them with this table without permission. Tags, labels and lists are the university's, published for "
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
    """Checks NUS-WIDE as released, and writes it as Parquet with a card.

    Args:
        root: The folder with the archives, or with their content.
        out: The folder to write. None: only read and check.
        variant: The number of pairs. For 21 classes 195834, those with a label, or 190421, those that also have one of
            the 1,000 tags; for 10 classes 186577 or 181365; for 81 classes 209347.
        classes: 21 or 10, the most frequent concepts, or all 81.
        tags: `"1k"`: the 1,000 tags of `AllTags1k.txt`. `"5018"`: those of `Final_Tag_List.txt`, from `All_Tags.txt`;
            the variant's pairs with a tag are still those of `AllTags1k.txt`.
        split: `"paper"` (random by `seed`), `"dcmh"` or `"dadh"`, see `split_rows`.
        seed: Seed of the split.
        queries: Number of queries. None: 2,100.
        train: Number of training pairs. None: 10,500.
        allow_other_counts: Accept a copy with other counts than the release's; the card lists the differences.
        writing: Options of checking images and writing shards.
        release: Expected counts.

    Raises:
        DataError: If a file is missing or damaged, a count differs, images are missing, or `out` cannot be written.
    """
    if classes not in release.variants:
        raise DataError(f"classes={classes} is not known; give one of {', '.join(map(str, release.variants))}.")
    if tags not in TAGS:
        raise DataError(f"tags={tags!r} is not known; give one of {', '.join(TAGS)}.")
    pairs, with_text = choose_variant(release.variants[classes], variant, f" with {classes} classes")
    num_queries = release.queries if queries is None else queries
    num_train = release.train if train is None else train
    with ReleaseFiles(root) as files:
        checks = CountChecks(allow_other_counts, Corrections(files))
        table = read_nus_wide(files, release, checks, classes, tags, selects_by_tag=with_text)
        needs = "a label and one of the 1,000 tags" if with_text else "a label"
        rows = checks.checked_rows(table, with_text, needs, pairs)
        parts = split_rows([table.ids[row] for row in rows], split, num_queries, num_train, seed)
        settings = {
            "dataset": "nus-wide", "variant": pairs, "classes": classes, "tags": tags, "split": split, "seed": seed,
            "queries": num_queries, "train": num_train, "allow_other_counts": allow_other_counts,
        }  # fmt: skip
        concepts = "all concepts" if release.class_names[classes] is None else "the concepts with the most images"
        origin = (
            "those of `AllTags1k.txt`, which differs in some rows from `All_Tags.txt` restricted to these tags; in the "
            "order of `TagList1k.txt`"
            if tags == "1k"
            else "the tags of `All_Tags.txt` that `Final_Tag_List.txt` lists, in the order of the row"
        )
        facts = [
            f"{len(table):,} lines in the release, {len(rows):,} of them with {needs}: these are the rows.",
            f"{len(table.class_names)} classes: {concepts}. {len(table.tag_names):,} tags.",
            f"`text` and `tags` are {origin}.",
            f"{int((table.tags.lengths[rows] == 0).sum()):,} rows have an empty text; they are kept.",
            "`id` is folder, number and photo id of the image, `<folder>/<n>_<photo id>`.",
        ]
        return prepare(files, table, rows, parts, out, _PROVENANCE, settings, facts, checks.corrections, writing)
