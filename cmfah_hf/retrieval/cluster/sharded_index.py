"""The exact index over several processes and machines, by Ray: the verbs of `HashIndex`, and its answers to the bit.

Shapes: `N` items, `Q` queries, `K` bits, `k` answers a query.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np

from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.cluster.calls import ShardActors, as_question, in_store
from cmfah_hf.retrieval.cluster.changes import (
    State,
    arguments_after,
    arguments_at,
    id_type,
    listed,
    routable,
    trial_index,
)
from cmfah_hf.retrieval.cluster.manifest import (
    MANIFEST_NAME,
    Manifest,
    Revision,
    new_stamp,
    read_manifest,
    remove_old_files,
    schema_as_text,
    schema_of_text,
    write_manifest,
)
from cmfah_hf.retrieval.cluster.merge import merge
from cmfah_hf.retrieval.cluster.shards import rows_of_shards
from cmfah_hf.retrieval.codes import as_array, check_bits, shortened
from cmfah_hf.retrieval.index import HashIndex, Metric, SearchResults
from cmfah_hf.retrieval.storage.ids import no_ids_left

if TYPE_CHECKING:
    import pyarrow

logger = logging.getLogger(__name__)


class ShardedHashIndex:
    """`HashIndex` over several processes and machines: the same verbs, answers, order and errors.

    Each shard is a Ray actor with a `HashIndex` of the ids that a hash of their value leads there, and has one file in
    the folder. `save` makes changes durable. A shard that dies is started anew by Ray, on another node if need be, and
    reads its file; if all its changes had been saved it goes on, else it is an error. No answer ever lacks a part.

    One program at a time changes an index; in it, any number of threads may search.

    Args:
        bits: `K`, a multiple of 8 from 8 to 1024.
        shards: How many; it cannot be changed later.
        folder: Where the index is saved: a new or empty folder that every node can reach under this path.
        num_cpus: CPUs that each shard takes up; FAISS gets as many threads, and at least one.
        timeout: Seconds without a sign of life after which a shard is given up.
        autosave: Whether every change is saved before the call returns. It writes the shards that changed as a whole,
            so it suits few large changes.
        model: Fingerprint of the model that makes the codes; `save` stores it. None for codes made elsewhere.

    Attributes:
        model: The fingerprint, or None; the next save stores it.

    Raises:
        HashIndexError: If the folder holds an index already, or `bits` or `shards` makes no sense.

    Example:

    ```python
    >>> ray.init(address="auto")
    >>> with ShardedHashIndex(bits=64, shards=8, folder="/shared/pictures") as index:
    ...     index.add(hash_values, ids=names)
    ...     index.save()
    ...     results = index.search(queries, k=10, metric="aqd")
    ```"""

    def __init__(
        self,
        bits: int = 64,
        shards: int = 2,
        *,
        folder: str | os.PathLike,
        num_cpus: float = 1,
        timeout: float = 60,
        autosave: bool = False,
        model: str | None = None,
    ):
        check_bits(bits)
        if isinstance(shards, bool) or not isinstance(shards, int) or shards < 1:
            raise HashIndexError(f"An index has a whole number of shards, at least 1, not {shortened(shards)}.")
        folder = Path(folder).absolute()
        if (folder / MANIFEST_NAME).exists():
            raise HashIndexError(f"{folder} holds an index already; load it, or give a new folder.")
        birth = Revision(0, new_stamp())
        self._begin(bits, State((birth,) * shards, (0,) * shards), folder, num_cpus, timeout, autosave)
        self.model = model

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike,
        bits: int | None = None,
        *,
        num_cpus: float = 1,
        timeout: float = 60,
        autosave: bool = False,
    ) -> "ShardedHashIndex":
        """Starts the shards of the index that `save` left in the folder; it has the `bits` and shards it had.

        Args:
            folder: The folder.
            bits: `K`, where the caller expects one.
            num_cpus: As of the class.
            timeout: As of the class.
            autosave: As of the class.

        Raises:
            HashIndexError: If the manifest or the file of a shard is missing, damaged, or of something else.
        """
        folder = Path(folder).absolute()
        manifest = read_manifest(folder)
        if manifest is None:
            raise HashIndexError(f"{folder} has no {MANIFEST_NAME}; give the folder that a sharded index was saved to.")
        if bits is not None and bits != manifest.bits:
            raise HashIndexError(f"{folder} holds codes of {manifest.bits} bits, where {bits} were expected.")
        state = State(
            tuple(shard.revision for shard in manifest.shards),
            tuple(shard.items for shard in manifest.shards),
            manifest.next_id,
            manifest.id_type,
            schema_of_text(manifest.schema),
        )
        index = cls.__new__(cls)
        index._begin(manifest.bits, state, folder, num_cpus, timeout, autosave)
        try:
            index._actors.ask(state.revisions, dict.fromkeys(range(index.shards), ("count",)))
        except BaseException:
            index.close()
            raise
        index._saved, index.model = manifest, manifest.model
        return index

    def _begin(self, bits: int, state: State, folder: Path, num_cpus: float, timeout: float, autosave: bool) -> None:
        self._bits, self._folder, self._autosave, self._state = int(bits), folder, autosave, state
        self._saved: Manifest | None = None
        self._lock = RLock()
        self._unusable = ""
        # Asked first, so that what is wrong with a query is said at once, and as `HashIndex` says it.
        self._probe = HashIndex(self._bits)
        self._probe.add(np.zeros((1, self._bits // 8), np.uint8))
        folder.mkdir(parents=True, exist_ok=True)
        birth = state.revisions[0].stamp
        self._actors = ShardActors(folder, len(state.revisions), self._bits, birth, num_cpus, timeout)

    @property
    def bits(self) -> int:
        """`K`, the number of bits of a code."""
        return self._bits

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return len(self._state.revisions)

    @property
    def folder(self) -> Path:
        """Where the index is saved."""
        return self._folder

    @property
    def next_id(self) -> int:
        """The integer id that an item gets that is added without one."""
        return self._state.next_id

    def __len__(self) -> int:
        return sum(self._state.counts)

    def __contains__(self, item_id: object) -> bool:
        ids = routable([item_id])
        if ids is None or not len(self) or id_type(ids) != self._state.id_type:
            return False
        with self._lock:
            self._check_usable()
            return bool(self._actors.held(self._state.revisions, ids)[0])

    def __repr__(self) -> str:
        return f"ShardedHashIndex(bits={self._bits}, shards={self.shards}, items={len(self)}, folder='{self._folder}')"

    def __enter__(self) -> "ShardedHashIndex":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the shards' processes. What was not saved is gone."""
        if not self._unusable.startswith("is closed"):
            self._unusable = "is closed; load it from its folder"
            self._actors.stop()

    def add(
        self,
        codes: Any,
        ids: Sequence[int] | Sequence[str] | np.ndarray | None = None,
        metadata: "pyarrow.Table | Mapping[str, Any] | None" = None,
    ) -> None:
        """Adds items; either all of them or, on an error, none. The arguments are those of `HashIndex.add`.

        Raises:
            HashIndexError: Whenever `HashIndex.add` raises it, or if a shard is lost.
        """
        with self._lock:
            ids, tried = self._tried_on(ids)
            before = len(tried)
            tried.add(codes, ids, metadata)
            numbers = np.arange(len(tried) - before)  # what the small index calls items without ids
            tried_ids = numbers if ids is None else routable(ids)
            if ids is None and self.next_id + len(numbers) > 2**63:
                raise HashIndexError(no_ids_left(len(numbers), self.next_id))
            new_ids = numbers + self.next_id if ids is None else tried_ids
            self._change("add", new_ids, tried, arguments_after(tried, tried_ids, codes, metadata))

    def remove(self, ids: Sequence[int] | Sequence[str] | np.ndarray) -> None:
        """Removes the items with these ids; either all of them or, on an error, none.

        Raises:
            HashIndexError: On an id that the index does not hold, or if a shard is lost.
        """
        with self._lock:
            ids, tried = self._tried_on(ids)
            tried.remove(ids)
            self._change("remove", routable(ids), tried, {})

    def update(
        self,
        ids: Sequence[int] | Sequence[str] | np.ndarray,
        codes: Any = None,
        metadata: "pyarrow.Table | Mapping[str, Any] | None" = None,
    ) -> None:
        """Replaces codes, metadata or both of items that are there. The arguments are those of `HashIndex.update`.

        Raises:
            HashIndexError: Whenever `HashIndex.update` raises it, or if a shard is lost.
        """
        self._put("update", ids, codes, metadata)

    def upsert(
        self,
        codes: Any,
        ids: Sequence[int] | Sequence[str] | np.ndarray,
        metadata: "pyarrow.Table | Mapping[str, Any] | None" = None,
    ) -> None:
        """Replaces the items that are there and adds the others. The arguments are those of `HashIndex.upsert`.

        Raises:
            HashIndexError: Whenever `HashIndex.upsert` raises it, or if a shard is lost.
        """
        self._put("upsert", ids, codes, metadata)

    def search(
        self, hash_values: Any, k: int = 10, metric: Metric = "hamming", where: Any = None, exact: bool = True
    ) -> SearchResults:
        """The `k` nearest items of each query, those that `HashIndex.search` would give, in the same canonical order.

        Args:
            hash_values: `(Q, K)` real hash values, or `(K,)` for one query; packed codes will do for `"hamming"`.
            k: How many answers; all items, with a logged warning, where the index holds fewer.
            metric: `"hamming"` or `"aqd"`.
            where: Which items to look at, as of `HashIndex.search`.
            exact: As of `HashIndex.search`, for each shard.

        Raises:
            HashIndexError: Whenever `HashIndex.search` raises it, or if a shard is lost.
            QueryError: On an unknown metric or a `k` below 1.
        """
        self._check_usable()
        queries = as_array(hash_values)
        queries = queries[None] if queries.ndim == 1 else queries
        sensible = isinstance(k, (int, np.integer)) and not isinstance(k, bool) and k >= 1
        self._probe.search(queries, k=1 if sensible else k, metric=metric)
        options = {"where": where, "exact": exact}
        sent = in_store(queries)
        for again in (False, True):
            # A change in another thread may overtake a search; the second try waits for its end.
            with self._lock if again else nullcontext():
                state = self._state
                filled = [shard for shard, count in enumerate(state.counts) if count]
                if not filled:  # raises what an empty index raises
                    return HashIndex(self._bits).search(queries, k=k, metric=metric)
                calls = {
                    shard: ("search", as_question(state.revisions[shard], k, metric, options, state.schema), sent)
                    for shard in filled
                }
                replies = self._actors.call(calls)
                if all(reply.revision == state.revisions[shard] for shard, reply in replies.items()):
                    break
                if again:
                    self._actors.check_revisions(state.revisions, replies)
        if where is None and k > sum(state.counts):
            items = sum(state.counts)
            logger.warning("k = %s was asked of an index of %d items; all of them are returned.", shortened(k), items)
        return merge([replies[shard].answer for shard in filled], int(k), metric, state.schema)

    def optimize(self) -> None:
        """As `HashIndex.optimize`, of each shard; a shard that is started anew later has to do it again."""
        with self._lock:
            self._check_usable()
            self._actors.ask(self._state.revisions, dict.fromkeys(range(self.shards), ("optimize",)))

    def save(self) -> None:
        """Makes all changes durable: writes the shards that changed since the last save, then the manifest.

        A save that is broken off, wherever that is, leaves the one before it.

        Raises:
            HashIndexError: If a shard is lost, or another program has saved to the folder meanwhile.
        """
        with self._lock:
            self._check_usable()
            if read_manifest(self._folder) != self._saved:
                raise HashIndexError(
                    f"{self._folder}: another program has saved an index there meanwhile, which is not overwritten; "
                    "load the folder anew, and let one program at a time change an index."
                )
            state, files = self._state, dict(enumerate(self._saved.shards)) if self._saved else {}
            changed = [
                shard
                for shard, revision in enumerate(state.revisions)
                if shard not in files or files[shard].revision != revision
            ]
            if self._saved and not changed and self._saved.model == self.model:
                return
            files |= self._actors.ask(state.revisions, dict.fromkeys(changed, ("save",)))
            shards = tuple(files[shard] for shard in range(self.shards))
            schema = schema_as_text(state.schema)
            manifest = Manifest(self._bits, state.next_id, state.id_type, schema, shards, self.model)
            write_manifest(self._folder, manifest)
            self._saved = manifest
            remove_old_files(self._folder, manifest)

    def _tried_on(self, ids: Any) -> tuple[Any, HashIndex]:
        """The ids, and a small index that holds what this one holds of them (see `trial_index`)."""
        self._check_usable()
        ids, state = listed(ids), self._state
        if not len(self):
            return ids, HashIndex(self._bits)
        named = None if ids is None else routable(ids)
        named = np.empty(0, np.int64) if named is None else named
        held = named[self._actors.held(state.revisions, named)] if id_type(named) == state.id_type else named[:0]
        held = list(dict.fromkeys(held.tolist()))
        return ids, trial_index(self._bits, held, named, state.id_type == "str", state.schema)

    def _put(self, verb: str, ids: Any, codes: Any, metadata: Any) -> None:
        """`update` or `upsert`."""
        with self._lock:
            ids, tried = self._tried_on(ids)
            getattr(tried, verb)(ids=ids, codes=codes, metadata=metadata)
            arguments = arguments_after(tried, routable(ids), codes, metadata)
            self._change(verb, routable(ids), tried, arguments)

    def _change(self, verb: str, ids: np.ndarray, tried: HashIndex, arguments: dict[str, Any]) -> None:
        """Carries out on the shards what went well on the small index `tried`."""
        state, stamp = self._state, new_stamp()
        routed = rows_of_shards(ids, self.shards)
        if not routed:
            return
        revisions, counts, calls = list(state.revisions), list(state.counts), {}
        for shard, at in routed.items():
            revisions[shard] = Revision(state.revisions[shard].changes + 1, stamp)
            part = {"ids": ids[at], **arguments_at(arguments, at)}
            calls[shard] = ("change", state.revisions[shard], revisions[shard], verb, part)
        self._actors.ask(
            state.revisions, dict.fromkeys(calls, ("count",))
        )  # all are there and whole, before the first changes
        next_id = state.next_id if id_type(ids) == "str" else max(state.next_id, int(ids.max()) + 1)
        schema = state.schema if tried.metadata is None else tried.metadata.schema
        try:
            replies = self._actors.call(calls)
            self._actors.check_revisions(revisions, replies)
        except BaseException:
            self._unusable = f"was broken off in the middle of a change ({verb}); load it as it was last saved"
            raise
        for shard, reply in replies.items():
            counts[shard] = reply.answer
        # As of `HashIndex`, the columns go with the last item.
        self._state = State(tuple(revisions), tuple(counts), next_id, id_type(ids), schema if any(counts) else None)
        if self._autosave:
            self.save()

    def _check_usable(self) -> None:
        if self._unusable:
            raise HashIndexError(f"The index of {self._folder} {self._unusable}.")
