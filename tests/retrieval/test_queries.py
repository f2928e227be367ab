"""Queries of several weighted terms: how they are written, combined and refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmfah_hf.errors import QueryError
from cmfah_hf.retrieval.queries import query_values
from cmfah_hf.retrieval.terms import Term, described, read_terms

WORDS = ["sea", "boat", "dog"]


class Processor:
    def has_known_tokens(self, text):
        return any(word in WORDS for word in text.split())


class Towers:
    """Encoders by table: a known word is a row of a random matrix, an image is its own code."""

    reader = Processor()
    table = np.tanh(np.random.default_rng(0).normal(size=(3, 16))).astype(np.float32)

    def expand(self, texts):
        return list(texts)

    def encode_texts(self, texts):
        rows = [np.mean([self.table[WORDS.index(word)] for word in text.split() if word in WORDS], 0) for text in texts]
        return np.array(rows, np.float32).reshape(-1, 16)

    def encode_images(self, images):
        return np.array(list(images), np.float32).reshape(-1, 16)


def values(*terms, image_weight=0.5):
    return query_values(Towers(), None, None, image_weight, terms)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"texts": ["beach", "sunset:0.5"]}, [Term("beach"), Term("sunset", weight=0.5)]),
        ({"texts": ["title: sea"]}, [Term("title: sea")]),
        ({"texts": ["title: sea:2"]}, [Term("title: sea", weight=2)]),
        ({"texts": ["at 12:30:1"]}, [Term("at 12:30")]),
        ({"texts": ["a:b", "sea:", ":3", "sea:1e-2", "sea:.5", "sea:x2", "sea:²"]},
         [Term("a:b"), Term("sea:"), Term(":3"), Term("sea", weight=0.01), Term("sea", weight=0.5), Term("sea:x2"),
          Term("sea:²")]),
        ({"avoided_texts": ["people", "dogs:1"]}, [Term("people", weight=-0.5), Term("dogs", weight=-1)]),
        ({"images": ["a.jpg", "-:3"], "avoided_images": ["b.jpg", "c.jpg:2"]},
         [Term(image="a.jpg"), Term(image="-", weight=3), Term(image="b.jpg", weight=-0.5),
          Term(image="c.jpg", weight=-2)]),
    ],
)  # fmt: skip
def test_terms_as_the_command_line_writes_them(written, expected):
    assert read_terms(**written) == expected


def test_an_existing_file_is_taken_by_its_whole_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beach.jpg:2").touch()
    assert read_terms(images=["beach.jpg:2", "beach.jpg:3"]) == [
        Term(image="beach.jpg:2"),
        Term(image="beach.jpg", weight=3),
    ]


@given(st.text(min_size=1, max_size=20), st.floats(-1000, 1000))
def test_any_text_can_be_written_with_its_weight(text, weight):
    if any("\ud800" <= character <= "\udfff" for character in text):
        return
    assert read_terms([f"{text}:{weight!r}"]) == [Term(text, weight=weight)]


@given(st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.floats(0.01, 5), st.booleans()), min_size=1, max_size=5))
def test_the_code_is_the_weighted_mean_of_the_codes_of_the_terms(drawn):
    terms = [Term(WORDS[word], weight=-weight if negative else weight) for word, weight, negative in drawn]
    weights = np.array([term.weight for term in terms])
    expected = weights @ Towers.table[[word for word, _, _ in drawn]].astype(np.float64) / np.abs(weights).sum()
    if np.linalg.norm(expected) > 0.01:
        np.testing.assert_allclose(values(*terms), expected[None], atol=1e-6)
        scaled = [Term(term.text, weight=term.weight * 3) for term in terms]
        np.testing.assert_allclose(values(*scaled), expected[None], atol=1e-6)  # only ratios count


def test_one_text_and_one_image_give_what_they_give_without_terms():
    image = np.tanh(np.random.default_rng(1).normal(size=16)).astype(np.float32)
    for weight in (0, 0.1, 0.3, 0.5, 0.9, 1):
        mixed = query_values(Towers(), "sea", image, weight)
        assert np.array_equal(values(Term("sea"), Term(image=image), image_weight=weight), mixed)
    assert np.array_equal(values(Term("sea")), query_values(Towers(), "sea", None, 0.5))
    several = query_values(Towers(), None, None, 0.5, [[Term("sea")], [Term("dog"), Term(image=image)]])
    assert several.shape == (2, 16)
    assert np.array_equal(several[0], Towers.table[0])


def test_terms_without_a_known_word_are_ignored_unless_nothing_is_left_to_look_for():
    assert np.array_equal(values(Term("sea"), Term("xyzzy")), values(Term("sea")))
    assert np.array_equal(values(Term("sea"), Term("xyzzy", weight=-1)), values(Term("sea")))
    assert np.array_equal(values(Term("sea", weight=-1)), -values(Term("sea")))
    for terms, names in (
        ([Term("xyzzy")], "'xyzzy' is"),
        ([Term("xyzzy"), Term("qu", weight=2)], "'xyzzy' or 'qu' is"),
        ([Term("xyzzy"), Term("sea", weight=-1)], "'xyzzy' is"),
        ([Term("xyzzy", weight=-1)], "'xyzzy' is"),
    ):
        with pytest.raises(QueryError, match=f"No word of {names} known to the model"):
            values(*terms)


@pytest.mark.parametrize("terms", [
    [Term("sea"), Term("sea", weight=-1)],
    [Term("sea", weight=0)],
    [Term("sea", weight=2), Term("sea", weight=-0.5), Term("sea", weight=-1.5), Term("boat", weight=0)],
])  # fmt: skip
def test_terms_that_cancel_out_are_refused(terms):
    with pytest.raises(QueryError, match="cancel out"):
        values(*terms)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Term(), "either a text or an image"),
        (lambda: Term("sea", image="a.jpg"), "either a text or an image"),
        (lambda: Term(3), "not a int"),
        (lambda: Term("\ud800"), "lone surrogate"),
        (lambda: Term("sea", weight=float("nan")), "weight of 'sea' is nan"),
        (lambda: Term("sea", weight=float("inf")), "weight of 'sea' is inf"),
        (lambda: Term("sea", weight=10**400), "weight of 'sea' is 1000"),
        (lambda: Term("sea", weight="1"), "weight of 'sea' is '1'"),
        (lambda: Term("sea", weight=True), "weight of 'sea' is True"),
        (lambda: read_terms(["sea:nan"]), "weight of 'sea' is nan"),
        (lambda: read_terms(["sea:-INF"]), "weight of 'sea' is -inf"),
        (lambda: read_terms(["sea:1001"]), "weight of 'sea' is 1001.0; give a number from -1000 to 1000"),
        (lambda: read_terms(avoided_texts=["sea:-1"]), "'sea:-1' is to be avoided already"),
        (lambda: read_terms(), "Give a text or an image"),
        (lambda: values(), "A query without terms"),
        (lambda: values([Term("sea")], []), "A query without terms"),
        (lambda: values("sea"), "A list of terms was expected, not 'sea'"),
        (lambda: values([3]), "A Term was expected, not 3"),
        (lambda: values([Term("sea")], Term("sea")), "A list of terms was expected, not Term"),
        (lambda: query_values(Towers(), "sea", None, 0.5, [Term("sea")]), "either terms, or"),
        (lambda: values(Term("sea"), image_weight=1.5), "image_weight is 1.5"),
    ],
)
def test_what_cannot_be_a_query_is_refused(act, message):
    with pytest.raises(QueryError, match=message):
        act()


def test_terms_in_one_line():
    terms = [Term("beach"), Term("sunset", weight=0.5), Term("people", weight=-1), Term(image="a.jpg", weight=-0.25)]
    assert described(terms) == "beach + sunset:0.5 - people - a.jpg:0.25"
    assert described([Term("sea", weight=-2), Term(image=b"...")]) == "- sea:2 + image"
