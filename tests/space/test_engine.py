"""Contents of the page against independent computations."""

import html as standard_html
import json
import re

import gradio as gr
import numpy as np
import pytest

from cmfah_hf.data import load_image_text
from cmfah_hf.errors import CheckpointError, CMFAHError, DataError, QueryError
from cmfah_hf.retrieval.calibration import Calibration, ScoreMap
from cmfah_hf.space import Engine, SpaceSettings, charts, html
from cmfah_hf.space.html import escaped
from cmfah_hf.space.loading import EngineLoader
from cmfah_hf.space.page import Page
from cmfah_hf.space.uploads import Uploads


@pytest.fixture(scope="module", params=["trained", "trained_scahn"])
def run(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def engine(run):
    return Engine(SpaceSettings(str(run.folder), str(run.scenes), limit=40), run.folder)


@pytest.fixture(scope="module")
def pairs(run):
    return load_image_text(run.scenes, split="train").select(range(40))


def test_images_are_the_first_of_the_split_as_thumbnails(engine, pairs):
    assert engine.images.ids == pairs["id"]
    assert engine.images.texts == pairs["text"]
    kept, original = engine.images.image(3), pairs[3]["image"]
    assert kept.size == original.size
    assert np.abs(np.asarray(kept, int) - np.asarray(original.convert("RGB"), int)).mean() < 8  # JPEG
    assert engine.images.address(3).startswith("data:image/jpeg;base64,")
    assert len(engine.images.address(3, 16)) < len(engine.images.address(3))


def test_answers_match_brute_force(engine, pairs):
    word = engine.retriever.processor.known_words(pairs[0]["text"])[0]
    values = engine.retriever.encode_texts([word])[0]
    image_bits = engine.retriever.encode_images([row["image"] for row in pairs]) >= 0
    answer = engine.search(text=word, k=7).rankings["images"]
    distances = (image_bits != (values >= 0)).sum(axis=1)
    order = np.lexsort((np.arange(40), distances))[:7]
    assert answer["hamming"].rows == order.tolist()
    assert answer["hamming"].scores == distances[order].tolist()
    products = np.where(image_bits, 1, -1) @ values
    assert answer["aqd"].scores == pytest.approx(np.sort(products)[::-1][:7], abs=0.01)

    by_image = engine.search(image=pairs[5]["image"], k=3)
    assert set(by_image.rankings) == {"images", "texts"}
    # An image finds itself, or one with the same bits and a smaller id.
    assert by_image.rankings["images"]["hamming"].scores[0] == 0
    document = engine.document(by_image)
    assert [hit["id"] for hit in document["images"]["aqd"]["hits"]] == [
        engine.images.ids[row] for row in by_image.rankings["images"]["aqd"].rows
    ]
    assert json.loads(json.dumps(document)) == document


def test_the_map_matches_classical_scaling(engine):
    codes = np.unpackbits(engine.retriever.images.codes, axis=1, bitorder="little")
    squared = 4.0 * (codes[:, None] != codes[None]).sum(axis=2)  # for codes of +-1
    centering = np.eye(40) - 1 / 40
    scalar_products = -0.5 * centering @ squared @ centering
    values, vectors = np.linalg.eigh(scalar_products)
    reference = vectors[:, -2:] * np.sqrt(values[-2:])

    def distances(places):
        return np.linalg.norm(places[:, None] - places[None], axis=2)

    assert distances(engine.map.coordinates) == pytest.approx(distances(reference), abs=1e-6)
    assert engine.map.shown_variance == pytest.approx(values[-2:].sum() / values.sum())
    drawn = charts.code_map(engine)
    assert drawn.count("<img ") + drawn.count("<i ") == 40


def test_codes_are_shown_bit_by_bit(engine, pairs):
    text = engine.retriever.processor.known_words(pairs[0]["text"])[0]
    item_id = engine.images.ids[9]
    query, item = engine.retriever.encode_texts([text])[0] >= 0, engine.retriever.encode_images([pairs[9]["image"]])[0]
    shown = html.bits(engine.code(text), engine.code_of_image(item_id), text, item_id)
    cells = re.findall(r'<i class="(on|off)( cm-differs)?">', shown)
    assert [kind == "on" for kind, _ in cells[: engine.bits]] == query.tolist()
    assert [kind == "on" for kind, _ in cells[engine.bits :]] == (item >= 0).tolist()
    differ = np.flatnonzero(query != (item >= 0))
    assert f"{len(differ)} of {engine.bits} bits differ" in shown
    assert [index for index, (_, mark) in enumerate(cells[: engine.bits]) if mark] == differ.tolist()


def test_attention_covers_every_region(engine, pairs):
    from cmfah_hf.evaluation.attention import attention_of_words

    item_id, text = engine.images.ids[0], engine.images.texts[0]
    attention = engine.attention(text, item_id)
    words, weights, *_ = attention_of_words(
        engine.retriever.model, engine.retriever.processor, engine.images.image(0), text
    )
    assert attention.words == words
    assert attention.weights == pytest.approx(weights)
    assert attention.grid[0] * attention.grid[1] == len(weights)
    shown = html.overlay(engine, item_id, attention, words[0], 2)
    lights = [float(light) for light in re.findall(r"--light:([\d.]+)", shown)]
    assert lights == pytest.approx(np.sqrt(weights[:, 0] / weights.max()), abs=1e-3)
    assert shown.count('aria-pressed="true"') == 1
    assert 'data-region="2" style' in shown
    listed = re.findall(r"<li><span>(.+?)</span>", html.words_of_region(attention, 2))
    assert listed == [words[index] for index in np.argsort(-weights[2], kind="stable")]


def test_memory_and_metrics_match_the_model(engine, run):
    shown = charts.memory(engine)
    bits, width = engine.bits, engine.retriever.model.config.hidden_size
    assert [int(size) for size in re.findall(r"([\d,]+) bytes per image", shown)] == [bits // 8, 4 * bits, 4 * width]
    figures = run.metrics["query"]
    assert engine.metrics["query"] == pytest.approx(figures)
    table = re.findall(r"<td>([\d.]+)</td>", charts.quality(engine.metrics))
    names = ["hamming/i2t", "hamming/t2i", "aqd/i2t", "aqd/t2i"]
    expected = [figures[f"{name}/map"] for name in names] + [figures["random/map"]] * 2
    for metric in ("recall@1", "recall@5", "recall@10", "median_rank", "ndcg@10"):
        expected += [run.metrics["pairs"][f"{name}/{metric}"] for name in names]
    assert [float(value) for value in table] == pytest.approx(expected, abs=6e-4)
    alone = charts.quality({"pairs": run.metrics["pairs"]})
    assert "Mean average precision" not in alone
    assert f"among {run.metrics['pairs']['images']:.0f} images and" in alone
    assert charts.quality(engine.metrics).count("<polyline") == 4
    assert "came without figures" in charts.quality({})
    assert "came without figures" in charts.quality({"query": {"queries": 3}})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "The query is empty"),
        ({"text": "  "}, "The query is empty"),
        ({"text": "zzz qqq"}, "The model knows none of these words"),
        ({"text": "x" * 301}, "at most 300"),
        ({"text": "sun", "k": 0}, "must be between 1 and 24"),
        ({"text": "sun", "k": 25}, "must be between 1 and 24"),
        ({"text": "sun", "k": 2.5}, "must be between 1 and 24"),
        ({"text": "sun", "k": float("nan")}, "must be between 1 and 24"),
        ({"text": "sun", "k": "3"}, "must be between 1 and 24"),
        ({"text": "sun", "k": None}, "must be between 1 and 24"),
        ({"text": "sun", "k": 10**400}, "must be between 1 and 24"),
        ({"text": ["sun"]}, "is not a string"),
        ({"text": 3}, "is not a string"),
    ],
)
def test_unanswerable_queries_are_refused(engine, arguments, reason):
    with pytest.raises(QueryError, match=reason):
        engine.search(**arguments)


