"""Fingerprints that are kept by the state of the files, and models of which only the tower of texts is loaded."""

import shutil

import numpy as np
import pytest
import torch
from dual_encoders import write_dual_encoder
from safetensors.torch import load_file, save_file

from cmfah_hf.errors import QueryError
from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex, fingerprint
from cmfah_hf.retrieval.fingerprint import fingerprint_of

TEXTS = ["boat", "boat sun", "a red tree", ""]


@pytest.fixture
def computed(monkeypatch):
    """The models whose fingerprints were computed."""
    found = []
    monkeypatch.setattr(
        fingerprint, "fingerprint_of", lambda model, *rest: found.append(model) or fingerprint_of(model, *rest)
    )
    return found


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained.folder, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))


def test_it_is_computed_once_for_the_same_files(folder, computed):
    first = CrossMediaRetriever.from_pretrained(folder).fingerprint
    again = CrossMediaRetriever.from_pretrained(folder)
    assert (again.fingerprint, len(computed)) == (first, 1)
    with torch.no_grad():
        next(again.model.parameters()).add_(1)
    assert again.fingerprint != first
    assert CrossMediaRetriever.from_pretrained(folder).fingerprint == first  # that of other weights was not kept
    assert len(computed) == 2


def test_other_files_and_other_options_are_computed_again(folder, computed):
    first = CrossMediaRetriever.from_pretrained(folder).fingerprint
    narrow = CrossMediaRetriever.from_pretrained(folder, dtype=torch.bfloat16).fingerprint
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("hash_head.projection.weight") or "weight" in name)
    save_file({**tensors, name: tensors[name] + 1}, weights, {"format": "pt"})
    changed = CrossMediaRetriever.from_pretrained(folder).fingerprint
    assert len({first, narrow, changed}) == 3
    assert len(computed) == 3


@pytest.mark.parametrize("kind", ["words", "scahn", "clip"])
def test_texts_have_the_same_codes_without_the_tower_of_images(
    kind, folder, trained, trained_scahn, tmp_path, computed, request
):
    if kind == "scahn":
        folder = trained_scahn.folder
    elif kind == "clip":
        from cmfah_hf.training.compression import compress

        write_dual_encoder("clip", tmp_path / "encoder")
        compress(str(tmp_path / "encoder"), str(trained.scenes / "train"), tmp_path / "clip", 16, use_texts=False)
        folder = tmp_path / "clip"
    whole = CrossMediaRetriever.from_pretrained(folder, texts_only=True)  # whose fingerprint is not known yet
    wanted, own = whole.encode_texts(TEXTS), whole.fingerprint
    count = len(computed)
    texts = CrossMediaRetriever.from_pretrained(folder, texts_only=True)
    assert not any("image_model" in name for name, _ in texts.model.named_parameters())
    assert np.array_equal(texts.encode_texts(TEXTS), wanted)
    assert (texts.fingerprint, len(computed)) == (own, count)
    texts.images = HashIndex(texts.model.config.hash_bits, own)
    with pytest.raises(QueryError, match="loaded for texts only"):
        texts.encode_images([next((trained.scenes / "train").glob("*.png"))])
