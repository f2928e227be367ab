"""Codes without training: from an encoder and unlabeled images to a model that searches them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from dual_encoders import write_dual_encoder
from PIL import Image

from cmfah_hf.errors import CheckpointError, DataError
from cmfah_hf.hub.finished_run import read_run
from cmfah_hf.hub.model_card import make_model_card
from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex
from cmfah_hf.retrieval.folders import folder_index_path, update_folder_index
from cmfah_hf.space import SpaceSettings, charts, html
from cmfah_hf.space.engine import Engine
from cmfah_hf.training.compression import compress, load_dual_encoder, text_vectors
from cmfah_hf.training.dual_encoders import image_vectors
from cmfah_hf.training.phrases import PHRASES


@pytest.fixture(scope="module", autouse=True)
def own_cache_of_indexes(tmp_path_factory):
    """Tests neither read nor write the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path_factory.mktemp("assets")))
        yield


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return write_dual_encoder("clip", tmp_path_factory.mktemp("encoders") / "clip")


def draw_images(folder: Path, count: int, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    (folder / "more").mkdir(parents=True)
    for number in range(count):
        pixels = np.kron(generator.integers(0, 255, (4, 4, 3)), np.ones((9, 9, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / ("more" if number % 2 else "") / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def compressed(encoder, tmp_path_factory):
    """A model of 60 images, one of which cannot be read; the folder of images, and what was done."""
    home = tmp_path_factory.mktemp("compressed")
    images = draw_images(home / "images", 60)
    (images / "broken.png").write_bytes(b"no image")
    (images / "notes.txt").write_text("no image either")
    return home / "model", images, compress(str(encoder), images, home / "model", bits=16)


def test_codes_are_the_signs_of_the_projected_vectors_of_the_encoder(compressed, encoder):
    folder, images, done = compressed
    assert (done.images, done.texts, len(done.left_out), done.skipped) == (60, 0, 1, {".txt": 1})
    index = HashIndex.load(folder / "images.index")
    assert sorted(index.ids)[:2] == ["0.png", "10.png"]
    model, processor = load_dual_encoder(str(encoder), 16)
    with torch.inference_mode():
        pixels = processor(images=[Image.open(images / item_id) for item_id in index.ids], return_tensors="pt")
        vectors = model.image_model.embeddings(pixels["pixel_values"]).pooled.double().numpy()
    values = done.choice.projection.images(vectors)
    bits = np.unpackbits(index.codes, axis=1, bitorder="little")
    assert ((values >= 0) == bits.astype(bool))[np.abs(values) > 1e-6].all()
    # Half of the images have each bit: they are centered.
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.35
    retriever = CrossMediaRetriever.from_pretrained(folder, index=True)
    own = retriever.encode_images([images / "0.png"])
    np.testing.assert_allclose(own[0], np.tanh(values[list(index.ids).index("0.png")]), atol=1e-5)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(values))), 1 / 16, rtol=0.1)


def test_everyday_phrases_choose_the_center_without_texts_of_the_data(compressed, encoder):
    model, processor = load_dual_encoder(str(encoder), 16)
    folder, images, done = compressed
    pixels = [Image.open(path) for path in sorted(images.rglob("*.png")) if path.name != "broken.png"]
    means = {
        "images": image_vectors(model, processor, pixels).mean(axis=0, dtype=float),
        "phrases": text_vectors(model, processor, list(PHRASES)).mean(axis=0, dtype=float),
    }
    centers = done.choice.centers
    assert len(centers) == 10
    share, _, of = centers[0].name.rpartition("mean of ")
    projection = done.choice.projection
    expected = -projection.text_weight @ ({"": 4, "3/4 of the ": 3, "1/2 of the ": 2}[share] / 4 * means[of])
    np.testing.assert_allclose(projection.text_bias, expected, atol=1e-5)
    content = json.loads((folder / "metrics.json").read_text())["compression"]
    assert content["centers"][0] == {"name": centers[0].name, "aqd": centers[0].aqd, "hamming": centers[0].hamming}


def test_model_says_how_it_was_made(compressed):
    folder, _, done = compressed
    content = json.loads((folder / "metrics.json").read_text())["compression"]
    assert content["by_partner"] is False
    assert content["code"] == done.choice.projection.name == content["candidates"][0]["name"]
    assert {"images": 60, "texts": 0, "left_out": 1, "bits": 16, "rank": 16}.items() <= content.items()
    scores = [each["aqd"] + each["hamming"] for each in content["candidates"]]
    assert scores == sorted(scores, reverse=True)


def test_folder_is_indexed_once_and_then_only_what_changed(compressed, monkeypatch):
    folder, images, _ = compressed
    retriever = CrossMediaRetriever.from_pretrained(folder)
    encoded = []
    original = CrossMediaRetriever.encode_pixels
    monkeypatch.setattr(
        CrossMediaRetriever,
        "encode_pixels",
        lambda self, batch: encoded.append(len(batch)) or original(self, batch),
    )
    changes = update_folder_index(retriever, images)
    assert (changes.added, changes.changed, changes.removed, changes.unchanged) == (0, 0, 0, 60)
    assert len(changes.unreadable) == 1  # as recorded by `compress`
    assert not encoded
    Image.new("RGB", (40, 40), "red").save(images / "0.png")
    (images / "2.png").rename(images / "moved.png")
    (images / "4.png").unlink()
    changes = update_folder_index(retriever, images)
    assert (changes.changed, changes.renamed, changes.removed, changes.unchanged) == (1, 1, 1, 57)
    assert sum(encoded) == 1
    assert "moved.png" in retriever.images
    assert "4.png" not in retriever.images
    assert len(HashIndex.load(folder_index_path(retriever.fingerprint, images))) == 59
    found = retriever.search(image=images / "0.png", k=1)
    assert found.ids.tolist() == [["0.png"]]


def describe(images: Path) -> None:
    """Makes a data set of a folder of images."""
    rows = [
        {"file_name": path.relative_to(images).as_posix(), "text": f"{number} things"}
        for number, path in enumerate(sorted(images.rglob("*.png")))
    ]
    (images / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_images_in_the_output_are_refused_and_an_earlier_model_is_replaced(encoder, tmp_path, monkeypatch):
    images, model = draw_images(tmp_path / "images", 20), tmp_path / "model"

    def encoded(*_):
        raise AssertionError("the output is checked before images are encoded")

    with monkeypatch.context() as early:
        early.setattr("cmfah_hf.training.compression.vectors_of_pixels", encoded)
        with pytest.raises(CheckpointError, match=r"images holds '0\.png', which would be lost; name another folder"):
            compress(str(encoder), images, images, 8)
        model.mkdir()
        (model / "config.json").write_text("{}", encoding="utf-8")
        with pytest.raises(CheckpointError, match="holds something other than a compressed model"):
            compress(str(encoder), images, model, 8)
    assert len(list(images.rglob("*.png"))) == 20
    (model / "config.json").unlink()
    compress(str(encoder), images, model, 8)
    compress(str(encoder), images, model, 16)
    assert CrossMediaRetriever.from_pretrained(model).model.config.hash_bits == 16


def test_search_page_shows_a_compressed_model(compressed, tmp_path):
    images = draw_images(tmp_path / "images", 12)
    describe(images)
    engine = Engine(SpaceSettings(model=str(compressed[0]), data=str(images)), tmp_path)
    answer = engine.search(text="a dog on the beach", k=3)
    assert engine.document(answer)
    why = engine.attention("a dog", engine.images.ids[0])
    assert [*why.words] == ["a", "dog"]
    assert why.weights.shape[0] == why.grid[0] * why.grid[1] == 16
    shown = charts.quality(engine.metrics)
    assert "compressed and not trained" in shown
    assert shown.count("<tr>") == 1 + len(compressed[2].choice.candidates)


def test_attention_is_drawn_over_the_part_that_the_encoder_sees(compressed, tmp_path):
    """The processor crops the middle, so the grid covers a square of a wide or a tall image."""
    images = tmp_path / "images"
    images.mkdir()
    for name, size in (("tall", (40, 80)), ("wide", (100, 50))):
        Image.linear_gradient("L").resize(size).save(images / f"{name}.png")
    describe(images)
    engine = Engine(SpaceSettings(model=str(compressed[0]), data=str(images)), tmp_path)
    for name, inset in (("tall", "25.000% 0.000% 25.000% 0.000%"), ("wide", "0.000% 25.000% 0.000% 25.000%")):
        item_id = next(one for one in engine.images.ids if name in str(one))
        attention = engine.attention("a dog", item_id)
        assert f"inset:{inset};" in html.overlay(engine, item_id, attention, attention.words[0], None)


def test_search_page_shows_a_folder_of_images_without_texts(compressed, tmp_path):
    images = draw_images(tmp_path / "images", 6)
    engine = Engine(SpaceSettings(model=str(compressed[0]), data=str(images)), tmp_path)
    assert sorted(engine.images.ids)[:3] == ["0.png", "2.png", "4.png"]
    assert list(engine.search(image=engine.images.image(0), k=2).rankings) == ["images"]  # there are no texts to find
    assert engine.document(engine.search(text=engine.examples()[0], k=2))


def test_long_texts_are_cut_off_and_this_is_said_once(encoder, caplog):
    _, processor = load_dual_encoder(str(encoder), 16)
    processor(text=["a dog"], return_tensors="pt")
    assert "cut off" not in caplog.text
    for _ in range(2):
        processor(text=["a dog " * 30, "a cat"], return_tensors="pt")
    assert caplog.text.count("cut off after 16 tokens") == 1


def test_texts_of_a_data_set_help_to_fit(encoder, tmp_path):
    images = draw_images(tmp_path / "images", 110)
    describe(images)
    done = compress(str(encoder), images, tmp_path / "model", bits=8)
    assert (done.images, done.texts) == (110, 110)
    assert {each.name.split(",")[0] for each in done.choice.candidates} == {"pca", "shared", "cca"}
    # The 22 pairs that were held out calibrate the model.
    assert done.choice.by_partner
    assert [codes.shape for codes in done.choice.held_out_codes] == [(22, 8)] * 2
    retriever = CrossMediaRetriever.from_pretrained(tmp_path / "model", index=True)
    assert (retriever.calibration.relevance, retriever.calibration.model) == ("pairs", retriever.fingerprint)
    assert retriever.calibration.maps["aqd/t2i"].bins
    card = str(make_model_card(read_run(tmp_path / "model"), "org/model"))
    assert "held-out queries, five-fold" in card
    assert "| answers | mean probability | relevant share |" in card
    found = retriever.search(text="a bird", k=110)
    assert ((found.probabilities >= 0) & (found.probabilities <= 1)).all()
    without = compress(str(encoder), images, tmp_path / "other", bits=8, use_texts=False)
    assert (without.texts, {each.name.split(",")[0] for each in without.choice.candidates}) == (0, {"pca"})


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_texts_of_a_file_need_not_belong_to_the_images(kind, encoder, tmp_path, caplog):
    texts = [f"{number} birds {'in the sky' if number % 3 else 'at sea'}" for number in range(30)]
    path = tmp_path / f"texts.{kind}"
    if kind == "txt":
        path.write_text("\n\n".join(texts))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text.split() if "sky" in text else text}) + "\n" for text in texts))
    else:
        pq.write_table(pa.table({"text": [*texts, None, " "]}), path)
    done = compress(str(encoder), draw_images(tmp_path / "images", 40), tmp_path / "model", bits=8, texts=path)
    assert (done.images, done.texts, done.other_texts) == (40, 0, 30)
    assert f"{path} has only 30 texts" in caplog.text
    assert {each.name.split(",")[0] for each in done.choice.candidates} == {"pca", "shared"}
    values = done.choice.projection.texts(text_vectors(*load_dual_encoder(str(encoder), 8), texts))
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-5)
    content = json.loads((tmp_path / "model" / "metrics.json").read_text())["compression"]
    assert content["other_texts"] == 30


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("blank.txt", " \n\n", "blank.txt has no text; write one on each line"),
        ("numbers.jsonl", '{"text": 3}', "numbers.jsonl, line 1, holds 3; a text is a string"),
        ("absent.txt", None, "absent.txt: there is no such file"),
        ("table.csv", "text", "a corpus is a .jsonl, .txt or .parquet file"),
    ],
)
def test_files_without_texts_are_refused(name, content, reason, encoder, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=reason):
        compress(str(encoder), draw_images(tmp_path / "images", 4), tmp_path / "model", texts=tmp_path / name)


