"""Comparison of the files of folders with their records: what to encode, to rename and to remove.

Nothing here reads or writes; the content of a file is asked for only where its size and times leave doubt.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from posixpath import basename

from cmfah_hf.retrieval.folders.scan import FoundFile
from cmfah_hf.retrieval.storage.folder_records import FileRecord


@dataclass
class Plan:
    """The steps from an index to the present state of its folders, by ids.

    Attributes:
        encode: Images whose content has no code yet.
        reuse: Images whose content has a code, with the id that the index holds it under; their own id if only their
            metadata changed.
        records: The new records of images that are not encoded.
        gone: Images whose records are dropped, and their codes if they have any.
        without_code: Images whose code is dropped and whose record stays.
        added, changed, removed: Images by what becomes of their ids, if all can be read.
        renamed: Former and new ids.
        unchanged, left_out, kept, unreadable: As in `FolderChanges`.
    """

    encode: list[str] = field(default_factory=list)
    reuse: dict[str, str] = field(default_factory=dict)
    records: dict[str, FileRecord] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    without_code: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    unchanged: int = 0
    left_out: int = 0
    kept: int = 0
    unreadable: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether the index and its records are up to date."""
        return not (self.encode or self.reuse or self.records or self.gone or self.without_code)


def compare(
    recorded: Mapping[str, FileRecord],
    found: Mapping[str, FoundFile],
    content_of: Callable[[FoundFile], bytes],
    is_unknown: Callable[[str], bool] = lambda _: False,
    retry: bool = False,
) -> Plan:
    """The steps that bring an index up to date.

    Args:
        recorded: The records by id.
        found: The images that are there now, by id.
        content_of: The SHA-256 of an image's file; it may raise `OSError`.
        is_unknown: Whether an id that was not found may be there nevertheless, since its folder cannot be read.
        retry: Whether images that could not be read before are tried again.
    """
    comparison = _Comparison(recorded, found, content_of, retry)
    for item_id in found:
        comparison.look_at(item_id)
    comparison.find_gone(is_unknown)
    comparison.find_known_content()
    return comparison.plan


class _Comparison:
    def __init__(
        self,
        recorded: Mapping[str, FileRecord],
        found: Mapping[str, FoundFile],
        content_of: Callable[[FoundFile], bytes],
        retry: bool,
    ):
        self.recorded, self.found, self.content_of, self.retry = recorded, found, content_of, retry
        self.plan = Plan()
        self.fresh: list[str] = []  # new, or with another content
        self.digests: dict[str, bytes] = {}

    def _has_code(self, item_id: str) -> bool:
        record = self.recorded.get(item_id)
        return record is not None and record.has_code

    def look_at(self, item_id: str) -> None:
        """Sorts an image by whether its content is that of its record."""
        file, record = self.found[item_id], self.recorded.get(item_id)
        if record is None:
            self.fresh.append(item_id)
        elif record.left_out:
            self.plan.left_out += 1
        elif file.is_as(record):
            self._same(item_id, record)
        elif file.size != record.size:
            self.fresh.append(item_id)
        elif (content := self._content(item_id)) == record.sha256:
            self._same(item_id, record)
        elif content is not None:
            self.fresh.append(item_id)

    def find_gone(self, is_unknown: Callable[[str], bool]) -> None:
        """The images that are no longer there."""
        for item_id, record in self.recorded.items():
            if item_id in self.found:
                continue
            if is_unknown(item_id):
                self.plan.kept += record.has_code
            else:
                self.plan.gone.append(item_id)

    def find_known_content(self) -> None:
        """Renamed and copied images among the new ones: a record has their size and content."""
        displaced = {*self.plan.gone, *(item_id for item_id in self.fresh if item_id in self.recorded)}
        sizes = {record.size for record in self.recorded.values() if record.problem is None}
        sources = self._sources(displaced) if self.fresh else {}
        used: set[str] = set()
        for item_id in self.fresh:
            if self.found[item_id].size not in sizes:
                self._encode(item_id)
                continue
            content = self._content(item_id)
            if content is None:
                continue
            moved, others = sources.get(content, ([], []))
            free = [source for source in moved if source not in used]
            named = [source for source in free if basename(source) == basename(item_id)]
            copied = [source for source in [*others, *moved] if self._has_code(source)]
            source = next(iter([*named, *free, *copied]), None)
            if source is None:
                self._encode(item_id)
                continue
            self._known(item_id, source, source in free)
            used.add(source)
        renamed = {source for source, _ in self.plan.renamed}
        self.plan.removed += [name for name in self.plan.gone if self._has_code(name) and name not in renamed]

    def _same(self, item_id: str, record: FileRecord) -> None:
        """An image with the content of its record."""
        file, plan = self.found[item_id], self.plan
        if record.problem is not None and self.retry:
            self._encode(item_id)
            return
        now = file.record(record.sha256, record.problem)
        if now != record:
            plan.records[item_id] = now
        if record.problem is not None:
            plan.unreadable.append(f"{file.path}: {record.problem}")
        elif file.row != record.row:
            plan.changed.append(item_id)
            plan.reuse[item_id] = item_id
        else:
            plan.unchanged += 1

    def _content(self, item_id: str) -> bytes | None:
        """The digest of a file, or None if it cannot be read now."""
        if item_id not in self.digests:
            file = self.found[item_id]
            try:
                self.digests[item_id] = self.content_of(file)
            except OSError as error:
                self.plan.unreadable.append(f"{file.path}: cannot be read ({error.strerror or error}).")
                return None
        return self.digests[item_id]

    def _sources(self, displaced: set[str]) -> dict[bytes, tuple[list[str], list[str]]]:
        """By content: the ids whose file is gone or has another content now, and those of other images with a code."""
        sources: dict[bytes, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for item_id, record in self.recorded.items():
            if record.problem is None and item_id in displaced:
                sources[record.sha256][0].append(item_id)
            elif record.has_code:
                sources[record.sha256][1].append(item_id)
        return sources

    def _known(self, item_id: str, source: str, was_displaced: bool) -> None:
        """An image whose content a record has."""
        record, plan = self.recorded[source], self.plan
        now = self.found[item_id].record(record.sha256)
        plan.records[item_id] = now._replace(left_out=record.left_out)
        if record.left_out:
            plan.left_out += 1
            if self._has_code(item_id):
                plan.without_code.append(item_id)
            return
        plan.reuse[item_id] = source
        if self._has_code(item_id):
            plan.changed.append(item_id)
        elif was_displaced:
            plan.renamed.append((source, item_id))
        else:
            plan.added.append(item_id)

    def _encode(self, item_id: str) -> None:
        """An image whose content has no code."""
        self.plan.encode.append(item_id)
        (self.plan.changed if self._has_code(item_id) else self.plan.added).append(item_id)