def test_unknown_images_and_splits_are_refused(engine, run):
    with pytest.raises(QueryError, match=r"Unknown image '\.\./etc/passwd'"):
        engine.code_of_image("../etc/passwd")
    for odd in (None, ["x"], {}, 3):
        with pytest.raises(QueryError, match="Unknown image"):
            engine.code_of_image(odd)
    with pytest.raises(DataError, match="has no split 'gone'"):
        Engine(SpaceSettings(str(run.folder), str(run.scenes), "gone"), run.folder)


def test_external_text_is_escaped_in_html():
    assert escaped('<b onclick="x">{{y}} ${z} `w` &amp;') == (
        "&lt;b onclick=&quot;x&quot;&gt;&#123;&#123;y&#125;&#125; &#36;&#123;z&#125; &#96;w&#96; &amp;amp;"
    )


def test_external_text_is_escaped_in_markdown():
    shown = html.markdown("# [x](http://a.b) ![](y) <b> `c` $d$ *e* ~f~ www.g.h\n\n- i")
    assert re.sub(r"&#\d+;", "", shown).replace(" ", "").isalnum()
    assert standard_html.unescape(shown) == "# [x](http://a.b) ![](y) <b> `c` $d$ *e* ~f~ www.g.h - i"


def test_unknown_words_are_reported(engine, pairs):
    known = engine.retriever.processor.known_words(pairs[0]["text"])[0]
    query = f"Quixotic {known} <i>ufrz</i> quixotic"
    found = engine.search(text=query, k=2)
    assert found.ignored_words == ["quixotic", "i", "ufrz"]
    assert engine.document(found)["ignored_words"] == ["quixotic", "i", "ufrz"]
    assert "ignored: quixotic, i, ufrz." in html.answer(engine, found)
    assert found.rankings["images"]["aqd"].rows == engine.search(text=known, k=2).rankings["images"]["aqd"].rows
    plain = engine.search(text=known, k=2)
    assert plain.ignored_words == []
    assert "ignored" not in html.answer(engine, plain)
    assert engine.search(image=pairs[0]["image"], k=2).ignored_words == []


