"""Preparation of the Wikipedia articles with released features.

The release has `raw_features.mat` (histograms of visual words and topics), a list of its rows for each of its two
splits, and `categories.list`. Rasiwasia et al., A New Approach to Cross-Modal Multimedia Retrieval, ACM MM 2010.

Shapes: N articles, D features.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmfah_hf.data.matrices.opening import check_variable, list_variables
from cmfah_hf.data.matrices.rows import DenseRows
from cmfah_hf.data.matrices.storage import Variable
from cmfah_hf.data.releases.card import Provenance
from cmfah_hf.data.releases.files import ReleaseFiles
from cmfah_hf.data.releases.preparation import PreparedReport, prepare
from cmfah_hf.data.releases.protocols import Split
from cmfah_hf.data.releases.shards import Writing
from cmfah_hf.data.releases.table import Corrections, CountChecks, Lists, ReleaseTable, decode_lines, read_names
from cmfah_hf.data.rows.columns import IMAGE_FEATURES, TEXT_FEATURES
from cmfah_hf.errors import DataError

FEATURES_FILE, CATEGORIES_FILE = "raw_features.mat", "categories.list"
LIST_FILES = {"train": "trainset_txt_img_cat.list", "query": "testset_txt_img_cat.list"}
# The variables of features by column and split.
_VARIABLES = {
    IMAGE_FEATURES: {"train": "I_tr", "query": "I_te"},
    TEXT_FEATURES: {"train": "T_tr", "query": "T_te"},
}
# `text` names this many of an article's strongest topics, because its words are not released.
_TOPICS_OF_TEXT = 3
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class WikipediaRelease:
    """Known counts of the release; None is not checked."""

    rows: tuple[int | None, int | None] = (2_173, 693)  # of `train` and `query`
    classes: int | None = 10
    image_features: int | None = 128
    text_features: int | None = 10


WIKIPEDIA = WikipediaRelease()

_PROVENANCE = Provenance(
    name="Wikipedia articles",
    sources=("http://www.svcl.ucsd.edu/projects/crossmodal/",),
    license_name="wikipedia-featured-articles",
    license_link="http://www.svcl.ucsd.edu/projects/crossmodal/",
    license=(
        "The articles are from Wikipedia, whose texts and images have licenses of their own. Here are only numbers "
        "computed from them, and identifiers. Ask the source for its terms, and cite both papers."
    ),
    citation="""@inproceedings{rasiwasia10,
  author = {Nikhil Rasiwasia and Jose {Costa Pereira} and Emanuele Coviello and Gabriel Doyle and Gert R. G. Lanckriet
            and Roger Levy and Nuno Vasconcelos},
  title = {A New Approach to Cross-Modal Multimedia Retrieval},
  booktitle = {Proceedings of the 18th ACM International Conference on Multimedia},
  year = {2010}
}
@article{costapereira14,
  author = {Jose {Costa Pereira} and Emanuele Coviello and Gabriel Doyle and Nikhil Rasiwasia and Gert R. G. Lanckriet
            and Roger Levy and Nuno Vasconcelos},
  title = {On the Role of Correlation and Abstraction in Cross-Modal Multimedia Retrieval},
  journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence},
  volume = {36},
  number = {3},
  year = {2014}
}""",
    pairs="image features and text features",
    tags="the names of the three strongest topics, joined by spaces",
    features=(
        (IMAGE_FEATURES, "the image's histogram of visual words (SIFT), as released"),
        (TEXT_FEATURES, "the text's topics (LDA), as released"),
    ),
    protocol="The split of the release. Queries are searched in `train`; there is no other database.",
)


def prepare_wikipedia(
    root: str | os.PathLike,
    out: str | os.PathLike | None,
    *,
    allow_other_counts: bool = False,
    writing: Writing | None = None,
    release: WikipediaRelease = WIKIPEDIA,
) -> PreparedReport:
    """Checks the Wikipedia articles as released, and writes their features as Parquet with a card.

    The splits are the release's own, `train` (2,173 articles, which queries are searched in) and `query` (693).

    Args:
        root: The folder with `raw_features.mat` and the three lists, or one with the release's archive.
        out: The folder to write. None: only read and check.
        allow_other_counts: Accept a copy with other counts than the release's; the card lists the differences.
        writing: Options of writing shards. There are no images to check.
        release: Expected counts.

    Raises:
        DataError: If a file is missing or damaged, the lists do not fit the features, a feature is not finite, a count
            differs, or `out` cannot be written.
    """
    with ReleaseFiles(root) as files:
        checks = CountChecks(allow_other_counts, Corrections(files))
        table, parts = read_wikipedia(files, release, checks)
        widths = {name: values_ND.shape[1] for name, values_ND in table.features.items()}
        facts = [
            f"{len(table):,} articles, {len(parts.train):,} of them in `train` and {len(parts.query):,} in `query`.",
            f"{len(table.class_names)} classes, one for each article.",
            f"{widths[IMAGE_FEATURES]} features of each image, {widths[TEXT_FEATURES]} topics of each text. The "
            "images and texts themselves are not included.",
            "`text` and `tags` name an article's three strongest topics, the strongest first; `topic0` is the first "
            f"value of `{TEXT_FEATURES}`.",
        ]
        settings = {"dataset": "wikipedia", "allow_other_counts": allow_other_counts}
        rows = np.arange(len(table))
        return prepare(files, table, rows, parts, out, _PROVENANCE, settings, facts, checks.corrections, writing)


def read_wikipedia(files: ReleaseFiles, release: WikipediaRelease, checks: CountChecks) -> tuple[ReleaseTable, Split]:
    """Reads and checks the release: its articles, those of `train` first, and its split."""
    key = files.need(CATEGORIES_FILE, "the names of the classes")
    classes = read_names(files, key)
    if len(set(classes)) != len(classes):
        raise DataError(f"{files.describe(key)}: a class occurs twice; fetch it again.")
    checks.check(files.describe(key), "classes", len(classes), release.classes)
    keys = {split: files.need(name, f"the articles of {split}") for split, name in LIST_FILES.items()}
    lists = {split: list(_articles(files, key, len(classes))) for split, key in keys.items()}
    for (split, articles), expected in zip(lists.items(), release.rows, strict=True):
        if not articles:
            raise DataError(f"{files.describe(keys[split])}: holds no articles; fetch it again.")
        checks.check(files.describe(keys[split]), "articles", len(articles), expected)
    ids = [text_id for articles in lists.values() for text_id, _ in articles]
    _check_ids(ids, " and ".join(files.describe(key) for key in keys.values()))

    key = files.need(FEATURES_FILE, "the features")
    features = _features(files, key, {split: (keys[split], len(articles)) for split, articles in lists.items()})
    checks.check(files.describe(key), "features of an image", features[IMAGE_FEATURES].shape[1], release.image_features)
    checks.check(files.describe(key), "topics of a text", features[TEXT_FEATURES].shape[1], release.text_features)
    topics_ND = features[TEXT_FEATURES]
    strongest = np.argsort(-topics_ND, axis=1, kind="stable")[:, :_TOPICS_OF_TEXT]
    table = ReleaseTable(
        ids=ids,
        images=[],
        tag_names=[f"topic{number}" for number in range(topics_ND.shape[1])],
        tags=Lists.of(strongest.tolist()),
        class_names=classes,
        labels=Lists.of([[label] for articles in lists.values() for _, label in articles]),
        features=features,
    )
    rows, num_train = np.arange(len(ids)), len(lists["train"])
    return table, Split(rows[:num_train], rows[num_train:], None)


def _articles(files: ReleaseFiles, key: str, num_classes: int) -> Iterator[tuple[str, int]]:
    """The id of the text and the class, from 0, of each line: text id, image id, class number from 1."""
    for number, (line, _) in enumerate(decode_lines(files.lines(key)), 1):
        if not line.strip():
            continue
        where = f"{files.describe(key)}, line {number}"
        values = line.strip().split("\t")
        if len(values) != 3:
            raise DataError(
                f"{where}: {line[:80]!r} is not the id of a text, of an image and a class, separated by tabs; fetch "
                "the file again."
            )
        text_id, _, label = values
        if not label.isdecimal() or not 1 <= int(label) <= num_classes:
            raise DataError(
                f"{where}: {label[:20]!r} is not the number of a class (1 to {num_classes}); fetch the file again."
            )
        yield text_id, int(label) - 1


def _check_ids(ids: Sequence[str], where: str) -> None:
    seen: set[str] = set()
    for text_id in ids:
        if text_id in seen:
            raise DataError(f"{where}: the text {text_id[:80]!r} occurs twice; fetch the lists again.")
        seen.add(text_id)


def _features(files: ReleaseFiles, key: str, lists: Mapping[str, tuple[str, int]]) -> dict[str, np.ndarray]:
    """The features of all articles by column, float32 `(N, D)`; `lists` has the list and the rows of each split."""
    name = files.describe(key)
    found: dict[str, np.ndarray] = {}
    with _on_disk(files, key) as path:
        try:
            variables = {variable.name: variable for variable in list_variables(path)}
            for column, of_split in _VARIABLES.items():
                parts = [_values(variables, of_split[split]) for split in lists]
                for part_ND, (split, (list_key, rows)) in zip(parts, lists.items(), strict=True):
                    if len(part_ND) != rows:
                        raise DataError(
                            f"{files.describe(list_key)}: {rows:,} articles, and {of_split[split]} of {name} has "
                            f"{len(part_ND):,} rows; fetch both files again, from one source."
                        )
                if len({part_ND.shape[1] for part_ND in parts}) > 1:
                    raise DataError(
                        f"{path}: {' and '.join(of_split.values())} have different widths; fetch the file again."
                    )
                found[column] = np.concatenate(parts)
        except DataError as error:
            raise DataError(str(error).replace(str(path), name)) from error
    return found


def _values(variables: Mapping[str, Variable], name: str) -> np.ndarray:
    """The float32 values `(N, D)` of a variable of the file."""
    if name not in variables:
        present = ", ".join(map(str, variables.values())) or "none"
        path = next(iter(variables.values())).file if variables else FEATURES_FILE
        raise DataError(f"{path}: holds no variable {name}; present are: {present}. Fetch the file of the release.")
    variable = variables[name]
    check_variable(variable, "features")
    if len(variable.shape) != 2:
        raise DataError(f"{variable.file}: {variable} is no matrix; fetch the file again.")
    with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, and is refused
        values_ND = DenseRows(variable, "DN" if variable.writer == "hdf5-matlab" else "ND")[:].astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(values_ND).all(axis=1))
    if len(wrong):
        raise DataError(
            f"{variable.file}: {name} has NaN or infinite values in {len(wrong):,} rows, first in row {wrong[0]} "
            "(from 0); fetch the file again."
        )
    return values_ND


@contextmanager
def _on_disk(files: ReleaseFiles, key: str) -> Iterator[Path]:
    """A copy of a file of the release, which may be in an archive, for readers of paths; removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="cmfah-") as folder:
        path = Path(folder) / FEATURES_FILE
        try:
            with path.open("wb") as copy:
                for chunk in files.chunks(key, _CHUNK_BYTES):
                    copy.write(chunk)
        except OSError as error:
            raise DataError(
                f"{files.describe(key)}: no room for a copy in {folder} ({error.strerror}); name a larger folder in "
                "the environment variable TMPDIR."
            ) from error
        yield path
