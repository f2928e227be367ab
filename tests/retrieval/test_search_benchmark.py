"""`benchmarks/search.py` on few codes: correct answers of all contestants, correct counts and reports."""

import json
import math
import os
import re
import subprocess
import sys
import time
import types
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from cmfah_hf.retrieval.codes import pack, unpack

FOLDER = Path(__file__).parents[2] / "benchmarks"
ITEMS = 20_000


@pytest.fixture(scope="module")
def modules():
    """`search.py` and its modules, imported as if it ran as a script."""
    names = ("search", "contests", "contestants")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        import contestants
        import contests
        import search

        yield types.SimpleNamespace(search=search, contests=contests, contestants=contestants)
        for name in names:
            del sys.modules[name]


@pytest.fixture
def settings(modules):
    def make(*arguments):
        sizes = ["--items", ITEMS, "--small", 5000, "--clusters", 100, "--singles", 3, "--batch", 8, "--repeats", 2]
        return modules.search.parse([str(argument) for argument in (*sizes, *arguments)])

    return make


@pytest.fixture
def seen(modules, monkeypatch):
    """Records the answers of every row's contestants: `(row, contestants, answers)`."""
    kept, inner = [], modules.contests.contest

    def contest(own, contestants, check, **row):
        def keep(answers):
            kept.append((row, contestants, answers))
            return check(answers)

        return inner(own, contestants, keep, **row)

    monkeypatch.setattr(modules.search, "contest", contest)
    return kept


def best_scores(codes, values, k, metric):
    """The k best scores of each query by plain float64 algebra."""
    queries = np.where(values >= 0, 1.0, -1.0) if metric == "hamming" else values.astype(np.float64)
    products = queries @ unpack(codes).T.astype(np.float64)
    if metric == "hamming":
        return np.sort((values.shape[1] - products) / 2, axis=1)[:, :k]
    return -np.sort(-products, axis=1)[:, :k]


def drawn(modules, own, queries=None):
    codes, values, _ = modules.search.draw(own, own.items, queries or own.batch)
    return codes, values


def test_codes_and_queries_scatter_around_their_centers(modules):
    make = modules.contests.Codes
    one = make(64, "clustered", clusters=1, seed=3)
    center = unpack(one.centers)[0]
    codes, values = one.items(20_000), one.queries(5000)
    assert (codes.shape, codes.dtype, values.dtype) == ((20_000, 8), np.uint8, np.float32)
    assert np.mean(unpack(codes) != center) == pytest.approx(1 / 8, abs=0.002)
    wrong = np.sign(values) != center
    assert wrong.mean() == pytest.approx(1 / 8, abs=0.005)
    assert np.abs(values)[wrong].mean() < np.abs(values)[~wrong].mean() / 1.5
    assert np.abs(values).min() > 0
    assert np.array_equal(values * 2**14, np.rint(values * 2**14))
    assert np.array_equal(make(64, "clustered", clusters=1, seed=3).items(20_000), codes)
    # Uniform bits: half are set, and no two bits agree more often than by chance.
    signs = unpack(make(32, "uniform", clusters=1, seed=0).items(20_000)).astype(np.float64)
    assert np.abs(signs.T @ signs / len(signs) - np.eye(32)).max() < 0.03


def test_turns_alternate_and_the_first_is_warm_up(modules, monkeypatch):
    order, clock = [], count()
    monkeypatch.setitem(modules.contests.CLOCKS, "wall", lambda: next(clock))
    runs = {"a": lambda: order.append("a"), "b": lambda: order.append("b") or next(clock)}
    seconds = modules.contests.in_turns(runs, repeats=3)
    assert "".join(order) == "ba" + "ab" + "ba" + "ab"
    assert seconds == {"a": [1, 1, 1], "b": [2, 2, 2]}
    # A sleeping process uses no CPU time.
    sleepers = {"a": lambda: time.sleep(0.2)}
    assert modules.contests.in_turns(sleepers, repeats=1, clock="cpu")["a"][0] < 0.1


