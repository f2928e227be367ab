"""Search by radius, answers without near-duplicates and their groups, against NumPy on codes of every width."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from cmfah_hf.retrieval import HashIndex, near_pairs


@st.composite
def near_codes(draw):
    """Packed codes near a few centers: `(N, K / 8)` uint8."""
    octets = draw(st.sampled_from([1, 2, 3, 4, 8, 12, 16, 40, 128]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    centers = rng.integers(0, 256, (draw(st.integers(1, 4)), octets), np.uint8)
    count = draw(st.integers(1, 300))
    flipped = rng.random((count, octets * 8)) < draw(st.sampled_from([0.0, 0.02, 0.2]))
    return centers[rng.integers(len(centers), size=count)] ^ np.packbits(flipped, axis=1, bitorder="little")


def distances_of(codes: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Hamming distances `(Q, N)`, bit by bit."""
    signs, of_queries = (2.0 * np.unpackbits(part, axis=1) - 1 for part in (codes, queries))
    return ((signs.shape[1] - of_queries @ signs.T) / 2).astype(int)


@settings(max_examples=40)
@given(near_codes(), st.data())
def test_all_items_within_a_radius_are_found(codes, data):
    radius = data.draw(st.integers(0, codes.shape[1] * 8))
    index = HashIndex(codes.shape[1] * 8)
    index.add(codes)
    queries = codes[:3]
    for own, result in zip(distances_of(codes, queries), index.search_radius(queries, radius), strict=True):
        expected = sorted((distance, number) for number, distance in enumerate(own.tolist()) if distance <= radius)
        assert list(zip(result.scores.tolist(), result.ids.tolist(), strict=True)) == expected


@settings(max_examples=40)
@given(near_codes(), st.integers(1, 12), st.data())
def test_no_answer_is_within_the_distance_of_a_better_one(codes, k, data):
    bits = data.draw(st.integers(0, codes.shape[1] * 8))
    index = HashIndex(codes.shape[1] * 8)
    index.add(codes)
    between = distances_of(codes, codes)
    (found,) = index.search(codes[:1], k, unique=bits)
    ranking = sorted(range(len(codes)), key=lambda number: (between[0, number], number))
    answers: dict[int, list[int]] = {}
    for number in ranking:
        better = [answer for answer in answers if between[answer, number] <= bits]
        if better:
            answers[better[0]].append(number)
        elif len(answers) == k:
            break
        else:
            answers[number] = []
    assert found.ids.tolist() == list(answers)
    assert [ids.tolist() for ids in found.folded] == list(answers.values())


@settings(max_examples=40)
@given(near_codes(), st.data())
def test_chains_of_near_items_are_groups(codes, data):
    octets = codes.shape[1]
    bits = data.draw(st.integers(0, octets * 8) if octets < 3 else st.integers(0, 9))
    index = HashIndex(octets * 8)
    index.add(codes)
    _, labels = connected_components(csr_matrix(distances_of(codes, codes) <= bits), directed=False)
    members = [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]
    expected = sorted((own for own in members if len(own) > 1), key=lambda own: (-len(own), own[0]))
    assert [ids.tolist() for ids in index.duplicates(bits)] == expected


@pytest.mark.parametrize("radius", [1, 3, 6])
@pytest.mark.parametrize("more", [0, 1, 2, 3])
def test_any_number_of_parts_finds_the_same_pairs(monkeypatch, radius, more):
    rng = np.random.default_rng(radius)
    centers = rng.integers(0, 256, (60, 8), np.uint8)
    flipped = np.packbits(rng.random((400, 64)) < 0.05, axis=1)
    codes = centers[rng.integers(60, size=400)] ^ flipped
    _, labels = connected_components(csr_matrix(distances_of(codes, codes) <= radius), directed=False)
    plan = near_pairs.Plan(radius + more, near_pairs.comb(radius + more, radius), 0)
    monkeypatch.setattr(near_pairs, "choose_plan", lambda *arguments: plan)
    monkeypatch.setattr(near_pairs, "_COMPARED_AT_ONCE", 50)
    shares = []
    found = near_pairs.connected(codes, radius, shares.append)
    assert found.tolist() == [np.flatnonzero(labels == label)[0] for label in labels]
    assert sum(shares) == pytest.approx(1)
    assert len(shares) >= plan.sorts


def test_equal_codes_are_compared_once():
    rng = np.random.default_rng(0)
    codes = np.repeat(rng.integers(0, 256, (40, 8), np.uint8), 5000, axis=0)  # 200,000 items, 5e8 pairs of equal codes
    index = HashIndex(64)
    index.add(codes)
    groups = index.duplicates(3)
    assert [len(ids) for ids in groups] == [5000] * 40
