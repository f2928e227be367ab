"""The record of what pushes left in a repository: the next push sees what somebody has changed since.

The record, `.cmfah-hf.json`, is pushed in the same commit as the files that it names. A repository without one was
pushed to before there were records, or not at all.
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
from cmfah_hf.hub.cards import BESIDE_NAME, merged, metadata_of

RECORD_NAME = ".cmfah-hf.json"
_VERSION = 1
# Larger files are never kept by Git alone, which knows them by a digest of its own.
_LARGEST_IN_GIT = 16 * 2**20


@dataclass(frozen=True)
class Record:
    """Args:
    files: The SHA-256 and Git's digest of each file, by its path.
    card: The metadata that were pushed in the card's head.
    """

    files: dict[str, dict[str, str]]
    card: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, content: bytes, where: str) -> "Record":
        """Raises a `HubError` if it is damaged."""
        found = parse_json(content, f"{where}: {RECORD_NAME}", HubError)
        if (
            not isinstance(found, dict)
            or not isinstance(found.get("files"), dict)
            or not isinstance(found.get("card"), dict)
            or not all(isinstance(digests, dict) for digests in found["files"].values())
        ):
            raise HubError(f"{where}: {RECORD_NAME} is not the record of a push; restore it on the Hub, or delete it.")
        if found.get("format_version") != _VERSION:
            raise HubError(f"{where}: {RECORD_NAME} is that of a newer version of cmfah-hf; update the package.")
        return cls(found["files"], found["card"])

    def to_json(self) -> bytes:
        content = {"format_version": _VERSION, "files": self.files, "card": self.card}
        return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, default=str) + "\n").encode()

    def has(self, path: str, node: Any) -> bool:
        """Whether a file on the Hub is as the push left it."""
        return path in self.files and is_same(self.files[path], node)


@dataclass(frozen=True)
class Plan:
    """Args:
    add: What is pushed, by its path: the files, the merged card, the record.
    remove: What goes from the repository.
    kept: What somebody has changed on the Hub, and stays.
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
    """The changes of a push, file by file, planned so that nothing is lost that a person put there.

    Args:
        repo_id: For messages.
        files: What is to be pushed.
        there: The files of the repository, as `list_repo_tree` gives them.
        read: Gives the content of one.
        replaces: Without a record: which files go where they are not among `files`.
        may_stay: Files of which a person's version does with all others as they are pushed.
        required: Keys of a card's metadata without whose values the repository cannot be read.
        overwrite: Replace what somebody has changed.

    Raises:
        HubError: If somebody has changed a file that does not fit what is pushed, or the record is damaged.
    """
    record = Record.parse(read(RECORD_NAME), repo_id) if RECORD_NAME in there else None
    ours = _text_of(files[CARD_NAME]) if CARD_NAME in files else ""
    add: dict[str, Path | bytes] = {}
    kept, in_the_way = [], []

    def is_theirs(path: str, file: Path) -> bool:
        node = there.get(path)
        if node is None or overwrite or is_same(digests_of(file), node):
            return False
        return not record.has(path, node) if record is not None else path == CARD_NAME

    for path, file in files.items():
        if not is_theirs(path, file):
            add[path] = file
        elif path == CARD_NAME:
            theirs = read(path)
            card = merged(theirs, ours, record.card if record else None)
            _check_required(repo_id, theirs if card.text is None else card.text.encode(), ours, required)
            if card.text is not None:
                add[path] = file if card.text == ours else card.text.encode()
            if card.beside:
                kept.append(path)
                if not is_theirs(BESIDE_NAME, file):
                    add[BESIDE_NAME] = file
        elif path in may_stay:
            kept.append(path)
        else:
            in_the_way.append(path)
    if in_the_way:
        names = ", ".join(in_the_way[:5]) + (f" and {len(in_the_way) - 5} more" if len(in_the_way) > 5 else "")
        raise HubError(
            f"{repo_id}: somebody has changed or added {names} there since the last push, and nothing was published; "
            "look at it, then push elsewhere, or with --overwrite (overwrite=True) to replace it."
        )
    remove = []
    for path, node in there.items():
        if path in files or path in add or path == RECORD_NAME:
            continue
        if record is None and replaces(path):
            remove.append(path)
        elif record is not None and path in record.files:
            (remove if overwrite or record.has(path, node) else kept).append(path)
    pushed = {path: digests_of(file) for path, file in add.items()}
    # Of a card with a person's words, the next push asks again; its metadata tell which ones are a push's.
    if isinstance(add.get(CARD_NAME), bytes):
        del pushed[CARD_NAME]
    card = metadata_of(ours)
    if CARD_NAME not in add:  # nothing of it was written
        card = record.card if record else {}
    add[RECORD_NAME] = Record(pushed, json.loads(json.dumps(card, default=str))).to_json()
    return Plan(add, sorted(remove), sorted(kept))


def _check_required(repo_id: str, card: bytes, ours: str, required: Collection[str]) -> None:
    has = metadata_of(card.decode("utf-8", "replace"), f"{repo_id}: {CARD_NAME} there") if required else {}
    wanted = metadata_of(ours)
    for key in required:
        if key in wanted and has.get(key) != wanted[key]:
            raise HubError(
                f"{repo_id}: {key!r} in the head of {CARD_NAME} there, which somebody changed, does not fit what is "
                "pushed, and nothing was published; correct it there, or push with --overwrite (overwrite=True)."
            )


def _text_of(card: Path) -> str:
    try:
        return read_bytes(card, HubError).decode("utf-8")
    except UnicodeDecodeError as error:
        raise HubError(f"{card} is not UTF-8; save it as that.") from error


def digests_of(content: Path | bytes) -> dict[str, str]:
    """The digests by which the Hub knows a content, as `Record` keeps them."""
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
    """Whether a file on the Hub, as `list_repo_tree` gives it, has the content of these digests."""
    if node.lfs is not None:
        return digests.get("sha256") == node.lfs.sha256
    return digests.get("git") == node.blob_id
