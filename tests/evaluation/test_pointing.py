import numpy as np
import pytest
import torch

from cmfah_hf.errors import QueryError
from cmfah_hf.evaluation.pointing import pointing_game

LEFT, RIGHT_TOP = (0, 0, 50, 100), (50, 0, 100, 50)


def peaks(*regions, count=16):
    weights = np.full((count, len(regions)), 0.01)
    weights[list(regions), range(len(regions))] = 0.5
    return weights


def test_the_strongest_region_must_be_in_a_box_of_the_word():
    # A 4 x 4 grid over 100 x 100: region 4 is row 1, column 0; region 7 is row 1, column 3.
    result = pointing_game(peaks(4, 7, 7), ["dog", "car", "the"], {"dog": [LEFT], "car": [LEFT]}, (100, 100))
    assert result == (1, 2, 0.5)
    hits, total, chance = pointing_game(peaks(4, 7), ["dog", "car"], [[LEFT], [LEFT, RIGHT_TOP]], (100, 100))
    assert (hits, total) == (2, 2)
    assert chance == pytest.approx((8 / 16 + 12 / 16) / 2)


def test_overlapping_boxes_count_once():
    assert pointing_game(peaks(0), ["dog"], [[LEFT, LEFT]], (100, 100)).chance == 0.5


def test_grid_and_image_need_not_be_square():
    # 2 rows of 3 over 300 x 100: centers at x = 50, 150, 250 and y = 25, 75.
    box = (200, 50, 300, 100)
    for region in range(6):
        result = pointing_game(peaks(region, count=6), ["dog"], [[box]], (300, 100), region_grid=(2, 3))
        assert result == (float(region == 5), 1, pytest.approx(1 / 6))


def test_a_grid_over_a_part_of_the_image():
    # 2 rows of 2 over the middle 100 x 100 of 300 x 100: centers at x = 125, 175 and y = 25, 75.
    options = {"region_grid": (2, 2), "seen": (100, 0, 200, 100)}
    for region in range(4):
        result = pointing_game(peaks(region, count=4), ["dog"], [[(170, 70, 180, 80)]], (300, 100), **options)
        assert result == (float(region == 3), 1, 1 / 4)


def test_uniform_attention_scores_chance():
    result = pointing_game(torch.full((16, 2), 1 / 16), ["a", "b"], [[LEFT], [RIGHT_TOP]], (100, 100))
    assert result.hits == pytest.approx(result.chance * result.total)


def test_random_pointing_scores_chance():
    rng = np.random.default_rng(0)
    hits = chance = 0.0
    for _ in range(1500):
        left, top = rng.uniform(0, 60, 2)
        result = pointing_game(rng.random((49, 1)), ["x"], [[(left, top, left + 40, top + 30)]], (100, 100))
        hits, chance = hits + result.hits, chance + result.chance
    assert abs(hits - chance) < 4 * np.sqrt(chance)


def test_words_without_a_box_are_skipped():
    assert pointing_game(peaks(4), ["the"], {"dog": [LEFT]}, (100, 100)) == (0, 0, 0)
    assert pointing_game(peaks(4), ["the"], {"the": []}, (100, 100)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((peaks(1, 2), ["dog"], [[LEFT]], (9, 9)), r"\(16, 2\) do not fit 1 words"),
        ((peaks(1, count=15), ["dog"], [[LEFT]], (9, 9)), "15 regions are no 3 x 3 grid"),
        ((peaks(1) * np.nan, ["dog"], [[LEFT]], (9, 9)), "NaN"),
        ((peaks(1), ["dog"], [[LEFT], [LEFT]], (9, 9)), "2 lists of boxes came with 1 words"),
        ((peaks(1), ["dog"], {"dog": LEFT}, (9, 9)), "A box of 'dog' is 0"),
    ],
)
def test_errors_name_the_mismatch(arguments, message):
    with pytest.raises(QueryError, match=message):
        pointing_game(*arguments)
