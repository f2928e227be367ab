"""Runs `IndexConformance` on `HashIndex`."""

import pytest
from retrieval.conformance import BITS, IndexConformance

from cmfah_hf.retrieval.index import HashIndex


class TestHashIndex(IndexConformance):
    """The tests of `IndexConformance`, on one file."""

    @pytest.fixture
    def index(self):
        return HashIndex(BITS)

    @pytest.fixture(params=[False, True], ids=["read", "mapped"])
    def reload(self, request, tmp_path):
        def saved_and_loaded(index):
            index.save(tmp_path / "index")
            return HashIndex.load(tmp_path / "index", mmap=request.param)

        return saved_and_loaded
