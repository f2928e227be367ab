"""Runs `IndexConformance` on `ShardedHashIndex`."""

import pytest
from retrieval.conformance import BITS, IndexConformance

pytest.importorskip("ray")

from cmfah_hf.retrieval import ShardedHashIndex

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def shared(ray_cluster, tmp_path_factory):
    """One index for all tests: starting processes takes seconds."""
    with ShardedHashIndex(BITS, 3, folder=tmp_path_factory.mktemp("shared"), num_cpus=0.5) as index:
        yield index


class TestShardedHashIndex(IndexConformance):
    """The tests of `IndexConformance`, on three shards."""

    @pytest.fixture
    def index(self, shared):
        shared.remove(shared.ids)
        shared.model = None
        return shared

    @pytest.fixture
    def reload(self):
        opened = []

        def saved_and_loaded(index):
            index.save()
            opened.append(ShardedHashIndex.load(index.folder, num_cpus=0.5))
            return opened[-1]

        yield saved_and_loaded
        for index in opened:
            index.close()
