"""Search by radius, and answers without near-duplicates, against NumPy on codes of every width."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cmfah_hf.retrieval import HashIndex


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
    bits, of_queries = np.unpackbits(codes, axis=1), np.unpackbits(queries, axis=1)
    return (of_queries[:, None] != bits[None]).sum(axis=-1)


@settings(max_examples=60)
@given(near_codes(), st.data())
def test_all_items_within_a_radius_are_found(codes, data):
    radius = data.draw(st.integers(0, codes.shape[1] * 8))
    index = HashIndex(codes.shape[1] * 8)
    index.add(codes)
    queries = codes[:3]
    for own, result in zip(distances_of(codes, queries), index.search_radius(queries, radius), strict=True):
        expected = sorted((distance, number) for number, distance in enumerate(own.tolist()) if distance <= radius)
        assert list(zip(result.scores.tolist(), result.ids.tolist(), strict=True)) == expected


@settings(max_examples=60)
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
