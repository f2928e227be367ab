"""Compressed encoders on the Hub: a head over a pinned commit of the encoder, loaded with and without the package."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dual_encoders import write_dual_encoder
from huggingface_hub import HfApi, ModelCard
from PIL import Image

from cmfah_hf.errors import CheckpointError
from cmfah_hf.hub import push_model
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.training.compression import compress, save_figures
from cmfah_hf.training.evaluate import evaluate_folder

SENTENCES = """
import json, sys
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("org/model", trust_remote_code=True, device="cpu")
assert type(model[0].model).__module__.startswith("transformers_modules.")
print(json.dumps([model.encode([sys.argv[1]]).tolist(), model.encode(["a dog on the beach"]).tolist()]))
"""
WITHOUT_THE_PACKAGE = """
import json, sys
from pathlib import Path
import numpy as np, torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("org/model", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("org/model", trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules.")
inputs = processor(images=[Image.open(sys.argv[1])], text=["a dog on the beach"], return_tensors="pt")
with torch.inference_mode():
    images = model.get_image_hash(inputs["pixel_values"])
    texts = model.get_text_hash(inputs["input_ids"], inputs["attention_mask"])
print(json.dumps([images.tolist(), texts.tolist()]))
"""


def push_encoder(folder: Path) -> str:
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# An encoder\n", encoding="utf-8")
    HfApi().create_repo("org/clip")
    return HfApi().upload_folder(repo_id="org/clip", folder_path=folder).oid


def draw_images(folder: Path) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(30):
        Image.fromarray(generator.integers(0, 255, (20, 30, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def token(monkeypatch):
    """The token of a user who may write."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")


@pytest.fixture
def compressed(hub, here, tmp_path):
    """A model of 16 bits over an encoder of the Hub, pushed with its index; and the commit of the encoder."""
    commit = push_encoder(write_dual_encoder("clip", tmp_path / "encoder"))
    images = draw_images(tmp_path / "images")
    compress("org/clip", images, tmp_path / "model", bits=16)
    push_model(tmp_path / "model", "org/model", images_index=tmp_path / "model" / "images.index", progress=False)
    return commit


def test_head_names_the_commit_of_its_encoder(compressed, hub, tmp_path):
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["encoder_source"], config["encoder_revision"]) == ("org/clip", compressed)
    sizes = [Path(tmp_path, name, "model.safetensors").stat().st_size for name in ("model", "encoder")]
    assert sizes[0] < sizes[1] / 4
    local = CrossMediaRetriever.from_pretrained(tmp_path / "model")
    pushed = CrossMediaRetriever.from_pretrained("org/model", index=True)
    assert pushed.fingerprint == local.fingerprint
    assert pushed.search(image=tmp_path / "images" / "7.png", k=1).ids.tolist() == [["7.png"]]
    # Another encoder at the same name changes nothing: the commit is pinned.
    push_again = write_dual_encoder("clip", tmp_path / "other", seed=1)
    HfApi().upload_folder(repo_id="org/clip", folder_path=push_again)
    again = CrossMediaRetriever.from_pretrained("org/model", force_download=True)
    assert again.fingerprint == local.fingerprint


def test_card_says_that_nothing_was_trained(compressed):
    card = ModelCard.load("org/model")
    assert (card.data.base_model, card.data.license) == ("org/clip", None)
    for part in (
        "compressed and not trained",
        compressed,
        "| license of the encoder | mit |",
        "fetched from the commit",
    ):
        assert part in card.text
    assert "None" not in card.text.split("```")[0]
    assert "## Training" not in card.text