def test_words_to_avoid_are_a_negative_term(engine, pairs):
    words = list(dict.fromkeys(word for text in pairs["text"] for word in engine.retriever.processor.known_words(text)))
    asked, avoided = words[0], words[1]
    values = engine.retriever.encode_texts([asked, avoided])
    image_bits = engine.retriever.encode_images([row["image"] for row in pairs]) >= 0
    for query, own in (
        ({"text": asked}, values[0]),
        ({"image": pairs[3]["image"]}, engine.retriever.encode_images([pairs[3]["image"]])[0]),
    ):
        expected = np.where(image_bits, 1, -1) @ (own - 0.5 * values[1]) / 1.5
        found = engine.search(**query, k=5, avoid=f"{avoided} quixotic")
        assert found.rankings["images"]["aqd"].scores == pytest.approx(np.sort(expected)[::-1][:5], abs=0.01)
        assert found.ignored_words == ["quixotic"]
        plain = engine.search(**query, k=5)
        assert engine.search(**query, k=5, avoid="quixotic").rankings["images"]["aqd"].rows == (
            plain.rankings["images"]["aqd"].rows
        )
    with pytest.raises(QueryError, match="at most 300"):
        engine.search(text=asked, avoid="x" * 301)


def test_answers_have_probabilities_and_a_threshold(engine, pairs, monkeypatch):
    word = engine.retriever.processor.known_words(pairs[0]["text"])[0]
    monkeypatch.setattr(engine.retriever, "calibration", None)
    plain = engine.search(text=word, k=9)
    assert plain.rankings["images"]["aqd"].probabilities is None
    assert "probability" not in engine.document(plain)["images"]["aqd"]["hits"][0]
    with pytest.raises(QueryError, match="has no calibration"):
        engine.search(text=word, least=0.5)
    score_map = ScoreMap(np.array([-1.0, 1.0]), np.array([0.0, 1.0]), 40, "isotonic")
    calibration = Calibration(engine.retriever.fingerprint, engine.bits, "labels", {"aqd/t2i": score_map})
    monkeypatch.setattr(engine.retriever, "calibration", calibration)
    found = engine.search(text=word, k=9).rankings["images"]["aqd"]
    value = engine.retriever.encode_texts([word])[0]
    cosines = np.array(found.scores) / np.linalg.norm(value) / engine.bits**0.5
    assert found.probabilities == pytest.approx((cosines + 1) / 2, abs=1e-3)
    least = found.probabilities[4]
    cut = engine.search(text=word, k=9, least=least)
    assert cut.rankings["images"]["aqd"].rows == found.rows[: sum(one >= least for one in found.probabilities)]
    assert len(cut.rankings["images"]["hamming"].rows) == 9  # without a map, nothing is left out
    nothing = engine.search(text=word, k=9, least=1.0)
    assert nothing.rankings["images"]["aqd"].rows == []
    assert "Nothing found" in html.answer(engine, nothing)
    assert engine.document(cut)["images"]["aqd"]["hits"][0]["probability"] == round(found.probabilities[0], 4)
    for odd in (-0.1, 1.1, float("nan"), "0.5", True):
        with pytest.raises(QueryError, match=r"from 0 to 1"):
            engine.search(text=word, least=odd)


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, '"x"', '{"query": {"a": "\\ud800"}}'])
def test_damaged_metrics_are_reported_in_one_line(engine, tmp_path, monkeypatch, content):
    (tmp_path / "metrics.json").write_text(content, encoding="utf-8")
    monkeypatch.setattr(engine, "source", str(tmp_path))
    monkeypatch.delitem(engine.__dict__, "metrics", raising=False)
    with pytest.raises(CheckpointError, match=r"metrics\.json") as refused:
        engine.metrics  # noqa: B018 - the property raises
    assert "\n" not in str(refused.value)
    # The rest of the page is available.
    loader = EngineLoader(engine.settings, tmp_path)
    loader._engine = engine
    loader._loaded.set()
    shown = Page(loader, Uploads(tmp_path)).begin()
    assert "are damaged" in shown[-1]
    assert "cm-answer" in shown[1]