def test_a_row_compares_with_the_fastest_competitor(modules, monkeypatch):
    """Ratios are per turn, and rates use the number of queries in a turn."""
    turns = {"ours": [1, 2, 4], "quick": [3, 4, 20], "slow": [30, 40, 50]}
    monkeypatch.setattr(modules.contests, "in_turns", lambda runs, repeats, clock: turns)
    asked = {name: [] for name in turns}

    def contestant(name):
        def search(queries):
            asked[name].append(queries.tolist())
            return queries[:, None], queries[:, None]

        return modules.contests.Contestant(search, np.arange(8))

    for at_once, batches in ((1, [[0], [1], [2]]), (8, [list(range(8))])):
        own = types.SimpleNamespace(singles=3, repeats=3, clock="wall")
        row = {"what": "it", "items": 9, "at_once": at_once, "k": 1, "bar": 3.0}
        found = modules.contests.contest(
            own, {name: contestant(name) for name in turns}, lambda answers: str(sorted(answers)), **row
        )
        assert asked == dict.fromkeys(turns, batches)
        assert (found.contestant, found.ratios, found.ratio) == ("quick", [3, 2, 5], 3)
        queries = sum(map(len, batches))
        assert (found.ours, found.theirs) == (queries / 2, queries / 4)
        assert (found.reached, found.remark) == (True, "['ours', 'quick', 'slow']")
        for calls in asked.values():
            calls.clear()
    found.bar = 3.5
    assert not found.reached
    assert found.as_dict()["ratio"] == 3
    assert not modules.contests.Figure("it", 9, 2.0, "seconds", 1.0).as_dict()["reached"]


@pytest.mark.parametrize("metric", ["hamming", "aqd"])
def test_wrong_answers_are_rejected(modules, settings, metric):
    own = settings("--items", 300)
    codes, values = drawn(modules, own)
    index = modules.contests.indexed(codes)
    ids, scores = modules.contests.searching(index, 20, metric)(values)
    check = modules.contests.check_equal
    assert np.array_equal(scores, best_scores(codes, values, 20, metric))
    check(codes, values, metric, {"one": (ids, scores), "other": (ids.copy(), scores.copy())})

    off = scores.copy()
    off[2, 5] += 1 if metric == "hamming" else 2.0**-14
    with pytest.raises(AssertionError, match="other: other scores"):
        check(codes, values, metric, {"one": (ids, scores), "other": (ids, off)})
    with pytest.raises(AssertionError, match="other: its items score otherwise"):
        check(codes, values, metric, {"one": (ids, scores), "other": (np.roll(ids, 1, axis=0), scores)})
    if metric == "hamming":  # tied items are interchangeable, but must not repeat
        row, place = np.argwhere(np.diff(scores, axis=1) == 0)[0]
        twice, swapped = ids.copy(), ids.copy()
        twice[row, place + 1] = twice[row, place]
        swapped[row, [place, place + 1]] = swapped[row, [place + 1, place]]
        with pytest.raises(AssertionError, match="other: an item comes twice"):
            check(codes, values, metric, {"one": (ids, scores), "other": (twice, scores)})
        check(codes, values, metric, {"one": (ids, scores), "other": (swapped, scores)})
        with pytest.raises(AssertionError, match="other items among those that tie"):
            modules.contests.check_same_items(codes, values, metric, {"one": (ids, scores), "other": (swapped, scores)})


