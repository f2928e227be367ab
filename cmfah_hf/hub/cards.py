"""Cards (`README.md`) that pushes and people write in turn.

The part of a card that a push writes is between two comments, the first of which holds its digest. What is outside, and
a part that was changed since, is a person's and stays. Of the metadata in the card's head a push adds what is missing,
and changes what it wrote itself.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from cmfah_hf.data.dataset_card import CARD_NAME
from cmfah_hf.documents import parse_yaml
from cmfah_hf.errors import HubError

# Where a push writes its card if the one on the Hub is a person's.
BESIDE_NAME = "README.cmfah-hf.md"

_END = "<!-- cmfah-hf: end -->"
_SECTION = re.compile(rf"<!-- cmfah-hf: begin ([0-9a-f]{{16}})\b[^>]*-->(.*?){_END}", re.DOTALL)
_HEAD = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
# What the Hub itself puts into a new Space.
_TEMPLATE = re.compile(r"\s*Check out the configuration reference at https://\S+/docs/hub/spaces-config-reference\s*")


@dataclass(frozen=True)
class Merged:
    """Args:
    text: The card to be. None: the one that is there stays as it is.
    beside: Whether what was to be pushed is not in it, and belongs into a file of its own.
    """

    text: str | None
    beside: bool


def marked(body: str) -> str:
    """The text of a card between the two comments."""
    body = body.strip()
    return (
        f"<!-- cmfah-hf: begin {_digest(body)}; the next push replaces what is between here and the end, unless it was "
        f"changed -->\n\n{body}\n\n{_END}\n"
    )


def card_of(head: str, body: str) -> str:
    """A card that a push writes.

    Args:
        head: Its metadata, as YAML.
        body: Its text.
    """
    return f"---\n{head.strip()}\n---\n\n{marked(body)}"


def metadata_of(card: str, where: str = CARD_NAME) -> dict[str, Any]:
    """The metadata in the head of a card; empty without one.

    Raises:
        HubError: If they are not YAML with plain values.
    """
    match = _HEAD.match(card)
    found = parse_yaml(match[1], where, HubError) if match else None
    if found is not None and not isinstance(found, dict):
        raise HubError(f"{where}: its head between the lines --- holds no keys with values; correct it.")
    return found or {}


def merged(theirs: bytes, ours: str, former: Mapping[str, Any] | None) -> Merged:
    """Merges our part into a card on the Hub that a person has changed or written.

    Args:
        theirs: The card on the Hub.
        ours: The card that is to be pushed.
        former: The metadata that the last push wrote, if that is known.
    """
    try:
        text = theirs.decode("utf-8")
        has = metadata_of(text)
        wanted = metadata_of(ours)
    except (UnicodeDecodeError, HubError):  # not a card that could be added to
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
        start, end = _SECTION.search(body).span()
        body = body[:start] + our_section[0] + body[end:]
    else:
        ours_is_in = False
    head = _merged_head(match[1] if match else "", has, wanted, former or {})
    if head is None:
        head = match[1]
    return Merged(f"---\n{head}---\n{body}" if head.strip() else body, not ours_is_in)


def _digest(body: str) -> str:
    return hashlib.sha256("\n".join(body.strip().splitlines()).encode()).hexdigest()[:16]


def _merged_head(text: str, has: Mapping[str, Any], wanted: Mapping[str, Any], former: Mapping[str, Any]) -> str | None:
    """A head in a person's own words, with what is missing, and with what the last push wrote as it is now.

    Returns:
        None, if that cannot be written into it.
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
