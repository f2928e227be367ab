"""Merging of cards (`README.md`) that both pushes and people edit.

A push writes its section of a card between two comments; the first holds the section's digest. Everything outside, and
a section that was edited since, belongs to a person and stays. In the header, a push adds missing metadata and updates
the values that it wrote itself.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cmfah_hf.data.dataset_card import CARD_NAME
from cmfah_hf.documents import parse_yaml, read_bytes
from cmfah_hf.errors import HubError

logger = logging.getLogger(__name__)

# The file for a push's card if the card on the Hub is a person's.
SEPARATE_NAME = "README.cmfah-hf.md"

_END = "<!-- cmfah-hf: end -->"
_SECTION = re.compile(rf"<!-- cmfah-hf: begin ([0-9a-f]{{16}})\b[^>]*-->(.*?){_END}", re.DOTALL)
_HEAD = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
# The text that the Hub puts into the card of a new Space.
_TEMPLATE = re.compile(r"\s*Check out the configuration reference at https://\S+/docs/hub/spaces-config-reference\s*")


@dataclass(frozen=True)
class Merged:
    """Args:
    text: The merged card. None: the card on the Hub stays unchanged.
    is_separate: True if the pushed section is not in it and goes into a separate file.
    """

    text: str | None
    is_separate: bool


def marked(body: str) -> str:
    """A section of a card between its two comments."""
    body = body.strip()
    return (
        f"<!-- cmfah-hf: begin {_digest(body)}; the next push replaces this section up to its end, unless it was "
        f"edited -->\n\n{body}\n\n{_END}\n"
    )


def card_of(head: str, body: str) -> str:
    """The card written by a push: metadata as YAML, and a body."""
    return f"---\n{head.strip()}\n---\n\n{marked(body)}"


def metadata_of(card: str, where: str = CARD_NAME) -> dict[str, Any]:
    """The metadata in the header of a card; empty without a header, `HubError` if they are not plain YAML."""
    match = _HEAD.match(card)
    found = parse_yaml(match[1], where, HubError) if match else None
    if found is not None and not isinstance(found, dict):
        raise HubError(f"{where}: the header between the lines --- is not a YAML mapping; correct it.")
    return found or {}


def license_in(card: Path) -> str | None:
    """The license that the card of a model or data set names, with its link if it has one.

    None if it names none, or if its header is no YAML, with a warning.
    """
    try:
        head = metadata_of(read_bytes(card, HubError).decode("utf-8", "replace"), str(card))
    except HubError as error:
        logger.warning("%s Its license is unknown.", error)
        return None
    named, link = head.get("license_name") or head.get("license"), head.get("license_link")
    if named is None:
        return None
    names = ", ".join(map(str, named)) if isinstance(named, list) else str(named)
    return f"{names} ({link})" if link else names


def merged(theirs: bytes, ours: str, former: Mapping[str, Any] | None) -> Merged:
    """Merges the pushed card into an edited one on the Hub; `former` is the metadata of the last push, if known."""
    try:
        text = theirs.decode("utf-8")
        has = metadata_of(text)
        wanted = metadata_of(ours)
    except (UnicodeDecodeError, HubError):  # not mergeable
        return Merged(None, True)
    match, our_head = _HEAD.match(text), _HEAD.match(ours)
    body = text[match.end() :] if match else text
    our_body = ours[our_head.end() :] if our_head else ours
    if _TEMPLATE.fullmatch(body):
        return Merged(ours, False)
    sections, our_section = _SECTION.findall(body), _SECTION.search(our_body)
    ours_is_in = True
    if not body.strip():
        body = f"\n{our_body.lstrip()}"
    elif our_section is not None and len(sections) == 1 and sections[0][0] == _digest(sections[0][1]):
        body = _SECTION.sub(lambda _: our_section[0], body)
    else:
        ours_is_in = False
    head = _merged_head(match[1] if match else "", has, wanted, former or {})
    if head is None:
        head = match[1] if match else ""
    return Merged(f"---\n{head}---\n{body}" if head.strip() else body, not ours_is_in)


def _digest(body: str) -> str:
    return hashlib.sha256("\n".join(body.strip().splitlines()).encode()).hexdigest()[:16]


def _merged_head(text: str, has: Mapping[str, Any], wanted: Mapping[str, Any], former: Mapping[str, Any]) -> str | None:
    """A person's header with missing keys added and the last push's own values updated, the rest byte for byte.

    None if the header cannot be updated textually.
    """
    own = {name for name in former if name in has and _plain(has[name]) == _plain(former[name])}
    expected = {name: value for name, value in has.items() if name not in own} | {
        name: value for name, value in wanted.items() if name not in has or name in own
    }
    text = text if not text or text.endswith("\n") else f"{text}\n"
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for key, value in reversed(node.value if node is not None else []):
        name = key.value
        if name in own and (name not in wanted or _plain(has[name]) != _plain(wanted[name])):
            start, end = key.start_mark.index, value.end_mark.index
            new = _dumped(name, wanted[name]) if name in wanted else ""
            rest = text[end:] if text[:end].endswith("\n") else text[end:].partition("\n")[2]
            text = text[:start] + new + rest
    text += "".join(_dumped(name, value) for name, value in wanted.items() if name not in has)
    try:
        return text if _plain(metadata_of(f"---\n{text}---\n")) == _plain(expected) else None
    except HubError:
        return None


def _dumped(name: str, value: Any) -> str:
    return yaml.safe_dump({name: value}, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    """A value as JSON holds it, dates as text."""
    return json.loads(json.dumps(value, default=str))
