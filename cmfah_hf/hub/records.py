"""The record of pushed files, by which the next push detects edits on the Hub.

The record, `.cmfah-hf.json`, is pushed in the same commit as the files that it lists. Repositories that were pushed by
older versions, or never, have none.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmfah_hf.data.dataset_card import CARD_NAME
from cmfah_hf.documents import parse_json, read_bytes
from cmfah_hf.errors import HubError
from cmfah_hf.hub.cards import SEPARATE_NAME, merged, metadata_of

RECORD_NAME = ".cmfah-hf.json"
_VERSION = 1
# Git itself, which has a digest of its own, never stores larger files.
_LARGEST_IN_GIT = 16 * 2**20


@dataclass(frozen=True)
class Record:
    """Args:
    files: SHA-256 and Git digest of each file, by path.
    card: The metadata that were pushed in the card's header.
    """

    files: dict[str, dict[str, str]]
    card: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, content: bytes, where: str) -> "Record":
        """Parses a record; raises `HubError` if it is damaged."""
        found = parse_json(content, f"{where}: {RECORD_NAME}", HubError)
        if (
            not isinstance(found, dict)
            or not isinstance(found.get("files"), dict)
            or not isinstance(found.get("card"), dict)
            or not all(isinstance(digests, dict) for digests in found["files"].values())
        ):
            raise HubError(f"{where}: {RECORD_NAME} is no valid record of a push; restore it on the Hub, or delete it.")
        if found.get("format_version") != _VERSION:
            raise HubError(f"{where}: {RECORD_NAME} was written by a newer version of cmfah-hf; update the package.")
        return cls(found["files"], found["card"])

    def to_json(self) -> bytes:
        content = {"format_version": _VERSION, "files": self.files, "card": self.card}
        return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, default=str) + "\n").encode()

    def has(self, path: str, node: Any) -> bool:
        """True if a file on the Hub is unchanged since the push."""
        return path in self.files and is_same(self.files[path], node)


@dataclass(frozen=True)
class Plan:
    """Args:
    add: Content to push by path: the files, the merged card, the record.
    remove: Paths to delete from the repository.
    kept: Paths that were edited on the Hub and stay unchanged.
    """

    add: dict[str, Path | bytes]
    remove: list[str]
    kept: list[str]


def plan(
    repo_id: str,
    files: Mapping[str, Path],
    there: Mapping[str, Any],
    read: Callable[[str], bytes],
    replaces: Callable[[str], bool],
    may_stay: Collection[str] = (),
    required: Collection[str] = (),
    overwrite: bool = False,
) -> Plan:
    """The changes of a push, file by file; no edit made on the Hub is lost.

    `there` are the files of the repository, as `list_repo_tree` returns them, and `read` returns the content of one.
    The other arguments are those of `publish`.
    """
    record = Record.parse(read(RECORD_NAME), repo_id) if RECORD_NAME in there else None
    remote = _Remote(there, record, overwrite)
    ours = _text_of(files[CARD_NAME]) if CARD_NAME in files else ""
    edited = [path for path, file in files.items() if path != CARD_NAME and remote.is_edited(path, file)]
    if conflicts := [path for path in edited if path not in may_stay]:
        names = ", ".join(conflicts[:5]) + (f" and {len(conflicts) - 5} more" if len(conflicts) > 5 else "")
        raise HubError(
            f"{repo_id}: {names} changed on the Hub since the last push, and nothing was published; look at the "
            "changes, then push elsewhere, or with --overwrite (overwrite=True) to replace them."
        )
    add: dict[str, Path | bytes] = {path: file for path, file in files.items() if path not in (CARD_NAME, *edited)}
    kept = list(edited)
    if CARD_NAME in files:
        file = files[CARD_NAME]
        if remote.is_edited(CARD_NAME, file):
            theirs = read(CARD_NAME)
            card = merged(theirs, ours, record.card if record else None)
            _check_required(repo_id, theirs if card.text is None else card.text.encode(), ours, required)
            if card.text is not None:
                add[CARD_NAME] = file if card.text == ours else card.text.encode()
            if card.is_separate:
                kept.append(CARD_NAME)
                if not remote.is_edited(SEPARATE_NAME, file):
                    add[SEPARATE_NAME] = file
        else:
            add[CARD_NAME] = file
    remove, stay = remote.leftovers({*files, *add, RECORD_NAME}, replaces)
    add[RECORD_NAME] = _next_record(add, ours, record).to_json()
    return Plan(add, sorted(remove), sorted(kept + stay))


@dataclass(frozen=True)
class _Remote:
    """The files of a repository, with the record of the last push."""

    files: Mapping[str, Any]
    record: Record | None
    overwrite: bool

    def is_edited(self, path: str, file: Path) -> bool:
        """True for a file that somebody edited, other than to what is pushed. Without a record, only cards are."""
        node = self.files.get(path)
        if node is None or self.overwrite or is_same(digests_of(file), node):
            return False
        return not self.record.has(path, node) if self.record is not None else path == CARD_NAME

    def leftovers(self, pushed: Collection[str], replaces: Callable[[str], bool]) -> tuple[list[str], list[str]]:
        """The files of earlier pushes that this one lacks: those to remove, and those that were edited and stay."""
        old = {path: node for path, node in self.files.items() if path not in pushed}
        if self.record is None:
            return [path for path in old if replaces(path)], []
        own = {path: node for path, node in old.items() if path in self.record.files}
        unchanged = [path for path, node in own.items() if self.overwrite or self.record.has(path, node)]
        return unchanged, [path for path in own if path not in unchanged]


def _next_record(add: Mapping[str, Path | bytes], ours: str, former: Record | None) -> Record:
    pushed = {path: digests_of(file) for path, file in add.items()}
    # The next push merges a card with a person's text again; its metadata record which values are a push's.
    if isinstance(add.get(CARD_NAME), bytes):
        del pushed[CARD_NAME]
    card = metadata_of(ours)
    if CARD_NAME not in add:
        card = former.card if former else {}
    return Record(pushed, json.loads(json.dumps(card, default=str)))


def _check_required(repo_id: str, card: bytes, ours: str, required: Collection[str]) -> None:
    has = metadata_of(card.decode("utf-8", "replace"), f"{repo_id}: {CARD_NAME} there") if required else {}
    wanted = metadata_of(ours)
    for key in required:
        if key in wanted and has.get(key) != wanted[key]:
            raise HubError(
                f"{repo_id}: {key!r} in the header of {CARD_NAME} on the Hub was edited and does not fit the push, "
                "and nothing was published; correct it there, or push with --overwrite (overwrite=True)."
            )


def _text_of(card: Path) -> str:
    try:
        return read_bytes(card, HubError).decode("utf-8")
    except UnicodeDecodeError as error:
        raise HubError(f"{card} is not UTF-8; save it as UTF-8.") from error


def digests_of(content: Path | bytes) -> dict[str, str]:
    """The Hub's digests of a content: `sha256`, and `git` for small files."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with_git = size <= _LARGEST_IN_GIT
    if isinstance(content, bytes):
        sha256.update(content)
        git.update(content)
    else:
        with content.open("rb") as file:
            while block := file.read(1 << 20):
                sha256.update(block)
                if with_git:
                    git.update(block)
    return {"sha256": sha256.hexdigest(), **({"git": git.hexdigest()} if with_git else {})}


def is_same(digests: Mapping[str, str], node: Any) -> bool:
    """True if a file on the Hub, as `list_repo_tree` returns it, has these digests."""
    if node.lfs is not None:
        return digests.get("sha256") == node.lfs.sha256
    return digests.get("git") == node.blob_id
