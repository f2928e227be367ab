"""Explanations against enumerated walks, and the graph against a plain networkx graph."""

import json
from itertools import pairwise, product

import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cmfah_hf.errors import QueryError
from cmfah_hf.expansion import GraphExpander, WikipediaKnowledge
from cmfah_hf.expansion.plots import plot_neighborhood

TAGS = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=4).map(" ".join), min_size=1, max_size=8)
ARTICLES = ["the dog herds sheep", "a dog barks at sheep", "waves roll onto the beach"]
KNOWN = ["dog beach", "dog sea waves", "cat sofa", "sheep", "beach sea"]


def expander_with_knowledge(**settings):
    expander = GraphExpander(**settings).fit(KNOWN)
    expander.knowledge = WikipediaKnowledge(min_count=1, min_pair_count=1).fit(ARTICLES, expander.graph.vocabulary)
    return expander


def walks_to(expander, own, target, num_hops):
    """Contribution of each own word to the visits of a word, by predecessor, from an enumeration of all walks."""
    m, numbers = expander.transitions.toarray(), expander.graph.word_numbers
    start = expander._walk().start([own]).toarray()[0]
    found = {}
    for hops in range(1, num_hops + 1):
        for walk in product(range(len(m)), repeat=hops):
            path = [*walk, numbers[target]]
            chance = start[path[0]] * np.prod([m[a, b] for a, b in pairwise(path)])
            if chance > 0:
                key = (expander.graph.vocabulary[path[0]], None if hops == 1 else expander.graph.vocabulary[path[-2]])
                found[key] = found.get(key, 0.0) + chance / (num_hops + 1)
    return found


@given(tags=TAGS.filter(lambda tags: any(tags)), walk_length=st.sampled_from([1, 3, 5, 7]), idf=st.booleans())
def test_contributions_match_the_enumerated_walks(tags, walk_length, idf):
    expander = GraphExpander(walk_length, top_k=3, word_weights="idf" if idf else "binary").fit(tags)
    text = next(text for text in tags if text)
    visits, hops = expander.expected_visits(text), (walk_length - 1) // 2
    explanation = expander.explain(f"{text} zebra", ways=None)
    assert [word.word for word in explanation.added] == expander.expand(text)[len(text.split()) :]
    assert explanation.unknown == ["zebra"]
    for added in explanation.added[:1] if walk_length == 7 else explanation.added:
        assert added.source == "graph"
        assert added.score == pytest.approx(visits[added.word] / (hops + 1), abs=1e-12)
        assert added.score == pytest.approx(sum(cause.score for cause in added.causes), abs=1e-12)
        found = {(cause.own, through): part for cause in added.causes for through, part in cause.ways}
        assert found == pytest.approx(walks_to(expander, text.split(), added.word, hops), abs=1e-12)
        assert [c.score for c in added.causes] == sorted((c.score for c in added.causes), reverse=True)


@given(tags=TAGS.filter(lambda tags: any(tags)))
def test_visits_match_walks_on_a_plain_graph(tags):
    graph = networkx.Graph()
    for image, text in enumerate(tags):
        graph.add_node(image)
        graph.add_edges_from((image, word) for word in text.split())
    expander = GraphExpander().fit(tags)
    for image, text in enumerate(tags):
        at, visits = {image: 1.0}, {}
        for step in range(5):
            after = {}
            for node, share in at.items():
                for neighbor in graph[node]:
                    after[neighbor] = after.get(neighbor, 0.0) + share / graph.degree[node]
            at = after
            if step % 2 == 0:
                visits = {word: visits.get(word, 0.0) + at.get(word, 0.0) for word in {*visits, *at}}
        assert expander.expected_visits(text) == pytest.approx(visits, abs=1e-12)


def test_words_from_the_knowledge_name_their_own_words():
    expander = expander_with_knowledge(top_k=1)
    explanation = expander.explain("Dog waves sheep dog")
    assert explanation.own == ["dog", "waves", "sheep", "dog"]
    assert [word.word for word in explanation.added] == expander.expand("Dog waves sheep dog")[4:]
    related = [added for added in explanation.added if added.source == "knowledge"]
    assert related
    for added in related:
        assert {cause.own: cause.score for cause in added.causes} == {
            own: score for own in ("dog", "waves", "sheep") if (score := expander.knowledge.score(own, added.word)) > 0
        }
        assert added.score == pytest.approx(dict(expander.knowledge.related_to(["dog", "waves", "sheep"]))[added.word])
    assert json.loads(json.dumps(explanation.to_dict()))["added"][-1]["source"] == "knowledge"


def test_an_explanation_prints_as_a_table():
    lines = str(expander_with_knowledge(top_k=1).explain("dog quokka")).splitlines()
    assert lines[0] == "dog quokka"
    assert lines[1].split() == ["word", "from", "score", "because", "of"]
    assert lines[2].startswith("beach  graph      0.1736  dog 100% (directly 48%, by ")
    assert lines[3].startswith("sheep  knowledge")
    assert lines[-1] == "not known: quokka"
    assert str(GraphExpander().fit(["dog"]).explain("")).splitlines()[1:] == ["word  from  score  because of"]


def test_paths_are_limited_and_sums_complete():
    expander = expander_with_knowledge()
    whole, cut = expander.explain("dog sea", ways=None), expander.explain("dog sea", ways=1)
    for all_ways, one in zip(whole.added, cut.added, strict=True):
        assert (one.score, [c.score for c in one.causes]) == (all_ways.score, [c.score for c in all_ways.causes])
        assert [c.ways for c in one.causes] == [c.ways[:1] for c in all_ways.causes]


@pytest.mark.parametrize("word_weights", ["binary", "idf"])
def test_the_expander_as_a_graph(word_weights):
    expander = expander_with_knowledge(word_weights=word_weights)
    graph, words = expander.to_networkx(), expander.graph.vocabulary
    assert set(graph) == set(words)
    m = networkx.to_numpy_array(graph, words)
    np.testing.assert_allclose(m, expander.transitions.toarray(), atol=1e-15)
    np.testing.assert_allclose(m.sum(axis=1), 1.0)
    ppmi = {(a, b): score for a, b, score in graph.edges(data="ppmi") if score is not None}
    assert len(ppmi) >= 4
    assert {pair: round(score, 12) for pair, score in ppmi.items()} == {
        (a, b): s for a in words for b, s in expander.knowledge.related(a, 99)
    }
    assert graph.nodes["dog"]["count"] == 2


def test_the_plot_of_a_neighborhood_is_deterministic_and_not_empty(tmp_path):
    expander = expander_with_knowledge()
    first = plot_neighborhood(expander, "Dog", tmp_path / "new" / "a.png")
    second = plot_neighborhood(expander_with_knowledge(), "dog", tmp_path / "b.png")
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        colors = {color for _, color in image.convert("RGB").getcolors(1 << 20)}
        assert image.size == (1080, 912)
    assert {(0xE6, 0x9F, 0x00), (0x00, 0x72, 0xB2), (0x00, 0x9E, 0x73)} <= colors
    svg = plot_neighborhood(expander, "sheep", tmp_path / "c.svg").read_text()
    assert all(f"<!-- {word} -->" in svg for word in ("sheep", "dog"))
    with pytest.raises(QueryError, match="'unicorn' is not a single word"):
        plot_neighborhood(expander, "unicorn", tmp_path / "d.png")
    with pytest.raises(QueryError, match="'dog sea' is not a single word"):
        plot_neighborhood(expander, "dog sea", tmp_path / "d.png")
    assert not (tmp_path / "d.png").exists()
