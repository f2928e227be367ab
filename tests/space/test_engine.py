"""What the page shows, against the same computed another way."""

import json
import re

import numpy as np
import pytest

from cmfah_hf.data import load_image_text
from cmfah_hf.errors import CMFAHError, DataError, QueryError
from cmfah_hf.space import Engine, SpaceSettings, charts, html
from cmfah_hf.space.html import escaped
from cmfah_hf.space.loading import EngineLoader


@pytest.fixture(scope="module", params=["trained", "trained_scahn"])
def run(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def engine(run):
    return Engine(SpaceSettings(str(run.folder), str(run.scenes), limit=40), run.folder)


@pytest.fixture(scope="module")
def pairs(run):
    return load_image_text(run.scenes, split="train").select(range(40))


def test_the_pictures_are_the_first_ones_of_the_split_and_small(engine, pairs):
    assert engine.pictures.ids == pairs["id"]
    assert engine.pictures.texts == pairs["text"]
    kept, original = engine.pictures.image(3), pairs[3]["image"]
    assert kept.size == original.size
    assert np.abs(np.asarray(kept, int) - np.asarray(original.convert("RGB"), int)).mean() < 8  # JPEG
    assert engine.pictures.address(3).startswith("data:image/jpeg;base64,")
    assert len(engine.pictures.address(3, 16)) < len(engine.pictures.address(3))


def test_answers_are_those_of_brute_force(engine, pairs):
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

    by_picture = engine.search(image=pairs[5]["image"], k=3)
    assert set(by_picture.rankings) == {"images", "texts"}
    # A picture finds itself, or one of the same bits and a smaller number.
    assert by_picture.rankings["images"]["hamming"].scores[0] == 0
    document = engine.document(by_picture)
    assert [hit["id"] for hit in document["images"]["aqd"]["hits"]] == [
        engine.pictures.ids[row] for row in by_picture.rankings["images"]["aqd"].rows
    ]
    assert json.loads(json.dumps(document)) == document


def test_the_map_keeps_distances_as_classical_scaling_does(engine):
    codes = np.unpackbits(engine.retriever.images.codes, axis=1, bitorder="little")
    squared = 4.0 * (codes[:, None] != codes[None]).sum(axis=2)  # of codes of +-1
    centring = np.eye(40) - 1 / 40
    scalar_products = -0.5 * centring @ squared @ centring
    values, vectors = np.linalg.eigh(scalar_products)
    reference = vectors[:, -2:] * np.sqrt(values[-2:])

    def distances(places):
        return np.linalg.norm(places[:, None] - places[None], axis=2)

    assert distances(engine.map) == pytest.approx(distances(reference), abs=1e-6)
    assert engine.shown_variance == pytest.approx(values[-2:].sum() / values.sum())
    drawn = charts.code_map(engine)
    assert drawn.count("<img ") + drawn.count("<i ") == 40


def test_codes_are_shown_bit_by_bit(engine, pairs):
    text = engine.retriever.processor.known_words(pairs[0]["text"])[0]
    item_id = engine.pictures.ids[9]
    query, item = engine.retriever.encode_texts([text])[0] >= 0, engine.retriever.encode_images([pairs[9]["image"]])[0]
    shown = html.bits(engine.code(text), engine.code_of_picture(item_id), text, item_id)
    cells = re.findall(r'<i class="(on|off)( cm-differs)?">', shown)
    assert [kind == "on" for kind, _ in cells[: engine.bits]] == query.tolist()
    assert [kind == "on" for kind, _ in cells[engine.bits :]] == (item >= 0).tolist()
    differ = np.flatnonzero(query != (item >= 0))
    assert f"{len(differ)} of {engine.bits} bits differ" in shown
    assert [index for index, (_, mark) in enumerate(cells[: engine.bits]) if mark] == differ.tolist()


def test_attention_is_laid_over_every_region(engine, pairs):
    from cmfah_hf.evaluation.attention import attention_of_words

    item_id, text = engine.pictures.ids[0], engine.pictures.texts[0]
    attention = engine.attention(text, item_id)
    words, weights = attention_of_words(
        engine.retriever.model, engine.retriever.processor, engine.pictures.image(0), text
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


def test_memory_and_figures_are_those_of_the_model(engine, run):
    shown = charts.memory(engine)
    bits, width = engine.bits, engine.retriever.model.config.hidden_size
    assert [int(size) for size in re.findall(r"([\d,]+) bytes a picture", shown)] == [bits // 8, 4 * bits, 4 * width]
    figures = run.metrics["query"]
    assert engine.metrics["query"] == pytest.approx(figures)
    table = re.findall(r"<td>([\d.]+)</td>", charts.quality(engine.metrics))
    names = ["hamming/i2t", "hamming/t2i", "aqd/i2t", "aqd/t2i"]
    expected = [figures[f"{name}/map"] for name in names] + [figures["random/map"]] * 2
    assert table == [f"{value:.3f}" for value in expected]
    assert charts.quality(engine.metrics).count("<polyline") == 4
    assert "came without figures" in charts.quality({})
    assert "came without figures" in charts.quality({"query": {"queries": 3}})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "no words to search with"),
        ({"text": "  "}, "no words to search with"),
        ({"text": "zzz qqq"}, "None of these words"),
        ({"text": "x" * 301}, "at most 300"),
        ({"text": "sun", "k": 0}, "from 1 to 24"),
        ({"text": "sun", "k": 25}, "from 1 to 24"),
        ({"text": "sun", "k": 2.5}, "from 1 to 24"),
    ],
)
def test_queries_without_an_answer_are_refused(engine, arguments, reason):
    with pytest.raises(QueryError, match=reason):
        engine.search(**arguments)


def test_foreign_pictures_and_splits_are_refused(engine, run):
    with pytest.raises(QueryError, match=r"no picture '\.\./etc/passwd'"):
        engine.code_of_picture("../etc/passwd")
    with pytest.raises(DataError, match="there is no split 'gone'"):
        Engine(SpaceSettings(str(run.folder), str(run.scenes), "gone"), run.folder)


def test_nothing_from_outside_becomes_markup():
    assert escaped('<b onclick="x">{{y}} ${z} `w` &amp;') == (
        "&lt;b onclick=&quot;x&quot;&gt;&#123;&#123;y&#125;&#125; &#36;&#123;z&#125; &#96;w&#96; &amp;amp;"
    )


def test_whoever_asks_is_told_why_there_is_no_engine_and_no_path(tmp_path, caplog):
    loader = EngineLoader(SpaceSettings(model=str(tmp_path / "gone")), tmp_path)
    with pytest.raises(CMFAHError, match=str(tmp_path)):
        loader.load()
    with pytest.raises(CMFAHError) as told:
        loader.get()
    assert str(told.value).startswith("gone: neither a folder nor")
    assert str(tmp_path) not in str(told.value)
