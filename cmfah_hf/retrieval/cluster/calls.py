"""Calls to the shards' processes (Ray actors), repeated when a process dies and is restarted."""

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

# Seconds before a failed call is repeated: short compared to the start of a process.
_PAUSE = 0.1
# Bytes up to which Ray sends an argument along with the call.
_LARGE = 100_000


def in_store(array: np.ndarray) -> "np.ndarray | ray.ObjectRef":
    """A large array as one copy in the object store, shared by all calls that take it; a small one as it is."""
    return ray.put(array) if array.nbytes > _LARGE else array


def as_question(at: Revision, method: str, options: dict[str, Any], schema: "pyarrow.Schema | None") -> bytes:
    """The arguments of `Shard.search` except for the queries, pickled."""
    # Cloudpickle also takes a `where` of any other type, which the shard then rejects as `HashIndex` does.
    return cloudpickle.dumps((at, method, options, schema))


class ShardActors:
    """The shards' processes, as Ray actors spread over the nodes.

    When a process or its node dies, Ray restarts the process on any node with room and repeats the calls in flight. The
    shards take care that no change is made twice (see `Shard.change`).

    `birth` is the stamp of the index before its first change, `num_cpus` the CPUs that Ray reserves for each shard, and
    `timeout` the seconds without a sign of life after which a shard is given up.
    """

    def __init__(self, folder: Path, shards: int, bits: int, birth: str, num_cpus: float, timeout: float):
        self.folder, self.num_cpus, self.timeout = folder, num_cpus, timeout
        self._shards, self._bits, self._birth = shards, bits, birth
        remote_class = ray.remote(concurrency_groups={"health": 1})(Shard)  # type: ignore[call-overload] # not in its stub
        self._actor_class = remote_class.options(
            num_cpus=num_cpus, scheduling_strategy="SPREAD", max_restarts=-1, max_task_retries=-1
        )
        self._starting, self._stopped = Lock(), False
        self._handles = [self._start(shard) for shard in range(shards)]

    def call(self, requests: Mapping[int, tuple]) -> dict[int, Reply]:
        """The replies of the shards to calls `(method, *arguments)`; errors of a shard's `HashIndex` pass unchanged.

        A shard without a sign of life for `timeout` seconds is a `HashIndexError`.
        """
        return _Calls(self, requests).replies_of_all()

    def ask(self, revisions: Sequence[Revision], requests: Mapping[int, tuple]) -> dict[int, Any]:
        """The answers of shards that must be at these revisions; otherwise as `call`."""
        replies = self.call({shard: (method, revisions[shard], *rest) for shard, (method, *rest) in requests.items()})
        self.check_revisions(revisions, replies)
        return {shard: reply.answer for shard, reply in replies.items()}

    def held(self, revisions: Sequence[Revision], ids: np.ndarray) -> np.ndarray:
        """Whether the shards hold each of the ids: `(N,)` bool."""
        found, rows = np.zeros(len(ids), bool), rows_of_shards(ids, self._shards)
        for shard, held in self.ask(revisions, {shard: ("held", ids[at]) for shard, at in rows.items()}).items():
            found[rows[shard]] = held
        return found

    def check_revisions(self, revisions: Sequence[Revision], replies: Mapping[int, Reply]) -> None:
        """Rejects replies of shards at other revisions; the error names the shard and the number of lost changes."""
        for shard, reply in sorted(replies.items()):
            lost = revisions[shard].changes - reply.revision.changes
            if lost > 0:
                changes = "1 change" if lost == 1 else f"{lost} changes"
                raise HashIndexError(
                    f"Shard {shard} of {self.folder} has died, and {changes} that had not been saved are lost with "
                    "it; load the folder to go on from the last save, and make the changes since then again."
                )
            if reply.revision != revisions[shard]:
                raise HashIndexError(
                    f"Shard {shard} of {self.folder} has died and come back with what another program has saved "
                    "there; load the folder anew, and let one program at a time change an index."
                )

    def stop(self) -> None:
        """Ends the processes."""
        self._stopped = True
        for handle in self._handles:
            ray.kill(handle, no_restart=True)

    def check_running(self) -> None:
        """Raises a `HashIndexError` if `stop` has been called."""
        if self._stopped:
            raise HashIndexError(f"The index of {self.folder} was closed meanwhile; load it from its folder.")

    def handle(self, shard: int) -> Any:
        """The Ray actor of a shard."""
        return self._handles[shard]

    def replace(self, shard: int, dead: Any) -> None:
        """Starts a new process for a shard, unless another thread has replaced the dead one already."""
        with self._starting:
            if self._handles[shard] is dead:
                self._handles[shard] = self._start(shard)

    def lost(self, shard: int, reason: str) -> HashIndexError:
        """The error for a shard that has given no sign of life, with the last error of its calls."""
        try:
            manifest = read_manifest(self.folder)
            file = str(self.folder / manifest.shards[shard].file) if manifest else f"never saved in {self.folder}"
        except (HashIndexError, IndexError):
            file = f"in {self.folder}"
        last = f"; its last error: {reason.rstrip('.')}" if reason else ""
        return HashIndexError(
            f"Shard {shard} ({file}) has given no sign of life for {self.timeout:g} seconds{last}. "
            f"Make sure that the cluster has a node with {self.num_cpus:g} free CPUs for it, and try again."
        )

    def _start(self, shard: int) -> Any:
        threads = max(1, int(self.num_cpus))
        return self._actor_class.remote(str(self.folder), shard, self._shards, self._bits, self._birth, threads)