@pytest.mark.parametrize("kind", ["clustered", "uniform"])
def test_products_give_the_exact_top(modules, settings, kind):
    own = settings("--items", 3000, "--codes", kind)
    codes, values = drawn(modules, own)
    signs, expected = unpack(codes).astype(np.float32), best_scores(codes, values, 100, "aqd")
    assert np.array_equal(modules.contests.exact_top(codes, values, 100), expected)
    for ids, scores in (
        modules.contestants.product_by_numpy(signs, 100, values),
        modules.contestants.product_by_torch(torch.from_numpy(signs), 100, torch.from_numpy(values)),
    ):
        assert np.array_equal(scores, expected)
        assert np.array_equal(np.take_along_axis(values.astype(np.float64) @ signs.T, ids, 1), expected)


@pytest.mark.parametrize("bits", [64, 128])
def test_kernels_count_codes_within_a_distance(modules, settings, bits):
    codes, values = drawn(modules, settings("--bits", bits))
    for query in values[:2]:
        distances = (bits - np.sign(query.astype(np.float64)) @ unpack(codes).T) / 2
        for within in (bits // 4, bits // 2):
            expected = int((distances <= within).sum())
            assert 0 < expected < ITEMS
            kernels = modules.contestants.counting_kernels(codes, within)
            counts = {name: kernel(pack(query[None])[0]) for name, kernel in kernels.items()}
            assert counts == dict.fromkeys(["kernel, numba", "hamming_count_thres", "kernel, NumPy"], expected)


def test_rescored_search_uses_the_same_codes(modules, settings):
    """If all items are candidates it finds the exact top, so the bit order is as expected."""
    pytest.importorskip("sentence_transformers")
    import faiss

    codes, values = drawn(modules, settings("--items", 40))
    flat = faiss.IndexBinaryFlat(64)
    flat.add(np.packbits(unpack(codes) > 0, axis=1))
    ids, scores = modules.contestants.rescored_search()(flat, 10, values)
    expected = best_scores(codes, values, 10, "aqd")
    assert np.array_equal(modules.contests.scores_anew(codes, values, ids, "aqd"), expected)
    # The product with bits of 0 and 1.
    np.testing.assert_allclose(2 * scores - values.astype(np.float64).sum(axis=1, keepdims=True), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["clustered", "uniform"])
@pytest.mark.parametrize("section", ["aqd", "hamming"])
def test_exact_rows_have_equal_answers(modules, settings, seen, section, kind):
    own = settings("--codes", kind, *(["--large", 30_000] if section == "hamming" else []))
    rows = list(getattr(modules.search, section)(own))
    sizes = [ITEMS] if section == "aqd" else [ITEMS, 30_000]
    asked = [(items, at_once, k) for items in sizes for at_once in (1, 8) for k in (10, 100)]
    assert [(row.items, row.at_once, row.k) for row in rows] == asked
    names = {"aqd": ["HashIndex", "product, NumPy", "product, PyTorch"], "hamming": ["HashIndex", "IndexBinaryFlat"]}
    for row, (_, contestants, answers) in zip(rows, seen, strict=True):
        codes, values, _ = modules.search.draw(own, row.items, own.batch)
        queries = values[: 3 if row.at_once == 1 else 8]
        assert list(contestants) == list(answers) == names[section]
        expected = best_scores(codes, queries, row.k, section)
        for ids, scores in answers.values():
            assert np.array_equal(scores, expected)
            assert ids.shape == expected.shape
        assert row.contestant in names[section][1:]
        assert (len(row.ratios), row.bar) == (2, None)


def test_limit_and_rescoring_rows(modules, settings, seen):
    pytest.importorskip("sentence_transformers")
    own = settings("--large", 30_000)
    for row, items in zip(modules.search.limit(own), (ITEMS, 30_000), strict=True):
        assert (row.items, row.at_once, row.k) == (items, 1, 10)
        assert row.remark == f"{row.ratio:.0%} of the limit"
        codes, values, _ = modules.search.draw(own, items, own.singles)
        _, _, answers = seen.pop()
        counts = (best_scores(codes, values, items, "hamming") <= 16).sum(axis=1)
        for name in ("kernel, numba", "hamming_count_thres", "kernel, NumPy"):
            assert answers[name][1].ravel().tolist() == counts.tolist()
    rows = list(modules.search.rescoring(own))
    asked = [(items, at_once, k) for items in (5000, ITEMS) for at_once in (1, 8) for k in (10, 100)]
    assert [(row.items, row.at_once, row.k) for row in rows] == asked
    for row, (_, _, answers) in zip(rows, seen, strict=True):
        codes, values, _ = modules.search.draw(own, row.items, own.batch)
        queries = values[: 3 if row.at_once == 1 else 8]
        exact = best_scores(codes, queries, row.k, "aqd")
        assert np.array_equal(answers["HashIndex"][1], exact)
        found = np.take_along_axis(queries.astype(np.float64) @ unpack(codes).T, answers["sentence-transformers"][0], 1)
        share = np.mean(found >= exact[:, -1:])
        assert 0.5 < share <= 1
        assert row.remark == f"finds 100.0% against {share:.1%}"


def test_float_rows_report_sizes_and_recall(modules, settings, seen):
    rows = list(modules.search.floats(settings("--float-items", 2000)))
    names = [(name, at_once) for name in ("IndexFlatIP", "IndexHNSWFlat") for at_once in (1, 8)]
    assert [(row.contestant, row.at_once) for row in rows] == names
    for row, (_, contestants, answers) in zip(rows, seen, strict=True):
        ours, theirs = (int(size.replace(",", "")) for size in re.findall(r"(?<![\d.])[\d,]+(?= bytes|;)", row.remark))
        assert 8 <= ours < 100
        assert theirs >= 512 * 4
        if row.contestant == "IndexFlatIP":
            assert (theirs, row.remark.split()[-1]) == (2048, "100.0%")
            np.testing.assert_allclose(np.linalg.norm(contestants["IndexFlatIP"].queries, axis=1), 1, rtol=1e-5)
        else:
            flat_ids, hnsw_ids = seen[0 if row.at_once == 1 else 1][2]["IndexFlatIP"][0], answers["IndexHNSWFlat"][0]
            share = np.mean([np.isin(found, exact) for found, exact in zip(hnsw_ids, flat_ids, strict=True)])
            assert f"finds {share:.1%}" in row.remark


def test_approximate_rows_print_the_recall(modules, settings, seen):
    own = settings()
    rows = list(modules.search.approximate(own))
    assert [(row.what, row.at_once, row.k) for row in rows] == [
        (what, at_once, k) for what in ("Hamming", "AQD") for at_once in (1, 8) for k in (10, 100)
    ]
    codes, values = drawn(modules, own)
    for row, (_, _, answers) in zip(rows, seen, strict=True):
        if row.at_once == 8:
            metric = row.what.lower()
            expected = best_scores(codes, values, row.k, metric)
            assert np.array_equal(answers["exact"][1], expected)
            scores, last = answers["approximate"][1], expected[:, -1:]  # by score: tied items are interchangeable
            recall = np.mean(scores <= last if metric == "hamming" else scores >= last)
            assert re.fullmatch(rf"recall {recall:.1%}, lists built in [\d.]+ s", row.remark)


def test_bars_apply_to_the_intended_sizes(modules, settings):
    bar, own = modules.search.bar, settings()
    assert [bar(own, 1.7, items) for items in (999_999, 1_000_000)] == [None, 1.7]
    assert [bar(own, 1.5, items, 10_000_000) for items in (1_000_000, 10_000_000)] == [None, 1.5]
    assert bar(settings("--bits", 128), 1.7, 1_000_000) is None


def test_threads_are_set_before_the_libraries_are_loaded(modules, monkeypatch):
    """If the environment differs, the script restarts itself with the same arguments."""
    found = []

    def execve(path, arguments, environment):
        found.append((path, arguments, environment))
        raise SystemExit

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(sys, "argv", ["search.py", "--threads", "3"])
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with pytest.raises(SystemExit):
        modules.search.main()
    ((path, arguments, environment),) = found
    assert (path, arguments) == (sys.executable, sys.orig_argv)
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    assert [environment[name] for name in names] == ["3"] * 4


class Missing:
    """An import hook that hides some packages."""

    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_section_without_its_library_is_skipped_and_named(modules, monkeypatch, capsys):
    threads = torch.get_num_threads()
    for name in modules.search.THREAD_SETTINGS:
        monkeypatch.setenv(name, str(threads))
    missing = ("sentence_transformers", "ray")
    for name in [name for name in sys.modules if name.partition(".")[0] in missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(missing), *sys.meta_path])
    sections = ["rescoring", "shards", "aqd"]
    sizes = ["--items=500", "--singles=2", "--batch=2", "--repeats=1", f"--threads={threads}"]
    monkeypatch.setattr(sys, "argv", ["search.py", "--only", *sections, *sizes, "--json"])
    modules.search.main()
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["skipped"] == {
        "rescoring": "sentence-transformers is not installed",
        "shards": "ray is not installed",
    }
    assert list(found["sections"]) == ["aqd"]
    assert "rescoring: skipped, sentence-transformers is not installed." in printed.err
    monkeypatch.setattr(sys, "argv", ["search.py", "--only", "limit", "--bits=40", *sizes, "--json"])
    modules.search.main()
    assert "40 bits" in json.loads(capsys.readouterr().out)["skipped"]["limit"]


