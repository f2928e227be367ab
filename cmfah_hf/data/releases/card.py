"""The card of a prepared data set: what is in it, whose it is, and how it was made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmfah_hf.data.releases.protocols import SPLITS

# Pictures that were left out and are listed by name; beyond, they are counted.
_LISTED = 20


@dataclass(frozen=True)
class Provenance:
    """Where a data set comes from, and on what terms.

    Args:
        name: Of the data set.
        sources: Addresses of the official pages.
        licence_name: A short name for the Hub.
        licence_link: Where the terms stand.
        licence: The terms in a few sentences.
        citation: BibTeX.
    """

    name: str
    sources: tuple[str, ...]
    licence_name: str
    licence_link: str
    licence: str
    citation: str


def make_card(
    provenance: Provenance,
    settings: Mapping[str, Any],
    facts: Sequence[str],
    notes: Sequence[str],
    rows: Mapping[str, int],
    ids_sha256: Mapping[str, str],
    data_files: Mapping[str, Sequence[str]],
    class_names: Sequence[str],
    pictures: bool,
    left_out: Sequence[tuple[str, str]],
    command: str,
    version: str,
) -> str:
    """The text of a card.

    Args:
        provenance: Of the data set.
        settings: How it was prepared; `split`, `seed`, `queries` and `train` among them.
        facts: What is in it, a sentence a line.
        notes: What was put right or differs, likewise.
        rows: Of each split.
        ids_sha256: Of each split's ids.
        data_files: Patterns of files of each split.
        class_names: In the order of their numbers.
        pictures: Whether there are any.
        left_out: Ids and reasons of the rows that are missing for their pictures' sake.
        command: That made it.
        version: Of this package.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    data = DatasetCardData(
        license="other",
        license_name=provenance.licence_name,
        license_link=provenance.licence_link,
        language=["en"],
        pretty_name=provenance.name,
        size_categories=[_size_category(rows["query"] + rows["database"])],
        task_categories=["feature-extraction"],
        tags=["cross-modal-retrieval", "hashing", "image", "text"],
        configs=[
            {
                "config_name": "default",
                "data_files": [
                    {"split": name, "path": paths[0] if len(paths) == 1 else list(paths)}
                    for name, paths in data_files.items()
                ],
            }
        ],
    )
    draw = f", drawn with seed {settings['seed']}" if settings["split"] == "paper" else ""
    table = "\n".join(f"| `{name}` | {count:,} | `{ids_sha256[name]}` |" for name, count in rows.items())
    classes = ", ".join(f"{number} {name}" for number, name in enumerate(class_names))
    columns = ["| `id` | string | unique |"]
    if pictures:
        columns.append("| `image` | picture | the bytes of the released file |")
    columns += [
        "| `text` | string | the tags, joined by blanks |",
        "| `tags` | list of strings | |",
        "| `labels` | list of class labels | |",
    ]
    named = [f"- {row_id}: {reason}" for row_id, reason in left_out[:_LISTED]]
    if len(left_out) > _LISTED:
        named.append(f"- and {len(left_out) - _LISTED:,} more")
    body = "\n\n".join(
        [
            f"# {provenance.name}",
            f"{provenance.name} as pairs of picture and tags, for retrieval between the two. Prepared from the release "
            f"at {' and '.join(f'<{source}>' for source in provenance.sources)}.",
            _bullets(facts),
            "## Columns",
            "| column | type | |\n|---|---|---|\n" + "\n".join(columns),
            f"Classes: {classes}.",
            "## Splits",
            f"Protocol `{settings['split']}`: {SPLITS[settings['split']]}{draw}. {settings['queries']:,} queries and "
            f"{settings['train']:,} training pairs were asked for. `database` is what queries are searched in: the "
            "training pairs and the rest.",
            "| split | rows | SHA-256 of the ids, a line each |\n|---|---|---|\n" + table,
            "## What was put right, and what to know",
            _bullets(notes) if notes else "Nothing.",
            *(["Left out:", "\n".join(named)] if named else []),
            "## How it was made",
            f"With cmfah-hf {version}:",
            f"```bash\n{command}\n```",
            "## Terms",
            provenance.licence,
            "## Citation",
            f"```bibtex\n{provenance.citation}\n```",
        ]
    )
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _size_category(rows: int) -> str:
    bounds = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]
    return next((name for bound, name in bounds if rows < bound), "1M<n<10M")