class _Calls:
    """One call to each of some shards, repeated until every shard has replied.

    While a call takes long, the process is pinged in another thread of its own: a long search is no death.
    """

    def __init__(self, actors: ShardActors, requests: Mapping[int, tuple]):
        self._actors, self._requests = actors, requests
        self._replies: dict[int, Reply] = {}
        self._last_sign = dict.fromkeys(requests, time.monotonic())
        self._errors = dict.fromkeys(requests, "")
        self._handles: dict[int, Any] = {}
        self._calls: dict[ray.ObjectRef, int] = {}
        self._pings: dict[ray.ObjectRef, int] = {}
        for shard in requests:
            self._submit(shard)

    def replies_of_all(self) -> dict[int, Reply]:
        """Waits for all replies; the errors are those of `ShardActors.call`."""
        while len(self._replies) < len(self._requests):
            pending = [*self._calls, *self._pings]
            # One wait for all: each return from a wait takes as long as a call.
            ready, _ = ray.wait(pending, num_returns=len(pending), timeout=min(1.0, self._actors.timeout / 8))
            self._actors.check_running()
            failed = [shard for ref in ready if (shard := self._receive(ref)) is not None]
            self._check_signs_of_life()
            if failed:
                time.sleep(_PAUSE)
            for shard in failed:
                logger.info("Shard %d has died; its call is repeated: %s", shard, self._errors[shard])
                self._submit(shard)
        return self._replies

    def _submit(self, shard: int) -> None:
        self._handles[shard] = self._actors.handle(shard)
        method, *arguments = self._requests[shard]
        self._calls[getattr(self._handles[shard], method).remote(*arguments)] = shard

    def _receive(self, ref: "ray.ObjectRef") -> int | None:
        """Processes the outcome of a call or a ping; the shard, if its call failed and must be repeated."""
        is_ping = ref in self._pings
        shard = self._pings.pop(ref) if is_ping else self._calls.pop(ref)
        try:
            reply = ray.get(ref)
        except RayTaskError:  # an error in the code, not of its user
            raise
        except RayError as error:
            self._errors[shard] = str(error).strip().splitlines()[0]
            if isinstance(error, ActorDiedError) and not is_ping:
                self._actors.replace(shard, self._handles[shard])
            return None if is_ping else shard
        self._last_sign[shard] = time.monotonic()
        if not is_ping:
            reply = pickle.loads(reply) if isinstance(reply, bytes) else reply  # bytes from `Shard.search`
            if reply.error is not None:
                raise reply.error
            self._replies[shard] = reply
        return None

    def _check_signs_of_life(self) -> None:
        for shard in self._requests.keys() - self._replies.keys():
            silent = time.monotonic() - self._last_sign[shard]
            if silent > self._actors.timeout:
                raise self._actors.lost(shard, self._errors[shard])
            if silent > self._actors.timeout / 4 and shard not in self._pings.values():
                ping = self._actors.handle(shard).alive.options(concurrency_group="health").remote()
                self._pings[ping] = shard
