"""Dataset card of a prepared data set: content, license, and how it was made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmfah_hf.data.dataset_card import size_category
from cmfah_hf.data.releases.protocols import SPLITS

# Maximum number of removed images that are listed by name.
_LISTED = 20


@dataclass(frozen=True)
class Provenance:
    """Source, license and content of a data set; `license` states the terms, `citation` is BibTeX."""

    name: str
    sources: tuple[str, ...]
    license_name: str
    license_link: str
    license: str
    citation: str
    pairs: str = "image and tags"
    tags: str = "the tags, joined by spaces"  # of the column `text`
    features: tuple[tuple[str, str], ...] = ()  # columns of features, with their meaning
    protocol: str | None = None  # the split of the release itself; None: one of `SPLITS`, with its sizes


def make_card(
    provenance: Provenance,
    settings: Mapping[str, Any],
    facts: Sequence[str],
    notes: Sequence[str],
    rows: Mapping[str, int],
    ids_sha256: Mapping[str, str],
    data_files: Mapping[str, Sequence[str]],
    class_names: Sequence[str],
    images: bool,
    left_out: Sequence[tuple[str, str]],
    command: str,
    version: str,
) -> str:
    """The text of a card.

    `facts` and `notes` are lists of sentences, `data_files` patterns by split, `class_names` in the order of their
    numbers, and `left_out` ids and reasons of the rows that were removed because of their images.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    data = DatasetCardData(
        license="other",
        license_name=provenance.license_name,
        license_link=provenance.license_link,
        language=["en"],
        pretty_name=provenance.name,
        size_categories=[size_category(rows["query"] + rows.get("database", rows["train"]))],
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
    table = "\n".join(f"| `{name}` | {count:,} | `{ids_sha256[name]}` |" for name, count in rows.items())
    classes = ", ".join(f"{number} {name}" for number, name in enumerate(class_names))
    columns = ["| `id` | string | unique |"]
    if images:
        columns.append("| `image` | image | the bytes of the released file |")
    columns += [
        f"| `text` | string | {provenance.tags} |",
        "| `tags` | list of strings | |",
        "| `labels` | list of class labels | |",
        *(f"| `{name}` | list of floats | {meaning} |" for name, meaning in provenance.features),
    ]
    named = [f"- {row_id}: {reason}" for row_id, reason in left_out[:_LISTED]]
    if len(left_out) > _LISTED:
        named.append(f"- and {len(left_out) - _LISTED:,} more")
    body = "\n\n".join(
        [
            f"# {provenance.name}",
            f"{provenance.name} as pairs of {provenance.pairs}, for cross-modal retrieval. Prepared from the release "
            f"at {' and '.join(f'<{source}>' for source in provenance.sources)}.",
            _bullets(facts),
            "## Columns",
            "| column | type | |\n|---|---|---|\n" + "\n".join(columns),
            f"Classes: {classes}.",
            "## Splits",
            provenance.protocol or _protocol(settings),
            "| split | rows | SHA-256 of the ids, one per line |\n|---|---|---|\n" + table,
            "## Corrections and notes",
            _bullets(notes) if notes else "Nothing.",
            *(["Left out:", "\n".join(named)] if named else []),
            "## How it was made",
            f"With cmfah-hf {version}:",
            f"```bash\n{command}\n```",
            "## License",
            provenance.license,
            "## Citation",
            f"```bibtex\n{provenance.citation}\n```",
        ]
    )
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def _protocol(settings: Mapping[str, Any]) -> str:
    draw = f", drawn with seed {settings['seed']}" if settings["split"] == "paper" else ""
    return (
        f"Protocol `{settings['split']}`: {SPLITS[settings['split']]}{draw}. {settings['queries']:,} queries and "
        f"{settings['train']:,} training pairs were requested. `database` is what queries are searched in: the "
        "training pairs and the rest."
    )


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
