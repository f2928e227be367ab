"""A Ray cluster of several nodes on this machine."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Each node is a separate process; its CPUs are declared and need not exist.
NODE = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="session")
def node_options() -> dict[str, Any]:
    """Options of the cluster's nodes."""
    return NODE


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """A head and two nodes; this process connects to the head, which runs no shards."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # On a busy machine, processes of the lowest priority would hardly ever start.
    patch.setenv("RAY_worker_niceness", "0")
    # The nodes' processes inherit it, and so do their workers.
    patch.setenv("PYTHONPATH", str(Path(__file__).parents[3]), prepend=os.pathsep)
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
    for _ in range(2):
        cluster.add_node(**NODE)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="warning")
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    patch.undo()


@pytest.fixture(scope="session")
def process_of(ray_cluster) -> Callable[[Any, int], tuple[int, str]]:
    """A function that returns the process id and the node id of a shard, once it runs."""
    from ray._private.state import actors

    def find(index: Any, shard: int) -> tuple[int, str]:
        actor_id = index._actors._handles[shard]._actor_id.hex()
        for _ in range(600):
            entry = actors(actor_id)
            if entry.get("State") == "ALIVE":
                return entry["Pid"], entry["Address"]["NodeID"]
            time.sleep(0.1)
        raise TimeoutError(entry)

    return find


@pytest.fixture(scope="session")
def kill_shard(process_of) -> Callable[[Any, int], None]:
    """A function that kills the process of a shard and returns once it is dead."""

    def kill(index: Any, shard: int) -> None:
        _kill(process_of(index, shard)[0])

    return kill


@pytest.fixture(scope="session")
def kill_node(ray_cluster, process_of) -> Callable[[Any, int], str]:
    """A function that removes the node of a shard, with all shards on it, and returns the node's id."""

    def kill(index: Any, shard: int) -> str:
        where = [process_of(index, other) for other in range(index.shards)]
        node_id = where[shard][1]
        node = next(node for node in ray_cluster.worker_nodes if node.node_id == node_id)
        ray_cluster.remove_node(node, allow_graceful=False)
        # On one machine the workers outlive the node's own processes for a while.
        for pid, other_id in where:
            if other_id == node_id:
                _kill(pid)
        return node_id

    return kill


def _kill(pid: int) -> None:
    stat = Path(f"/proc/{pid}/stat")
    try:
        os.kill(pid, signal.SIGKILL)
        while " Z " not in stat.read_text():
            time.sleep(0.01)
    except (FileNotFoundError, ProcessLookupError):
        pass
