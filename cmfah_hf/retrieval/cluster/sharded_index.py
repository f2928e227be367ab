"""`ShardedHashIndex`: the exact index over several processes and machines, by Ray.

Shapes: `N` items, `Q` queries, `K` bits, `k` answers a query.
"""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import RLock
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.base import BaseHashIndex, Metric
from cmfah_hf.retrieval.cluster.calls import ShardActors, as_question, in_store
from cmfah_hf.retrieval.cluster.changes import (
    State,
    arguments_after,
    arguments_at,
    listed,
    trial_index,
    type_of,
    valid_ids,
)
from cmfah_hf.retrieval.cluster.manifest import (
    MANIFEST_NAME,
    Manifest,
    Revision,
    new_stamp,
    read_manifest,
    remove_old_files,
    schema_as_text,
    write_manifest,
)
from cmfah_hf.retrieval.cluster.merge import gathered, merge, merge_radius
from cmfah_hf.retrieval.cluster.shards import rows_of_shards
from cmfah_hf.retrieval.codes import as_array, check_bits, check_count, check_distance, shortened
from cmfah_hf.retrieval.duplicates import duplicate_groups
from cmfah_hf.retrieval.index import HashIndex
from cmfah_hf.retrieval.results import QueryResults, SearchResults
from cmfah_hf.retrieval.storage.ids import id_array, ids_of, no_ids_left

logger = logging.getLogger(__name__)