def test_half_of_a_surrogate_pair_is_no_obstacle(encoder, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a \\ud83d\\ude00 bird \\ud83d"}\n{"text": "a dog"}\n')
    done = compress(str(encoder), draw_images(tmp_path / "images", 4), tmp_path / "model", bits=8, texts=path)
    assert done.other_texts == 2


def test_more_bits_than_dimensions_are_said(encoder, tmp_path, caplog):
    done = compress(str(encoder), draw_images(tmp_path / "images", 30), tmp_path / "model", bits=64)
    assert done.choice.projection.rank == 24  # the width of the encoder
    assert "24 dimensions" in caplog.text


@pytest.mark.parametrize(
    ("prepare", "error", "reason"),
    [
        (lambda folder: Image.new("RGB", (9, 9)).save(folder / "only.png"), DataError, "2 or more"),
        (lambda folder: [Image.new("RGB", (9, 9)).save(folder / f"{n}.png") for n in range(9)], DataError, "equal"),
        (lambda folder: (folder / "broken.png").write_bytes(b"x"), DataError, "none of its 1 images"),
    ],
)
def test_images_that_no_code_can_tell_apart(prepare, error, reason, encoder, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(error, match=reason):
        compress(str(encoder), folder, tmp_path / "model", bits=8)
    assert not (tmp_path / "model").exists()


def test_encoders_that_are_none(encoder, tmp_path):
    from transformers import BertConfig, BertModel

    images = draw_images(tmp_path / "images", 4)
    text_model = tmp_path / "bert"
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=9, **sizes)).save_pretrained(text_model)
    for place, reason in (
        (text_model, "encodes no images"),
        (tmp_path / "nothing", "Or give a folder"),
        (images, "no dual encoder can be loaded"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            compress(str(place), images, tmp_path / "model")
    with pytest.raises(CheckpointError, match="multiple of 8"):
        compress(str(encoder), images, tmp_path / "model", bits=12)
    with pytest.raises(CheckpointError, match="save its weights"):
        compress(str(encoder), images, tmp_path / "model", link=True)


@pytest.mark.slow
def test_two_commands_lead_from_a_folder_to_an_answer(encoder, tmp_path):
    images = draw_images(tmp_path / "images", 30)
    environment = {"HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"}

    def run(*arguments):
        ended = subprocess.run(
            [sys.executable, "-c", "from cmfah_hf.cli import main; main()", *map(str, arguments), "--json"],
            env=environment, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    done = run("compress", encoder, images, "--bits", 16, "--output", tmp_path / "model")
    assert done["images"] == 30
    answer = run("search", tmp_path / "model", "--images", images, "--text", "a dog on the beach", "-k", 3)
    assert answer["folder"]["unchanged"] == 30
    assert len(answer["results"]) == 3
    # The index that came with the model follows no folder.
    again = run("search", tmp_path / "model", "--text", "a dog on the beach", "-k", 3)["results"]
    assert [{**hit, "path": None} for hit in answer["results"]] == again
