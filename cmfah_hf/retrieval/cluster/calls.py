"""Calls to the shards' processes, which may die, come back, or stay away."""

import logging
import pickle
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.cluster.manifest import Revision, read_manifest
from cmfah_hf.retrieval.cluster.shards import Reply, Shard, rows_of_shards

try:
    import ray
    from ray import cloudpickle
    from ray.exceptions import ActorDiedError, RayError, RayTaskError
except ImportError as error:
    raise ImportError("A sharded index needs Ray; install it by `pip install cmfah-hf[cluster]`.") from error

if TYPE_CHECKING:
    import pyarrow

logger = logging.getLogger(__name__)

# Seconds between two tries at a shard that is not there: short beside the start of a process.
_PAUSE = 0.1
# Bytes up to which Ray sends an argument along with the call.
_LARGE = 100_000


def in_store(array: np.ndarray) -> "np.ndarray | ray.ObjectRef":
    """A large array as one copy in the object store, for all the calls that take it; a small one as it is."""
    return ray.put(array) if array.nbytes > _LARGE else array


def as_question(at: Revision, k: int, metric: str, options: dict[str, Any], schema: "pyarrow.Schema | None") -> bytes:
    """What `Shard.search` is asked beside the queries: at which revision, how many, by what, under which conditions."""
    # Also of a condition that is none, which the shard then refuses as `HashIndex` does.
    return cloudpickle.dumps((at, k, metric, options, schema))