@pytest.mark.parametrize(
    "query",
    [
        None, [], "x", {"hamming/i2t/map": "x"}, {"hamming/i2t/map": None}, {"hamming/i2t/map": [1]},
        {"hamming/i2t/map": True}, {"hamming/i2t/map": float("nan")}, {"hamming/i2t/map": 10**400},
        {"hamming/i2t/map": 0.5, "hamming/i2t/precision@0": 1.0, "hamming/i2t/precision@²": 1.0},
        {"hamming/i2t/map": 0.5, "hamming/i2t/precision@1": {}, "aqd/i2t/precision@5": float("inf"), "queries": "many"},
        {"hamming/i2t/map": 0.5, "queries": 10**400, "database": [], "random/map": "<b>"},
    ],
)  # fmt: skip
def test_metrics_of_wrong_types_are_ignored(query):
    for bits in ("<script>", None, [], 1e400, 64):
        shown = charts.quality({"query": query, "hash_bits": bits, "pairs": query})
        assert "<script>" not in charts.quality({"pairs": {"aqd/t2i/recall@1": query, "images": bits}})
        assert "<script>" not in shown
        assert "nan" not in shown


def test_an_error_is_shown_on_the_page_and_returned_to_programs(engine, tmp_path):
    loader = EngineLoader(engine.settings, tmp_path)
    loader._engine = engine
    loader._loaded.set()
    page = Page(loader, Uploads(tmp_path))
    name = "<img src=http://a.b/c>"
    with pytest.raises(gr.Error) as shown:
        page.look(name, "sun")
    assert "&lt;img" in shown.value.message
    assert "<" not in shown.value.message
    with pytest.raises(gr.Error) as reported:
        page.api_explain("sun", name)
    assert name in reported.value.message
    for number in (None, 99):
        with pytest.raises(gr.Error, match="Unknown example"):
            page.choose_example(number)


def test_a_missing_engine_is_reported_without_paths(tmp_path, caplog):
    loader = EngineLoader(SpaceSettings(model=str(tmp_path / "gone")), tmp_path)
    with pytest.raises(CMFAHError, match=str(tmp_path)):
        loader.load()
    with pytest.raises(CMFAHError) as raised:
        loader.get()
    assert str(raised.value).startswith("gone: neither a folder nor")
    assert str(tmp_path) not in str(raised.value)