def run_script(folder, *arguments):
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
    sizes = ["--repeats", "1", "--singles", "2", "--batch", "4", "--json"]
    run = subprocess.run(
        [sys.executable, str(FOLDER / "search.py"), *arguments, *sizes],
        capture_output=True, text=True, cwd=folder, timeout=280, env=os.environ | threads,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert list(folder.iterdir()) == []
    return json.loads(run.stdout), run.stderr


@pytest.mark.slow
def test_the_script_prints_tables_and_json(tmp_path):
    found, tables = run_script(tmp_path, "--only", "hamming", "memory", "--items", "200000")
    assert found["environment"]["threads"] == 1
    rows = found["sections"]["hamming"]
    assert [(row["items"], row["k"]) for row in rows] == [(200_000, 10), (200_000, 100)] * 2
    for row in rows:
        assert re.search(rf"│ +{row['ratio']:.2f} │", tables)
        assert all(map(math.isfinite, (row["ours"], row["theirs"])))
    figures = {row["what"]: row["value"] for row in found["sections"]["memory"]}
    assert figures["codes"] == 8
    assert 8 <= figures["file"] < 40
    assert 8 <= figures["process, mapped from the file, after both"] < 200
    seconds = [value for name, value in figures.items() if "mmap" in name or "first" in name]
    assert len(seconds) == 3
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


@pytest.mark.slow
def test_shards_rows_report_milliseconds(tmp_path):
    """The script fails if the answers of the shards differ from those of the single index."""
    pytest.importorskip("ray")
    found, _ = run_script(tmp_path, "--only", "shards", "--items", str(ITEMS), "--shard-batch", "6")
    rows = found["sections"]["shards"]
    asked = [(f"2 shards, {what}", at_once) for what in ("Hamming", "AQD") for at_once in (1, 4, 6)]
    assert [(row["what"], row["at_once"]) for row in rows] == asked
    for row in rows:
        ours, theirs = (1000 * row["at_once"] / row[side] for side in ("ours", "theirs"))
        call, _, most = row["remark"].partition("; ")
        assert call == f"a call: {ours:.2f} ms against {theirs:.2f}, {ours - theirs:+.2f}"
        assert bool(most) == (row["at_once"] > 1)
        if most:
            # The ratio is not predictable: one turn of a few microseconds on a shared machine.
            assert re.fullmatch(r"2 processes do \d+\.\d\d times the work of one here", most)