class ShardActors:
    """The shards' processes, as Ray actors spread over the nodes.

    Ray starts a process anew, on whichever node has room, when it or its node dies, and makes the calls that were in
    flight again: the shards see to it that none is carried out twice (see `Shard.change`).

    Args:
        folder: Where the index is saved.
        shards: How many.
        bits: `K`, the bits of a code.
        birth: The stamp of the index before its first change.
        num_cpus: CPUs that Ray keeps for each.
        timeout: Seconds without a sign of life after which a shard is given up.
    """

    def __init__(self, folder: Path, shards: int, bits: int, birth: str, num_cpus: float, timeout: float):
        self._folder, self._shards, self._bits, self._birth = folder, shards, bits, birth
        self._num_cpus, self._timeout = num_cpus, timeout
        remote_class = ray.remote(concurrency_groups={"health": 1})(Shard)
        self._actor_class = remote_class.options(
            num_cpus=num_cpus, scheduling_strategy="SPREAD", max_restarts=-1, max_task_retries=-1
        )
        self._starting, self._stopped = Lock(), False
        self._handles = [self._start(shard) for shard in range(shards)]

    def call(self, requests: Mapping[int, tuple]) -> dict[int, Reply]:
        """The answers of the shards to these calls, each `(method, *arguments)`.

        Raises:
            HashIndexError: If a shard gives no sign of life for `timeout` seconds, or cannot read its file.
            CMFAHError: What a shard's `HashIndex` raises, as it is.
        """
        answers: dict[int, Reply] = {}
        heard = dict.fromkeys(requests, time.monotonic())
        reasons = dict.fromkeys(requests, "")
        handles: dict[int, Any] = {}

        def submit(shard: int) -> ray.ObjectRef:
            handles[shard] = self._handles[shard]
            method, *arguments = requests[shard]
            return getattr(handles[shard], method).remote(*arguments)

        waiting = {submit(shard): shard for shard in requests}
        probes: dict[ray.ObjectRef, int] = {}
        while len(answers) < len(requests):
            # For all at once: each return from a wait costs as much as a call.
            ready, _ = ray.wait(
                [*waiting, *probes], num_returns=len(waiting) + len(probes), timeout=min(1.0, self._timeout / 8)
            )
            if self._stopped:
                raise HashIndexError(f"The index of {self._folder} was closed meanwhile; load it from its folder.")
            down = []
            for ref in ready:
                shard = waiting.pop(ref) if ref in waiting else probes[ref]
                try:
                    answer = ray.get(ref)
                    if isinstance(answer, bytes):  # of a search, see `Shard.search`
                        answer = pickle.loads(answer)
                    heard[shard] = time.monotonic()
                    if probes.pop(ref, None) is None:
                        if answer.error is not None:
                            raise answer.error
                        answers[shard] = answer
                except RayTaskError:  # an error in the code, not of its user
                    raise
                except RayError as error:
                    reasons[shard] = str(error).strip().splitlines()[0]
                    if probes.pop(ref, None) is None:
                        down.append((shard, handles[shard] if isinstance(error, ActorDiedError) else None))
            for shard in requests.keys() - answers.keys():
                silent = time.monotonic() - heard[shard]
                if silent > self._timeout:
                    raise self._gone(shard, reasons[shard])
                # A long search is no death: the process is asked beside it whether it lives.
                if silent > self._timeout / 4 and shard not in probes.values():
                    probes[self._handles[shard].alive.options(concurrency_group="health").remote()] = shard
            if down:
                time.sleep(_PAUSE)
            for shard, dead in down:
                logger.info("Shard %d has died and is asked again: %s", shard, reasons[shard])
                with self._starting:  # of several threads that find the process dead, one starts it anew
                    if self._handles[shard] is dead:
                        self._handles[shard] = self._start(shard)
                waiting[submit(shard)] = shard
        return answers

    def ask(self, revisions: Sequence[Revision], requests: Mapping[int, tuple]) -> dict[int, Any]:
        """As `call`, of shards that have to be at these revisions; the answers alone."""
        replies = self.call({shard: (method, revisions[shard], *rest) for shard, (method, *rest) in requests.items()})
        self.check_revisions(revisions, replies)
        return {shard: reply.answer for shard, reply in replies.items()}

    def held(self, revisions: Sequence[Revision], ids: np.ndarray) -> np.ndarray:
        """Which of the ids the shards hold: `(N,)` bool."""
        found, rows = np.zeros(len(ids), bool), rows_of_shards(ids, self._shards)
        for shard, held in self.ask(revisions, {shard: ("held", ids[at]) for shard, at in rows.items()}).items():
            found[rows[shard]] = held
        return found

    def check_revisions(self, revisions: Sequence[Revision], replies: Mapping[int, Reply]) -> None:
        """Sees to it that the shards which replied are at these revisions.

        Raises:
            HashIndexError: If one is not. It names the shard and says how many changes are lost.
        """
        for shard, reply in sorted(replies.items()):
            lost = revisions[shard].changes - reply.revision.changes
            if lost > 0:
                changes = "1 change" if lost == 1 else f"{lost} changes"
                raise HashIndexError(
                    f"Shard {shard} of {self._folder} has died, and {changes} that had not been saved are lost with "
                    "it; load the folder to go on from the last save, and make the changes since then again."
                )
            if reply.revision != revisions[shard]:
                raise HashIndexError(
                    f"Shard {shard} of {self._folder} has died and come back with what another program has saved "
                    "there; load the folder anew, and let one program at a time change an index."
                )

    def stop(self) -> None:
        """Ends the processes."""
        self._stopped = True
        for handle in self._handles:
            ray.kill(handle, no_restart=True)

    def _start(self, shard: int) -> Any:
        threads = max(1, int(self._num_cpus))
        return self._actor_class.remote(str(self._folder), shard, self._shards, self._bits, self._birth, threads)

    def _gone(self, shard: int, reason: str) -> HashIndexError:
        try:
            manifest = read_manifest(self._folder)
            file = str(self._folder / manifest.shards[shard].file) if manifest else f"never saved in {self._folder}"
        except (HashIndexError, IndexError):
            file = f"in {self._folder}"
        said = f"; the last that was heard of it: {reason.rstrip('.')}" if reason else ""
        return HashIndexError(
            f"Shard {shard} ({file}) has given no sign of life for {self._timeout:g} seconds{said}. "
            f"See that the cluster has a node with {self._num_cpus:g} free CPUs for it, and try again."
        )
