"""One shard of a sharded index: which ids it holds, and what its process does with them."""

import functools
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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
    """What a shard answers: its revision, and the answer, `None` where it is not at the revision asked; or an error."""

    revision: Revision
    answer: Any = None
    error: CMFAHError | None = None


def _replying(method: Callable[..., Reply]) -> Callable[..., Reply]:
    """Errors as replies: what is raised in an actor, Ray also prints, with all the frames that led there."""

    @functools.wraps(method)
    def call(self: "Shard", *arguments: Any) -> Reply:
        try:
            return method(self, *arguments)
        except CMFAHError as error:
            return Reply(self._revision, error=error)
        except OSError as error:
            folder, reason = self._folder, error.strerror or error
            return Reply(self._revision, error=HashIndexError(f"{folder} cannot be read or written ({reason})."))

    return call


def shard_of(ids: np.ndarray, shards: int) -> np.ndarray:
    """The shard of each id, `(N,)` from 0 to `shards - 1`: the same on every machine and in every release.

    Integers go by their value through the finalizer of SplitMix64, because ids that all are multiples of something
    would fill some of the shards alone; strings go by BLAKE2b of their UTF-8 bytes.

    Args:
        ids: `(N,)`, int64 or an object array of str.
        shards: How many there are.
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
    """The rows of `ids` that belong to each shard, of those shards that have any."""
    owners = shard_of(ids, shards)
    return {int(shard): np.flatnonzero(owners == shard) for shard in np.unique(owners)}


class Shard:
    """The process of one shard: a `HashIndex`, and the revision it is at.

    Every call says which revision it is meant for. A process that was started anew is at the revision of the last save;
    where that is an older one, it answers nothing but that.

    Args:
        folder: Where the index is saved.
        shard: This one's number.
        shards: How many there are.
        bits: `K`, the bits of a code.
        birth: The stamp of the index before its first change.
        num_threads: Threads that FAISS may use.
    """

    def __init__(self, folder: str, shard: int, shards: int, bits: int, birth: str, num_threads: int):
        # Nothing is read here: an error in a constructor would have Ray take the process for dead, without saying why.
        self._folder, self._shard, self._shards, self._bits = Path(folder), shard, shards, bits
        self._birth, self._num_threads = birth, num_threads
        self._index: HashIndex | None = None
        self._revision = Revision(-1, "")

    def alive(self) -> bool:
        """Answers while another call is at work, as long as the process lives."""
        return True

    @_replying
    def count(self, at: Revision) -> Reply:
        """How many items there are."""
        return Reply(self._revision, len(self._index)) if self._is_at(at) else Reply(self._revision)

    @_replying
    def held(self, at: Revision, ids: np.ndarray) -> Reply:
        """Which of the ids are here: `(N,)` bool."""
        if not self._is_at(at):
            return Reply(self._revision)
        return Reply(self._revision, self._index.holds(ids))

    @_replying
    def change(self, at: Revision, after: Revision, verb: str, arguments: dict[str, Any]) -> Reply:
        """Carries out `add`, `remove`, `update` or `upsert`, which leads from one revision to the next.

        A call that was carried out already, and whose answer was lost on the way, is not carried out again.
        """
        if self._revision != after:
            if not self._is_at(at):
                return Reply(self._revision)
            getattr(self._index, verb)(**arguments)
            self._revision = after
        return Reply(self._revision, len(self._index))

    def search(self, question: bytes, queries: np.ndarray) -> bytes:
        """This shard's own `k` nearest, with metadata of the whole index's schema.

        One piece of bytes there and one back: Ray puts each argument and each part of an answer into a form of its own,
        and for few queries that takes longer than the search.

        Args:
            question: What `calls.as_question` makes.
            queries: `(Q, K)` or packed, as `HashIndex.search` takes them.

        Returns:
            A pickled `Reply`.
        """
        return pickle.dumps(self._search(queries, *pickle.loads(question)), protocol=5)

    @_replying
    def _search(
        self,
        queries: np.ndarray,
        at: Revision,
        k: int,
        metric: str,
        options: dict[str, Any],
        schema: pyarrow.Schema | None,
    ) -> Reply:
        import faiss

        if not self._is_at(at):
            return Reply(self._revision)
        faiss.omp_set_num_threads(self._num_threads)  # OpenMP keeps it by thread, and the constructor's was another
        self._widen(schema)
        # No more than there are: of a k that is too large the caller warns, who knows the whole.
        found = self._index.search(queries, k=min(k, len(self._index)), metric=metric, **options)
        return Reply(self._revision, found)

    @_replying
    def optimize(self, at: Revision) -> Reply:
        """As `HashIndex.optimize`, of this shard."""
        if self._is_at(at):
            self._index.optimize()
        return Reply(self._revision)

    @_replying
    def save(self, at: Revision) -> Reply:
        """Writes the file of this revision, beside those that are there, and says what the manifest is to hold."""
        if not self._is_at(at):
            return Reply(self._revision)
        path = self._folder / shard_file_name(self._shard, self._revision)
        self._index.save(path)
        return Reply(self._revision, ShardFile(path.name, len(self._index), self._revision, sha256_of(path)))

    def _widen(self, schema: pyarrow.Schema | None) -> None:
        """Gives the metadata the columns that came with items of other shards. They are null here, so it is no change.

        An update of one item does it: `HashIndex` fills the others with nulls.
        """
        if schema is None:
            return
        own = None if self._index.metadata is None else self._index.metadata.schema
        lacking = [field for field in schema if own is None or field not in own]
        if lacking:
            nulls = pyarrow.table({field.name: pyarrow.nulls(1, field.type) for field in lacking})
            self._index.update(self._index.ids[:1], metadata=nulls)

    def _is_at(self, revision: Revision) -> bool:
        if self._revision.changes < revision.changes:  # never back: a call may be late
            manifest = self._saved()
            saved = None if manifest is None else manifest.shards[self._shard]
            # Also where a save has gone by while this process was starting with what had been saved before.
            if self._index is None or (saved is not None and saved.revision == revision):
                self._open(manifest)
        return self._revision == revision

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
        whose = f"{path}, the file of shard {self._shard},"
        if not path.is_file():
            raise HashIndexError(
                f"{whose} is missing; put it back, or see that the folder can be reached from every node."
            )
        if sha256_of(path) != saved.sha256:
            raise HashIndexError(f"{whose} is damaged, or not the one that was saved; put the saved one back.")
        index = HashIndex.load(path, bits=self._bits)
        if len(index) != saved.items:
            raise HashIndexError(f"{whose} holds {len(index)} items, the manifest says {saved.items}; save anew.")
        if not _fits(index, manifest):
            raise HashIndexError(f"{whose} has ids or columns that the manifest does not know; save the index anew.")
        self._index, self._revision = index, saved.revision


def _fits(index: HashIndex, manifest: Manifest) -> bool:
    """Whether a shard's ids and columns are of the kinds in the manifest. Of nulls alone, a column has no kind yet."""
    if len(index) and (index.id_type != manifest.id_type or index.next_id > manifest.next_id):
        return False
    if index.metadata is None:
        return True
    schema, nothing = schema_of_text(manifest.schema), pyarrow.null()
    kinds = {} if schema is None else dict(zip(schema.names, schema.types, strict=True))
    return all(column.type in (nothing, kinds.get(column.name)) for column in index.metadata.schema)