def test_card_has_the_share_of_the_encoders_own_figures(compressed, tmp_path):
    folder = tmp_path / "model"
    data = draw_images(tmp_path / "pairs")
    for split in ("query", "train"):
        (data / split).mkdir()
    rows: dict[str, list[str]] = {"query": [], "train": []}
    for number in range(30):
        split = "query" if number < 10 else "train"
        (data / f"{number}.png").rename(data / split / f"{number}.png")
        row = {"file_name": f"{number}.png", "text": f"{number} dogs", "labels": ["odd" if number % 2 else "even"]}
        rows[split].append(json.dumps(row) + "\n")
    for split, lines in rows.items():
        (data / split / "metadata.jsonl").write_text("".join(lines))
    figures = evaluate_folder(str(folder), str(data), reference="float")
    save_figures(str(folder), str(data), figures)
    push_model(folder, "org/model", progress=False)
    text = ModelCard.load("org/model").text
    for metric, title in (("map", "MAP"), ("pairs/recall@10", "recall at 10")):
        prefix, _, name = metric.rpartition("/")
        own, whole = (
            [figures["/".join(filter(None, (prefix, ranking, way, name)))] for way in ("i2t", "t2i")]
            for ranking in ("aqd", "float")
        )
        found = re.search(rf"^\| {title}, AQD \| (\S+) \((\S+)\) \| (\S+) \((\S+)\) \|$", text, re.MULTILINE)
        expected = [own[0], own[0] / whole[0], own[1], own[1] / whole[1]]
        assert [float(value) for value in found.groups()] == pytest.approx(expected, abs=6e-4)
        assert f"| {title}, vectors of the encoder | " in text
    assert "10 held-out queries were evaluated against a database of 20 pairs" in text
    assert "mean of phrases` | " in text
    (folder / "metrics.json").write_text("{}")
    with pytest.raises(CheckpointError, match="leave out --save"):
        save_figures(str(folder), str(data), figures)


def test_encoder_of_other_weights_is_refused(compressed, tmp_path):
    file = tmp_path / "model" / "config.json"
    other = (
        HfApi()
        .upload_folder(repo_id="org/clip", folder_path=write_dual_encoder("clip", tmp_path / "other", seed=1))
        .oid
    )
    file.write_text(json.dumps(json.loads(file.read_text()) | {"encoder_revision": other}))
    with pytest.raises(CheckpointError, match="not those of the encoder"):
        CrossMediaRetriever.from_pretrained(tmp_path / "model")


def test_texts_of_a_linked_encoder_need_only_its_tower_of_texts(compressed, tmp_path):
    whole = CrossMediaRetriever.from_pretrained(tmp_path / "model")
    own = whole.fingerprint  # is kept
    texts = CrossMediaRetriever.from_pretrained(tmp_path / "model", texts_only=True)
    assert (texts.fingerprint, hasattr(texts.model, "image_model")) == (own, False)
    assert np.array_equal(texts.encode_texts(["a dog"]), whole.encode_texts(["a dog"]))


def test_unreachable_encoders_are_reported_in_one_line(hub, here, tmp_path):
    images = draw_images(tmp_path / "images")
    with pytest.raises(CheckpointError, match=r"org/nothing: no such repository .* Or give a folder"):
        compress("org/nothing", images, tmp_path / "model", bits=16)


def test_encoder_in_a_subfolder_is_named_with_it(hub, here, tmp_path):
    """As of a `SentenceTransformer` that holds a CLIP."""
    write_dual_encoder("clip", tmp_path / "encoder" / "0_CLIPModel")
    module = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (tmp_path / "encoder" / "modules.json").write_text(json.dumps([module]))
    commit = push_encoder(tmp_path / "encoder")
    compress("org/clip", draw_images(tmp_path / "images"), tmp_path / "model", bits=16)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    found = [config[f"encoder_{name}"] for name in ("source", "revision", "subfolder")]
    assert found == ["org/clip", commit, "0_CLIPModel"]
    push_model(tmp_path / "model", "org/model", progress=False)
    local = CrossMediaRetriever.from_pretrained(tmp_path / "model")
    assert CrossMediaRetriever.from_pretrained("org/model").fingerprint == local.fingerprint
    copied = tmp_path / "copied"
    compress(str(tmp_path / "encoder"), tmp_path / "images", copied, bits=16)
    assert CrossMediaRetriever.from_pretrained(copied).encode_texts(["a dog"]) == pytest.approx(
        local.encode_texts(["a dog"]), abs=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("script", [WITHOUT_THE_PACKAGE, SENTENCES], ids=["transformers", "sentence-transformers"])
def test_compressed_model_loads_without_the_package(compressed, hub, tmp_path, script):
    environment = hub.environment(tmp_path / "home", "hf_writer") | {"OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    image = tmp_path / "images" / "3.png"
    ended = subprocess.run(
        [sys.executable, "-I", "-c", script, str(image)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    retriever = CrossMediaRetriever.from_pretrained(tmp_path / "model")
    found = [np.array(value, np.float32) for value in json.loads(ended.stdout.splitlines()[-1])]
    np.testing.assert_allclose(found[0], retriever.encode_images([image]), atol=1e-6)
    np.testing.assert_allclose(found[1], retriever.encode_texts(["a dog on the beach"]), atol=1e-6)