class ShardedHashIndex(BaseHashIndex):
    """An index over several processes and machines, with the answers, the order and the errors of `HashIndex`.

    Each shard is a Ray actor with a `HashIndex` of the items whose ids hash to it, and has one file in the folder.
    `save` makes changes durable. If a shard dies, Ray restarts it, on another node if need be, from its file; lost
    changes are an error of the next call. No answer is ever partial.

    One program at a time changes an index; any number of its threads may search.

    Args:
        bits: `K`, a multiple of 8 from 8 to 1024.
        shards: The number of shards; it cannot be changed later.
        folder: Where the index is saved: a new or empty folder that every node can reach under this path.
        num_cpus: CPUs that each shard reserves; FAISS gets the same number of threads, at least one.
        timeout: Seconds without a sign of life after which a shard is given up.
        autosave: Save every change before the call returns. Each save writes the changed shards completely, so this
            suits few large changes.
        model: Fingerprint of the model that makes the codes; `save` stores it. None for codes made elsewhere.

    Attributes:
        model: The fingerprint, or None; the next save stores it.

    Raises:
        HashIndexError: If the folder holds an index already, or `bits` or `shards` is out of range. Every method also
            raises it if the index is closed or a shard is lost.

    Example:

    ```python
    >>> ray.init(address="auto")
    >>> with ShardedHashIndex(bits=64, shards=8, folder="/shared/images") as index:
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
            raise HashIndexError(f"shards must be a whole number of at least 1, not {shortened(shards)}.")
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
        """Loads an index that `save` wrote, and starts its shards.

        Args:
            folder: The folder.
            bits: The expected `K`. None: any.
            num_cpus, timeout, autosave: As for the class.

        Raises:
            HashIndexError: If the manifest or the file of a shard is missing, damaged or of another kind.
        """
        folder = Path(folder).absolute()
        manifest = read_manifest(folder)
        if manifest is None:
            raise HashIndexError(f"{folder} has no {MANIFEST_NAME}; give the folder that a sharded index was saved to.")
        if bits is not None and bits != manifest.bits:
            raise HashIndexError(f"{folder} holds codes of {manifest.bits} bits, where {bits} were expected.")
        index = cls.__new__(cls)
        index._begin(manifest.bits, State.of(manifest), folder, num_cpus, timeout, autosave)
        try:
            index._actors.ask(index._state.revisions, dict.fromkeys(range(index.shards), ("count",)))
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
        # Rejects wrong queries at once, in the words of `HashIndex`.
        self._probe = HashIndex(self._bits)
        self._probe.add(np.zeros((1, self._bits // 8), np.uint8))
        folder.mkdir(parents=True, exist_ok=True)
        birth = state.revisions[0].stamp
        self._actors = ShardActors(folder, len(state.revisions), self._bits, birth, num_cpus, timeout)

    @property
    def bits(self) -> int:
        return self._bits

    @property
    def shards(self) -> int:
        """The number of shards."""
        return len(self._state.revisions)

    @property
    def folder(self) -> Path:
        """The folder where the index is saved."""
        return self._folder

    @property
    def next_id(self) -> int:
        return self._state.next_id

    @property
    def id_type(self) -> Literal["int", "str"] | None:
        return self._state.id_type if len(self) else None

    @property
    def ids(self) -> np.ndarray:
        """All ids in ascending order: `(N,)`, int64 or an object array of str. Read-only.

        Every use of `ids`, `codes` or `metadata` sends this part of all items, and their ids, from the shards to this
        process.
        """
        return self._gathered("ids", np.empty(0, np.int64))

    @property
    def codes(self) -> np.ndarray:
        """The packed codes in the order of `ids`: `(N, K / 8)` uint8. Read-only. The cost is that of `ids`."""
        return self._gathered("codes", np.empty((0, self._bits // 8), np.uint8))

    @property
    def metadata(self) -> pa.Table | None:
        """The metadata in the order of `ids`. None if no item has any. The cost is that of `ids`."""
        return self._gathered("metadata", None) if self._state.schema is not None else None

    def __len__(self) -> int:
        return sum(self._state.counts)

    def __contains__(self, item_id: object) -> bool:
        return bool(self.holds(valid_ids([item_id])).any())  # unlike that of the base, raises errors of shards

    def holds(self, ids: Any) -> np.ndarray:
        wanted = id_array(ids)
        with self._lock:
            self._check_usable()
            if type_of(wanted) != self.id_type:
                return np.zeros(len(wanted), bool)
            return self._actors.held(self._state.revisions, wanted)

    def __repr__(self) -> str:
        return f"ShardedHashIndex(bits={self._bits}, shards={self.shards}, items={len(self)}, folder='{self._folder}')"

    def __enter__(self) -> "ShardedHashIndex":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the shards' processes. Changes that were not saved are lost."""
        if not self._unusable.startswith("is closed"):
            self._unusable = "is closed; load it from its folder"
            self._actors.stop()

    def add(
        self, codes: Any, ids: Sequence[int] | Sequence[str] | np.ndarray | None = None, metadata: Any = None
    ) -> None:
        with self._lock:
            ids, tried = self._tried_on(ids)
            before = len(tried)
            tried.add(codes, ids, metadata)
            numbers = np.arange(len(tried) - before)  # the ids that the small index gives to items without one
            if ids is None and self.next_id + len(numbers) > 2**63:
                raise HashIndexError(no_ids_left(len(numbers), self.next_id))
            tried_ids = numbers if ids is None else id_array(ids)
            new_ids = numbers + self.next_id if ids is None else tried_ids
            self._change("add", new_ids, tried, arguments_after(tried, tried_ids, codes, metadata))

    def remove(self, ids: Sequence[int] | Sequence[str] | np.ndarray) -> None:
        with self._lock:
            ids, tried = self._tried_on(ids)
            tried.remove(ids)
            self._change("remove", id_array(ids), tried, {})

    def update(self, ids: Sequence[int] | Sequence[str] | np.ndarray, codes: Any = None, metadata: Any = None) -> None:
        self._put("update", ids, codes, metadata)

    def upsert(self, codes: Any, ids: Sequence[int] | Sequence[str] | np.ndarray, metadata: Any = None) -> None:
        self._put("upsert", ids, codes, metadata)

    def _search(
        self, hash_values: Any, k: int, metric: Metric, where: Any, exact: bool, probes: int, with_codes: bool = False
    ) -> SearchResults:
        """With `exact=False`, every shard searches `probes` of its inverted lists."""
        self._check_usable()
        queries = as_array(hash_values)
        check_count("k", k)
        self._probe.search(queries, k=1, metric=metric, probes=probes)
        options = {"k": k, "metric": metric, "where": where, "exact": exact, "probes": probes, "with_codes": with_codes}
        state, answers = self._answers("_search", queries, options)
        if not answers:  # raises the error of an empty index
            return HashIndex(self._bits).search(queries, k=k, metric=metric)
        items = sum(state.counts)
        if where is None and k > items:
            logger.warning("k = %s exceeds the %d items of the index; all of them are returned.", shortened(k), items)
        return merge(answers, int(k), metric, state.schema)

    def search_radius(
        self, hash_values: Any, radius: int, where: Any = None, limit: int = 1_000_000
    ) -> list[QueryResults]:
        self._check_usable()
        radius, limit = check_distance("radius", radius, self._bits), check_count("limit", limit)
        queries = as_array(hash_values)
        self._probe.search(queries, k=1)
        state, answers = self._answers("search_radius", queries, {"radius": radius, "where": where, "limit": limit})
        if not answers:
            return HashIndex(self._bits).search_radius(queries, radius)
        return merge_radius(answers, radius, limit, state.schema)

    def _answers(self, method: str, queries: np.ndarray, options: dict[str, Any]) -> tuple[State, list[Any]]:
        """The answers of all shards with items, all at the revisions of one state."""
        sent = in_store(queries)
        for again in (False, True):
            # A change in another thread may overtake a search; the second try waits for its end.
            with self._lock if again else nullcontext():
                state = self._state
                calls = {
                    shard: ("search", as_question(state.revisions[shard], method, options, state.schema), sent)
                    for shard in state.filled
                }
                replies = self._actors.call(calls)
                if all(reply.revision == state.revisions[shard] for shard, reply in replies.items()):
                    break
                if again:
                    self._actors.check_revisions(state.revisions, replies)
        return state, [replies[shard].answer for shard in state.filled]

    def duplicates(self, bits: int = 3, advance: Callable[[float], None] | None = None) -> list[np.ndarray]:
        """See `BaseHashIndex.duplicates`. All codes are compared in this process; the cost is that of `ids`, twice."""
        with self._lock:
            codes, ids = self.codes, self.ids
        return duplicate_groups(codes, ids_of(ids), bits, advance)

    def optimize(self) -> None:
        """See `BaseHashIndex.optimize`. The structures of a shard are lost when its process is restarted."""
        with self._lock:
            self._check_usable()
            self._actors.ask(self._state.revisions, dict.fromkeys(range(self.shards), ("optimize",)))

    def save(self) -> None:
        """Makes all changes durable: writes the shards that changed since the last save, then the manifest.

        An interrupted save leaves the previous one in place.

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

    def _gathered(self, what: Literal["ids", "codes", "metadata"], nothing: Any) -> Any:
        """One property of all items; `nothing` of an empty index."""
        with self._lock:
            self._check_usable()
            state = self._state
            calls = dict.fromkeys(state.filled, ("contents", what, state.schema))
            parts = list(self._actors.ask(state.revisions, calls).values())
        values = gathered(parts, state.schema if what == "metadata" else None) if parts else nothing
        if isinstance(values, np.ndarray):
            values.flags.writeable = False
        return values

    def _tried_on(self, ids: Any) -> tuple[Any, HashIndex]:
        """The ids, and a small index with those of their items that this one holds (see `trial_index`)."""
        self._check_usable()
        ids, state = listed(ids), self._state
        if not len(self):
            return ids, HashIndex(self._bits)
        named = valid_ids(ids)
        held = named[self.holds(named)].tolist()
        return ids, trial_index(self._bits, list(dict.fromkeys(held)), named, state.id_type == "str", state.schema)

    def _put(self, verb: Literal["update", "upsert"], ids: Any, codes: Any, metadata: Any) -> None:
        with self._lock:
            ids, tried = self._tried_on(ids)
            getattr(tried, verb)(ids=ids, codes=codes, metadata=metadata)
            named = id_array(ids)
            self._change(verb, named, tried, arguments_after(tried, named, codes, metadata))

    def _change(self, verb: str, ids: np.ndarray, tried: HashIndex, arguments: dict[str, Any]) -> None:
        """Makes a change on the shards that succeeded on the small index `tried`."""
        state, stamp = self._state, new_stamp()
        routed = rows_of_shards(ids, self.shards)
        if not routed:
            return
        revisions, counts, calls = list(state.revisions), list(state.counts), {}
        for shard, at in routed.items():
            revisions[shard] = Revision(state.revisions[shard].changes + 1, stamp)
            part = {"ids": ids[at], **arguments_at(arguments, at)}
            calls[shard] = ("change", state.revisions[shard], revisions[shard], verb, part)
        # All of them must be there before the first one changes.
        self._actors.ask(state.revisions, dict.fromkeys(calls, ("count",)))
        next_id = state.next_id if type_of(ids) == "str" else max(state.next_id, int(ids.max()) + 1)
        schema = state.schema if tried.metadata is None else tried.metadata.schema
        try:
            replies = self._actors.call(calls)
            self._actors.check_revisions(revisions, replies)
        except BaseException:
            self._unusable = f"was interrupted in the middle of a change ({verb}); load it as it was last saved"
            raise
        for shard, reply in replies.items():
            counts[shard] = reply.answer
        # As in `HashIndex`, the columns disappear with the last item.
        self._state = State(tuple(revisions), tuple(counts), next_id, type_of(ids), schema if any(counts) else None)
        if self._autosave:
            self.save()

    def _check_usable(self) -> None:
        if self._unusable:
            raise HashIndexError(f"The index of {self._folder} {self._unusable}.")
