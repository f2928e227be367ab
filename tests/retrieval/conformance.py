"""The tests that every implementation of `BaseHashIndex` passes.

A subclass of `IndexConformance` provides two fixtures, `index` and `reload`, and inherits all tests.
"""

from collections.abc import Callable

import numpy as np
import pyarrow.compute as pc
import pytest

from cmfah_hf.errors import HashIndexError, QueryError
from cmfah_hf.retrieval.base import BaseHashIndex
from cmfah_hf.retrieval.codes import pack, unpack

BITS = 16


def tied_values(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Continuous codes of few sign patterns, on a coarse grid, so that scores tie everywhere: `(rows, BITS)`."""
    patterns = rng.normal(size=(max(2, rows // 4), BITS))
    return np.clip(np.round(patterns[rng.integers(len(patterns), size=rows)] * 2) / 4, -1, 1)


def contents(index: BaseHashIndex) -> dict:
    """From each id to its code and its metadata."""
    ids, codes, table = index.ids.tolist(), index.codes.tolist(), index.metadata
    rows = [{}] * len(ids) if table is None else table.to_pylist()
    return {item_id: (tuple(code), row) for item_id, code, row in zip(ids, codes, rows, strict=True)}


def expected_answers(
    items: dict, query: np.ndarray, metric: str, k: int, wanted: Callable[[dict], bool]
) -> list[tuple]:
    """Ids and scores of the `k` nearest in the canonical order, by plain float64 algebra."""
    scored = []
    for item_id, (code, row) in items.items():
        if wanted(row):
            signs = unpack(np.array([code], np.uint8))[0].astype(np.float64)
            if metric == "hamming":
                distance = float((BITS - np.where(query >= 0, 1.0, -1.0) @ signs) / 2)
                scored.append((distance, item_id, distance))
            else:
                score = float(np.round(query * 2**14) / 2**14 @ signs)
                scored.append((-score, item_id, score))
    return [(item_id, score) for _, item_id, score in sorted(scored)[:k]]


def folded_answers(items: dict, ranking: list[tuple], k: int, bits: int) -> list[tuple]:
    """Id, score and ids of folded items of the first `k` answers of a whole ranking, item by item."""
    answers: list[tuple] = []
    for item_id, score in ranking:
        code = np.array(items[item_id][0], np.uint8)
        near = [own for own in answers if np.bitwise_count(np.array(items[own[0]][0], np.uint8) ^ code).sum() <= bits]
        if near:
            near[0][2].append(item_id)
        elif len(answers) == k:
            break
        else:
            answers.append((item_id, score, []))
    return answers


class IndexConformance:
    """The contract of `BaseHashIndex`."""

    @pytest.fixture
    def index(self) -> BaseHashIndex:
        """An empty index of `BITS` bits. It may have held items before, so `next_id` need not be 0."""
        raise NotImplementedError

    @pytest.fixture
    def reload(self) -> Callable[[BaseHashIndex], BaseHashIndex]:
        """A function that saves an index, loads it again and returns the loaded index."""
        raise NotImplementedError

    @pytest.fixture
    def filled(self, index: BaseHashIndex) -> BaseHashIndex:
        """Items 0, 1, 2 with codes of ones and a column `year`."""
        index.add(np.ones((3, BITS)), [0, 1, 2], {"year": [2020, 2021, 2022]})
        return index

    @pytest.mark.parametrize("strings", [False, True])
    def test_every_search_gives_the_canonical_order(self, index, strings):
        rng = np.random.default_rng(3)
        numbers = (rng.permutation(300)[:120] - 150).tolist()
        ids = [f"é{number}" for number in numbers] if strings else numbers
        places = rng.choice(["sea", "town", "wood"], 120).tolist()
        values, queries = tied_values(rng, 120), tied_values(rng, 4)
        for part in (slice(0, 50), slice(50, 120)):
            index.add(values[part], ids[part], {"place": places[part]})
        items = contents(index)
        assert items == {
            item_id: (tuple(code), {"place": place})
            for item_id, code, place in zip(ids, pack(values).tolist(), places, strict=True)
        }
        conditions = [
            (None, lambda row: True),
            ({"place": ["sea", "town"]}, lambda row: row["place"] != "wood"),
            (pc.field("place") == "wood", lambda row: row["place"] == "wood"),
            ({"place": "nowhere"}, lambda row: False),
            (["place>=sea", "place!=town"], lambda row: row["place"] in ("sea", "wood")),
        ]
        for metric, dtype in (("hamming", np.int32), ("aqd", np.float32)):
            for k in (1, 7, 120):
                for where, wanted in conditions:
                    found = index.search(queries, k, metric, where)
                    assert found.scores.dtype == dtype
                    assert found.ids.dtype == (object if strings else np.int64)
                    for row, query in enumerate(queries):
                        expected = expected_answers(items, query, metric, k, wanted)
                        pairs = zip(found.ids[row].tolist(), found.scores[row].tolist(), strict=True)
                        assert list(pairs) == expected
                        assert [hit["metadata"] for hit in found.hits(row)] == [items[name][1] for name, _ in expected]

    def test_one_query_and_packed_queries(self, index):
        rng = np.random.default_rng(5)
        index.add(tied_values(rng, 40), range(40))
        queries = tied_values(rng, 3)
        expected = index.search(queries, 9)
        assert index.search(pack(queries), 9).ids.tolist() == expected.ids.tolist()
        one = index.search(queries[1], 9)
        assert one.ids.tolist() == expected.ids[1:2].tolist()
        assert one.scores.tolist() == expected.scores[1:2].tolist()
        assert one.metadata is None

    @pytest.mark.parametrize("strings", [False, True])
    def test_near_duplicates_of_better_answers_are_folded(self, index, strings):
        rng = np.random.default_rng(8)
        ids = [f"é{number}" for number in range(120)] if strings else list(range(120))
        values, queries = tied_values(rng, 120), tied_values(rng, 3)
        values[20:90] = values[3]  # more equal codes than the first part of a ranking
        index.add(values, ids, {"year": [number % 2 for number in range(120)]})
        items = contents(index)
        for metric in ("hamming", "aqd"):
            for where, wanted in ((None, lambda row: True), ({"year": 1}, lambda row: row["year"] == 1)):
                rankings = [expected_answers(items, query, metric, 120, wanted) for query in queries]
                for k, bits in ((1, 0), (5, 1), (5, 4), (40, 2), (3, BITS)):
                    found = index.search(queries, k, metric, where, unique=bits)
                    expected = [folded_answers(items, ranking, k, bits) for ranking in rankings]
                    assert found.counts.tolist() == [len(answers) for answers in expected]
                    for result, answers in zip(found, expected, strict=True):
                        assert [(hit["id"], hit["score"], hit["folded"]) for hit in result] == answers
                        assert [hit["metadata"] for hit in result] == [items[answer[0]][1] for answer in answers]
        assert index.search(queries[0], 5, unique=1).ids.shape == (1, 5)
        assert index.search(queries, 5, where={"year": 7}, unique=1).ids.shape == (3, 0)
        assert index.search(queries[:0], 5, unique=1).ids.shape == (0, 5)
        for bits in (-1, 17, 2.0, True):
            with pytest.raises(QueryError, match="unique must be a whole number of bits from 0 to 16"):
                index.search(queries, 5, unique=bits)

    @pytest.mark.parametrize("strings", [False, True])
    def test_search_by_radius_finds_all_items_within_it(self, index, strings):
        rng = np.random.default_rng(4)
        numbers = (rng.permutation(300)[:90] - 150).tolist()
        ids = [f"é{number}" for number in numbers] if strings else numbers
        values, queries = tied_values(rng, 90), tied_values(rng, 4)
        index.add(values, ids, {"year": [number % 3 for number in range(90)]})
        index.remove(ids[:5])
        items = contents(index)
        for radius in (0, 3, BITS // 2, BITS):
            for where, wanted in ((None, lambda row: True), ({"year": [0, 2]}, lambda row: row["year"] != 1)):
                found = index.search_radius(queries, radius, where)
                assert len(found) == 4
                for query, result in zip(queries, found, strict=True):
                    expected = [
                        (item_id, distance)
                        for item_id, distance in expected_answers(items, query, "hamming", 90, wanted)
                        if distance <= radius
                    ]
                    assert list(zip(result.ids.tolist(), result.scores.tolist(), strict=True)) == expected
                    assert [hit["metadata"] for hit in result] == [items[name][1] for name, _ in expected]
                    assert (result.scores.dtype, result.ids.dtype) == (np.int32, object if strings else np.int64)
        total = sum(len(result) for result in index.search_radius(pack(queries), 3, limit=360))
        assert len(index.search_radius(queries, 3, limit=total)) == 4
        with pytest.raises(QueryError, match=f"More than {total - 1} items lie within 3 bits"):
            index.search_radius(queries, 3, limit=total - 1)

    @pytest.mark.parametrize("strings", [False, True])
    def test_near_duplicates_are_grouped(self, index, strings):
        names = [f"{number:02}" if strings else number for number in range(12)]
        codes = np.array([0, 1, 3, 7, 0, 255, 254, 0xF0, 0x0F, 0xAA, 0x55, 0], np.uint8)[:, None]
        index.add(np.hstack([codes, 7 * codes]), names)
        index.remove(names[11:])
        groups = [[names.index(item_id) for item_id in ids.tolist()] for ids in index.duplicates(0)]
        assert groups == [[0, 4]]
        near = np.array(
            [[bin((a ^ b) | ((7 * a ^ 7 * b) & 255) << 8).count("1") for a in range(256)] for b in range(256)]
        )
        chained = [{number} for number in range(11)]
        for bits in (2, 5):
            for a in range(11):
                for b in range(a):
                    if near[codes[a, 0], codes[b, 0]] <= bits and chained[a] is not chained[b]:
                        chained[a] |= chained[b]
                        for member in chained[a]:
                            chained[member] = chained[a]
            expected = sorted(
                {tuple(sorted(group)) for group in chained if len(group) > 1}, key=lambda own: (-len(own), own)
            )
            groups = index.duplicates(bits)
            assert [tuple(names.index(item_id) for item_id in ids.tolist()) for ids in groups] == expected
        with pytest.raises(QueryError, match="bits must be a whole number of bits from 0 to 16, not -1"):
            index.duplicates(-1)

    def test_approximate_search_finds_near_items(self, index):
        rng = np.random.default_rng(6)
        index.add(tied_values(rng, 200), range(200))
        queries = tied_values(rng, 5)
        found = index.search(queries, 10, exact=False, probes=200)
        assert found.ids.shape == (5, 10)
        assert index.measure_recall(queries, 10, probes=200) == 1
        assert 0 <= index.measure_recall(queries, 10, "aqd", probes=1) <= 1

    def test_optimizing_changes_no_results(self, filled):
        before = filled.search(np.ones(BITS), 3)
        filled.optimize()
        assert filled.search(np.ones(BITS), 3).ids.tolist() == before.ids.tolist()

    def test_changes_are_visible_in_every_view_of_the_items(self, index):
        ones, minus = tuple(pack(np.ones((1, BITS)))[0].tolist()), tuple(pack(-np.ones((1, BITS)))[0].tolist())
        index.add(np.ones((4, BITS)), ["a", "b", "c", "d"], {"year": [1, 2, 3, 4], "place": ["p"] * 4})
        assert index.id_type == "str"
        index.update(["b"], -np.ones((1, BITS)))
        index.update(["c"], metadata={"year": [30]})
        index.remove(["a"])
        index.upsert(-np.ones((2, BITS)), ["d", "e"], {"year": [40, 50]})
        assert contents(index) == {
            "b": (minus, {"year": 2, "place": "p"}),
            "c": (ones, {"year": 30, "place": "p"}),
            "d": (minus, {"year": 40, "place": None}),
            "e": (minus, {"year": 50, "place": None}),
        }
        assert len(index) == 4
        assert index.holds(["a", "b", "e"]).tolist() == [False, True, True]
        assert ["a" in index, "d" in index, 4 in index, None in index] == [False, True, False, False]

    def test_assigned_ids_are_never_reused(self, index):
        first = index.next_id
        index.add(np.ones((3, BITS)))
        assert sorted(index.ids.tolist()) == [first, first + 1, first + 2]
        index.remove([first + 1, first + 2])
        index.add(np.ones((1, BITS)))
        index.add(np.ones((1, BITS)), [first + 40])
        index.add(np.ones((1, BITS)))
        assert sorted(index.ids.tolist()) == [first, first + 3, first + 40, first + 41]
        assert index.next_id == first + 42

    def test_string_ids_are_not_assigned_mixed_or_duplicated(self, index):
        index.add(np.ones((3, BITS)), ["a", "b", "c"])
        for ids, message in ((["d", "a"], "id 'a' already"), ([1, 2], "strings, id 1 is not"), (None, "give `ids`")):
            with pytest.raises(HashIndexError, match=message):
                index.add(np.ones((2, BITS)), ids)
        assert sorted(index.ids.tolist()) == ["a", "b", "c"]

    def test_an_emptied_index_accepts_another_id_type_and_other_columns(self, index):
        index.add(np.ones((2, BITS)), ["a", "b"], {"year": [1, 2]})
        index.remove(["a", "b"])
        assert (len(index), index.id_type, index.metadata) == (0, None, None)
        assert index.ids.shape == (0,)
        assert index.codes.shape == (0, BITS // 8)
        index.add(np.ones((1, BITS)), [7], {"year": ["text"]})
        assert index.id_type == "int"
        assert "a" not in index
        assert contents(index)[7][1] == {"year": "text"}

    def test_reloaded_index_is_equal(self, index, reload):
        rng = np.random.default_rng(9)
        index.add(tied_values(rng, 30), range(30), {"year": list(range(30))})
        index.remove([4, 9])
        index.model = "0" * 32
        again = reload(index)
        assert isinstance(again, BaseHashIndex)
        assert (again.bits, again.next_id, again.id_type, again.model) == (BITS, index.next_id, "int", "0" * 32)
        assert contents(again) == contents(index)
        queries = tied_values(rng, 3)
        for metric in ("hamming", "aqd"):
            before, after = index.search(queries, 28, metric), again.search(queries, 28, metric)
            assert after.ids.tolist() == before.ids.tolist()
            assert after.scores.tobytes() == before.scores.tobytes()
            assert after.metadata.equals(before.metadata)

    @pytest.mark.parametrize("name", ["ids", "codes"])
    def test_arrays_of_the_index_are_read_only(self, filled, name):
        with pytest.raises(ValueError, match="read-only"):
            getattr(filled, name)[0] = 5

    @pytest.mark.parametrize(
        ("act", "message"),
        [
            (lambda index: index.add(np.ones((1, 32))), "32 bits, the index has 16"),
            (lambda index: index.add(np.ones((1, 4), np.uint8)), "32 bits, the index has 16 .*eight bits a byte"),
            (lambda index: index.add(np.full((1, BITS), -np.inf)), "Row 0 .*infinity"),
            (lambda index: index.add(np.ones((3, BITS)), [7, 2.5, 8]), "not 2.5"),
            (lambda index: index.add(np.ones((3, BITS)), [7, True, 8]), "not True"),
            (lambda index: index.add(np.ones((3, BITS)), [7, 2**70, 8]), "64 bits"),
            (lambda index: index.add(np.ones((3, BITS)), "abc"), "'abc'"),
            (lambda index: index.add(np.ones((2, BITS)), [7, 7]), "Id 7 comes twice"),
            (lambda index: index.add(np.ones((2, BITS)), [7, 2]), "id 2 already"),
            (lambda index: index.add(np.ones((1, BITS)), ["x"]), "integers, id 'x' is not"),
            (lambda index: index.add(np.ones((3, BITS)), [7, "x", 8]), "one kind"),
            (lambda index: index.add(np.ones((2, BITS)), [7]), "2 codes came with 1 ids"),
            (lambda index: index.add(np.ones((1, BITS)), [7], {"year": ["text"]}), "metadata does not fit"),
            (lambda index: index.add(np.ones((1, BITS)), [7], {"year": [1, 2]}), "2 values for 1 items"),
            (lambda index: index.remove([0, 99]), "no id 99"),
            (lambda index: index.remove(["0"]), "no id '0'"),
            (lambda index: index.remove([1, 2, 1]), "Id 1 comes twice"),
            (lambda index: index.update([1, 9], np.ones((2, BITS))), "no id 9, so it cannot be updated"),
            (lambda index: index.update([1], np.ones((2, BITS))), "2 codes came with 1 ids"),
            (lambda index: index.update([1, 1], np.ones((2, BITS))), "Id 1 comes twice"),
            (lambda index: index.upsert(np.ones((2, BITS)), [7, 7]), "Id 7 comes twice"),
            (lambda index: index.upsert(np.ones((1, BITS)), ["a"]), "integers, id 'a' is not"),
            (lambda index: index.search(np.ones((1, 24))), "24 bits, the index has 16"),
            (lambda index: index.search(np.ones((1, 24)), metric="aqd"), "24 bits, the index has 16"),
            (
                lambda index: index.search(np.ones((1, 2), np.uint8), metric="aqd"),
                "AQD ranks by the query.s continuous codes",
            ),
            (lambda index: index.search(np.full((1, BITS), np.nan)), "Row 0 .*NaN"),
            (lambda index: index.search(np.full((1, BITS), np.inf)), "Row 0 .*infinity"),
            (lambda index: index.search(np.full((1, BITS), np.inf), metric="aqd"), "Row 0"),
            (lambda index: index.search(np.ones((1, 1, BITS))), "shape"),
            (lambda index: index.search(3.0, metric="aqd"), "shape"),
        ],
    )
    def test_a_refused_call_names_the_error_and_changes_nothing(self, filled, act, message):
        before = contents(filled), filled.next_id
        with pytest.raises(HashIndexError, match=message):
            act(filled)
        assert (contents(filled), filled.next_id) == before

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"k": 0}, "k must be .* not 0"),
            ({"k": -3}, "k must be .* not -3"),
            ({"k": True}, "not True"),
            ({"k": 2.0}, "not 2.0"),
            ({"probes": 0}, "probes must be .* not 0"),
            ({"metric": "cosine"}, "'cosine'"),
            ({"where": {"color": "red"}}, "no metadata column 'color'"),
            ({"where": {"year": "red"}}, "has no meaning for the columns year"),
            ({"where": 3}, "A condition is"),
        ],
    )
    def test_a_zero_query_is_rejected(self, filled, arguments, message):
        with pytest.raises(QueryError, match=message):
            filled.search(np.ones((1, BITS)), **arguments)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((-1,), "radius must be a whole number of bits from 0 to 16, not -1"),
            ((17,), "from 0 to 16, not 17"),
            ((1.0,), "not 1.0"),
            ((True,), "not True"),
            ((1, None, 0), "limit must be a whole number of at least 1, not 0"),
            ((1, {"color": "red"}), "no metadata column 'color'"),
        ],
    )
    def test_a_radius_out_of_range_is_rejected(self, filled, arguments, message):
        with pytest.raises(QueryError, match=message):
            filled.search_radius(np.ones((1, BITS)), *arguments)
        with pytest.raises(HashIndexError, match="24 bits, the index has 16"):
            filled.search_radius(np.ones((1, 24)), 3)

    def test_an_empty_index_cannot_be_searched(self, index):
        with pytest.raises(HashIndexError, match="empty"):
            index.search_radius(np.ones(BITS), 2)
        for exact in (True, False):
            with pytest.raises(HashIndexError, match="empty"):
                index.search(np.ones(BITS), exact=exact)

    def test_recall_needs_a_query(self, filled):
        with pytest.raises(QueryError, match="at least one query"):
            filled.measure_recall(np.empty((0, BITS)))

    def test_k_above_the_number_of_items_returns_all_with_a_warning(self, filled, caplog):
        with caplog.at_level("WARNING"):
            assert filled.search(np.ones(BITS), 10).ids.tolist() == [[0, 1, 2]]
        assert "k = 10" in caplog.text
        assert "3 items" in caplog.text
