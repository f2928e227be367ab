"""Methods over one feature on the Hub: pushed, cited, loaded without the package, searched."""

import json
import re

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from cmfah_hf.methods import objective_class
from cmfah_hf.methods.registry import _MODULES
from cmfah_hf.models import CMFAHProcessor
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.training import parse_run, train

# All but two are slow, because each is trained. What they need beside their defaults:
SETTINGS = {
    **{name: ["--hidden_size", "8"] for name in ("dcmh", "ssah", "agah", "ugach", "djsrh", "ucch", "dchmt", "acmr")},
    **{"scm": [], "cmssh": ["--pairs", "50"], "cmfh": [], "cca-itq": []},
    **{name: ["--anchors", "20"] for name in ("seph", "scratch")},
}
FAST = ("dcmh", "scm")


def test_every_method_of_the_package_is_here():
    assert {"cmfah", "scahn", *SETTINGS} == set(_MODULES)


@pytest.fixture(params=[name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS])
def run(request, scenes_folder, write_config, tmp_path):
    """A tiny run of a method on scenes, over a frozen backbone and bags of words."""
    method = request.param
    backbone = {"model_type": "resnet", "layer_type": "basic", "embedding_size": 4, "hidden_sizes": [8], "depths": [1]}
    arguments = ["--dataset", str(scenes_folder), "--method", method, "--hash_bits", "8", "--use_cpu", "true"]
    arguments += ["--backbone_config", json.dumps(backbone), "--image_size", "48", "--num_train_epochs", "1"]
    arguments += ["--similarity", "pairs" if objective_class(method).labels == "refuses" else "labels"]
    arguments += SETTINGS[method]
    metrics = train(parse_run(None, [*arguments, "--expand", "false", "--output_dir", str(tmp_path / "model")]))
    return method, tmp_path / "model", metrics


def test_a_pushed_model_loads_alike_with_and_without_the_package(run, push_run, scenes_folder, monkeypatch):
    from transformers import AutoModel, AutoProcessor

    method, folder, metrics = run
    push_run(folder, license="apache-2.0")
    card = ModelCard.load("org/model")
    card.validate(repo_type="model")
    paper = objective_class(method).paper
    assert paper.bibtex in card.text
    assert method in card.data.tags
    row = re.search(r"^\| MAP, Hamming \| (\S+) \| (\S+) \|$", card.text, re.MULTILINE)
    assert float(row[1]) == pytest.approx(metrics["query"]["hamming/i2t/map"], abs=6e-4)
    own, alone = (
        AutoModel.from_pretrained("org/model", **options).eval() for options in ({}, {"trust_remote_code": True})
    )
    processor = CMFAHProcessor.from_pretrained("org/model")
    inputs = processor(text=["boat sun", "house", "?"], return_tensors="pt")
    pixels = {"pixel_values": torch.rand(3, 3, 48, 48)}
    expected = own.get_text_hash(**inputs), own.get_image_hash(**pixels)
    apart = [own.get_text_hash(**{name: values[row : row + 1] for name, values in inputs.items()}) for row in range(3)]
    torch.testing.assert_close(torch.cat(apart), expected[0])
    for model in (alone, AutoModel.from_pretrained(folder).eval()):
        for found, value in zip((model.get_text_hash(**inputs), model.get_image_hash(**pixels)), expected, strict=True):
            assert torch.equal(found, value)
    assert AutoProcessor.from_pretrained("org/model").tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    retriever = CrossMediaRetriever.from_pretrained("org/model")
    retriever.add_source(scenes_folder, split="query")
    found = retriever.search(text="boat", k=3)
    assert len(found.ids[0]) == 3
    assert np.isfinite(found.scores).all()
