"""Models, processors, word graphs and knowledge with changed files: loaded and used, or refused."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils import logging as transformers_logging

from cmfah_hf.expansion import GraphExpander, SkipGramEmbedding, WikipediaKnowledge
from cmfah_hf.methods import CMFAHForPreTraining
from cmfah_hf.models import CMFAHConfig, CMFAHModel, CMFAHProcessor, SCAHNConfig, SCAHNModel
from cmfah_hf.retrieval import CrossMediaRetriever
from fuzz.harness import ODD_VALUES, mutated, mutated_json

WORDS = ["beach", "boat", "dog", "sea", "sky", "sun"]
TEXTS = ["dog beach sea", "boat sea sky", "sun sky beach", "dog sun"]
SETTINGS = {
    "backbone_config": {
        "model_type": "resnet",
        "layer_type": "basic",
        "embedding_size": 4,
        "hidden_sizes": [4, 8],
        "depths": [1, 1],
        "out_features": ["stage2"],
    },
    "image_size": 32,
    "vocab_size": len(WORDS) + 2,
    "word_dim": 8,
    "text_filters": 4,
    "text_kernel_sizes": [1, 3],
    "hidden_size": 8,
    "num_concepts": 4,
    "hash_bits": 16,
    "id2label": {0: "land", 1: "water"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Models of both methods with all optional files; one is sharded."""
    torch.manual_seed(0)
    knowledge = WikipediaKnowledge(window=2, min_count=1, min_pair_count=1).fit(TEXTS, WORDS)
    made = {}
    for name, model in (
        ("cmfah", CMFAHForPreTraining(CMFAHConfig(**SETTINGS))),
        ("scahn", SCAHNModel(SCAHNConfig(**SETTINGS))),
        ("shards", CMFAHModel(CMFAHConfig(**SETTINGS))),
    ):
        made[name] = folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder, max_shard_size="4KB" if name == "shards" else "5GB")
        CMFAHProcessor.from_vocabulary(model.config, WORDS).save_pretrained(folder)
        GraphExpander(knowledge=knowledge).fit(TEXTS).save(folder)
        SkipGramEmbedding(vector_size=8, epochs=1).fit(TEXTS).save(folder)
        for code in folder.glob("*.py"):
            code.unlink()
    return made


@pytest.fixture(autouse=True)
def quiet():
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    yield
    transformers_logging.set_verbosity(before)


@torch.inference_mode()
def use(folder: Path) -> None:
    """Loads the model in every way, and encodes one text and one image."""
    retriever = CrossMediaRetriever.from_pretrained(folder, device="cpu")
    image = Image.fromarray(np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3))
    for values in (retriever.encode_images([image]), retriever.encode_texts(["a dog at the sea"])):
        assert values.shape[0] == 1
        assert np.isfinite(values).all()


def changed(folder: Path, at: Path, name: str) -> Path:
    """The model of `folder` at `at`, as links, except for a copy of one file to change."""
    shutil.rmtree(at, ignore_errors=True)
    at.mkdir()
    for path in folder.iterdir():
        if path.name != name:
            (at / path.name).hardlink_to(path)
    shutil.copyfile(folder / name, at / name)
    return at / name


def odd(canary) -> tuple:
    strings = (
        "resnet",
        "swin",
        "timm_backbone",
        "evil.Code",
        "owner/name--evil.Code",
        "hf-hub:owner/name",
        "float8",
        "(a+)+$",
    )
    return (*ODD_VALUES, *canary.names(), *strings)


JSONS = ("config.json", "config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")


def test_json_files(fuzzer, folders, canary, tmp_path):
    fuzz = fuzzer(share=0.06)
    odd_values = odd(canary)

    def attempt(rng: random.Random) -> None:
        folder, name = folders[rng.choice(("cmfah", "scahn"))], rng.choice(JSONS)
        path = changed(folder, tmp_path / "model", name)
        content = path.read_bytes()
        if rng.random() < 0.7:
            content = json.dumps(mutated_json(rng, json.loads(content), odd_values)).encode("utf-8", "surrogatepass")
        else:
            content = mutated(rng, content)
        path.write_bytes(content)
        use(tmp_path / "model")

    fuzz.run(attempt)
    assert fuzz.outcomes["accepted"]


def test_index_of_weights(fuzzer, folders, canary, tmp_path):
    name = "model.safetensors.index.json"
    odd_values = (*odd(canary), "pytorch_model.bin", "x.safetensors", "../cmfah0/model.safetensors")

    def attempt(rng: random.Random) -> None:
        path = changed(folders["shards"], tmp_path / "model", name)
        path.write_text(json.dumps(mutated_json(rng, json.loads(path.read_bytes()), odd_values)), encoding="utf-8")
        use(tmp_path / "model")

    fuzzer(share=0.015).run(attempt)


def safetensors_with(rng: random.Random, content: bytes) -> bytes:
    """A safetensors file with a changed header, with changed numbers, or with changes anywhere."""
    size = int.from_bytes(content[:8], "little")
    if rng.random() < 0.5:
        header = json.dumps(mutated_json(rng, json.loads(content[8 : 8 + size]))).encode()
        return len(header).to_bytes(8, "little") + header + content[8 + size :]
    if rng.random() < 0.5:
        return content[: 8 + size] + mutated(rng, content[8 + size :])
    return mutated(rng, content)


def test_weights(fuzzer, folders, tmp_path):
    def attempt(rng: random.Random) -> None:
        path = changed(folders[rng.choice(("cmfah", "scahn"))], tmp_path / "model", "model.safetensors")
        path.write_bytes(safetensors_with(rng, path.read_bytes()))
        use(tmp_path / "model")

    fuzzer(share=0.03).run(attempt)


LOADERS = {
    "expander": lambda folder: GraphExpander.load(folder).expand("a dog at the sea"),
    "knowledge": lambda folder: WikipediaKnowledge.load(folder).related_to(["dog", "sea"]),
    "skip_gram": lambda folder: SkipGramEmbedding.load(folder).most_similar("dog"),
}


def test_states_of_the_expander(fuzzer, folders, canary, tmp_path):
    """With and without a valid checksum: a valid checksum does not prove valid content."""
    odd_values = odd(canary)

    def attempt(rng: random.Random) -> None:
        stem = rng.choice(sorted(LOADERS))
        name = f"{stem}.{rng.choice(('json', 'safetensors'))}"
        path = changed(folders["cmfah"], tmp_path / "model", name)
        if name.endswith("json") and rng.random() < 0.7:
            content = json.dumps(mutated_json(rng, json.loads(path.read_bytes()), odd_values)).encode()
        elif name.endswith("json"):
            content = mutated(rng, path.read_bytes())
        else:
            content = safetensors_with(rng, path.read_bytes())
        path.write_bytes(content)
        if name.endswith("safetensors") and rng.random() < 0.9:
            other = changed(folders["cmfah"], tmp_path / "other", f"{stem}.json")
            about = json.loads(other.read_bytes()) | {"sha256": hashlib.sha256(content).hexdigest()}
            (tmp_path / "model" / f"{stem}.json").unlink()
            (tmp_path / "model" / f"{stem}.json").write_text(json.dumps(about), encoding="utf-8")
        LOADERS[stem](tmp_path / "model")

    fuzz = fuzzer(share=0.045)
    fuzz.run(attempt)
    assert fuzz.outcomes["accepted"]
