"""One shard of a sharded index: the ids it holds, and its process.

Shapes: `N` items, `Q` queries, `K` bits.
"""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow

from cmfah_hf.atomic import sha256_of
from cmfah_hf.errors import CMFAHError, HashIndexError
from cmfah_hf.retrieval.cluster.manifest import (
    Manifest,
    Revision,
    ShardFile,
    read_manifest,
    schema_of_text,
    shard_file_name,
)
from cmfah_hf.retrieval.index import HashIndex


class Reply(NamedTuple):
    """A shard's reply: its revision, and an answer or an error. The answer is None at any other revision than asked."""

    revision: Revision
    answer: Any = None
    error: CMFAHError | None = None


def shard_of(ids: np.ndarray, shards: int) -> np.ndarray:
    """The shard of each id, `(N,)` from 0 to `shards - 1`: the same on every machine and in every release.

    Integers are hashed by the finalizer of SplitMix64, so that ids that are all multiples of something fill every
    shard; strings by BLAKE2b of their UTF-8 bytes.
    """
    if ids.dtype == object:
        digests = (hashlib.blake2b(item_id.encode("utf-8", "surrogatepass"), digest_size=8).digest() for item_id in ids)
        mixed = np.frombuffer(b"".join(digests), "<u8")
    else:
        mixed = ids.astype(np.int64).view(np.uint64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return (mixed % np.uint64(shards)).astype(np.int64)


def rows_of_shards(ids: np.ndarray, shards: int) -> dict[int, np.ndarray]:
    """The rows of `ids` that belong to each shard; shards without any are left out."""
    owners = shard_of(ids, shards)
    return {int(shard): np.flatnonzero(owners == shard) for shard in np.unique(owners)}


class Shard:
    """The process of one shard: a `HashIndex` and its revision.

    Every call names the revision that it is meant for. A restarted process is at the revision of the last save; to a
    call for a later one it replies with its own revision alone. `birth` is the stamp of the index before its first
    change.
    """

    def __init__(self, folder: str, shard: int, shards: int, bits: int, birth: str, num_threads: int):
        # Nothing is read here: Ray would take a process whose constructor fails for dead, and not say why.
        self._folder, self._shard, self._shards, self._bits = Path(folder), shard, shards, bits
        self._birth, self._num_threads = birth, num_threads
        self._index: HashIndex | None = None
        self._revision = Revision(-1, "")

    def alive(self) -> bool:
        """Returns at once, even during another call, as long as the process lives."""
        return True

    def count(self, at: Revision) -> Reply:
        """The number of items."""
        return self._reply(at, len)

    def held(self, at: Revision, ids: np.ndarray) -> Reply:
        """Whether the shard holds each of the ids: `(N,)` bool."""
        return self._reply(at, lambda index: index.holds(ids))

    def contents(self, at: Revision, what: Literal["ids", "codes", "metadata"], schema: pyarrow.Schema | None) -> Reply:
        """The ids of all items, and their codes or metadata in the same order, with the whole index's schema."""

        def read(index: HashIndex) -> tuple[np.ndarray, Any]:
            _widen(index, schema)
            return index.ids, None if what == "ids" else getattr(index, what)

        return self._reply(at, read)

    def change(self, at: Revision, after: Revision, verb: str, arguments: dict[str, Any]) -> Reply:
        """Calls `add`, `remove`, `update` or `upsert`, which leads from one revision to the next.

        A repeated call, sent because the first reply was lost, changes nothing.
        """

        def apply(index: HashIndex) -> int:
            getattr(index, verb)(**arguments)
            self._revision = after
            return len(index)

        return self._reply(after, len) if self._revision == after else self._reply(at, apply)

    def search(self, question: bytes, queries: np.ndarray) -> bytes:
        """A pickled `Reply`: the answers of `HashIndex.search` or `search_radius`, with the whole index's columns.

        `question` is made by `calls.as_question`. One bytes object each way: Ray serializes each argument and each part
        of a reply on its own, which for few queries takes longer than the search.
        """
        import faiss

        at, method, options, schema = pickle.loads(question)

        def find(index: HashIndex) -> Any:
            faiss.omp_set_num_threads(self._num_threads)  # a setting of the thread, and the constructor's was another
            _widen(index, schema)
            if "k" in options:  # the caller, who knows all shards, warns of one that is too large
                options["k"] = min(options["k"], len(index))
            return getattr(index, method)(queries, **options)

        return pickle.dumps(self._reply(at, find), protocol=5)

    def optimize(self, at: Revision) -> Reply:
        """As `HashIndex.optimize`, of this shard."""
        return self._reply(at, HashIndex.optimize)

    def save(self, at: Revision) -> Reply:
        """Writes the file of this revision, next to earlier ones; the answer is its entry in the manifest."""

        def write(index: HashIndex) -> ShardFile:
            path = self._folder / shard_file_name(self._shard, self._revision)
            index.save(path)
            return ShardFile(path.name, len(index), self._revision, sha256_of(path))

        return self._reply(at, write)

    def _reply(self, at: Revision, answer: Callable[[HashIndex], Any]) -> Reply:
        """The reply with `answer(index)`, if the shard is at this revision.

        Errors become replies: Ray prints everything that an actor raises, with all frames.
        """
        try:
            index = self._index_at(at)
            given = None if index is None else answer(index)
            return Reply(self._revision, given)
        except CMFAHError as error:
            return Reply(self._revision, error=error)
        except OSError as error:
            reason = error.strerror or error
            return Reply(self._revision, error=HashIndexError(f"{self._folder} cannot be read or written ({reason})."))

    def _index_at(self, revision: Revision) -> HashIndex | None:
        if self._revision.changes < revision.changes:  # never back: a call may be late
            manifest = self._saved()
            saved = None if manifest is None else manifest.shards[self._shard]
            # Also if another process has saved while this one started with the save before.
            if self._index is None or (saved is not None and saved.revision == revision):
                self._open(manifest)
        return self._index if self._revision == revision else None

    def _saved(self) -> Manifest | None:
        manifest = read_manifest(self._folder)
        if manifest is None:
            return None
        if len(manifest.shards) != self._shards or manifest.bits != self._bits:
            raise HashIndexError(
                f"{self._folder} holds {len(manifest.shards)} shards of {manifest.bits} bits by now, where "
                f"{self._shards} of {self._bits} were expected; another program has saved there. Load the folder anew."
            )
        return manifest

    def _open(self, manifest: Manifest | None) -> None:
        if manifest is None:
            self._index, self._revision = HashIndex(self._bits), Revision(0, self._birth)
            return
        saved = manifest.shards[self._shard]
        path = self._folder / saved.file
        name = f"{path}, the file of shard {self._shard},"
        if not path.is_file():
            raise HashIndexError(f"{name} is missing; put it back, or make sure that every node can reach the folder.")
        if sha256_of(path) != saved.sha256:
            raise HashIndexError(f"{name} is damaged, or not the one that was saved; put the saved one back.")
        index = HashIndex.load(path, bits=self._bits)
        if len(index) != saved.items:
            raise HashIndexError(f"{name} holds {len(index)} items, but {saved.items} in the manifest; save anew.")
        if not _fits(index, manifest):
            raise HashIndexError(f"{name} has ids or columns that are not in the manifest; save the index anew.")
        self._index, self._revision = index, saved.revision


def _widen(index: HashIndex, schema: pyarrow.Schema | None) -> None:
    """Adds the columns that only items of other shards have. They are null here, so the revision stays.

    An update of one item is enough: `HashIndex` fills the others with nulls.
    """
    if schema is None:
        return
    own = None if index.metadata is None else index.metadata.schema
    missing = [field for field in schema if own is None or field not in own]
    if missing:
        nulls = pyarrow.table({field.name: pyarrow.nulls(1, field.type) for field in missing})
        index.update(index.ids[:1], metadata=nulls)


def _fits(index: HashIndex, manifest: Manifest) -> bool:
    """Whether a shard's ids and columns are of the types in the manifest. A column of nulls has no type yet."""
    if len(index) and (index.id_type != manifest.id_type or index.next_id > manifest.next_id):
        return False
    if index.metadata is None:
        return True
    schema, null = schema_of_text(manifest.schema), pyarrow.null()
    types = {} if schema is None else dict(zip(schema.names, schema.types, strict=True))
    return all(column.type in (null, types.get(column.name)) for column in index.metadata.schema)
