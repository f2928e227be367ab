"""Fingerprints of models, and the checks that an index belongs to its model."""

import shutil

import numpy as np
import pytest
import torch
from dual_encoders import write_dual_encoder

from cmfah_hf.errors import HashIndexError
from cmfah_hf.expansion import GraphExpander
from cmfah_hf.methods import CMFAHForPreTraining
from cmfah_hf.models import CMFAHModel, CMFAHProcessor
from cmfah_hf.models.word_rules import WordRules
from cmfah_hf.retrieval import EXPORTERS, CrossMediaRetriever, HashIndex
from cmfah_hf.retrieval.fingerprint import fingerprint_of
from cmfah_hf.training.dual_encoders import load_dual_encoder


@pytest.fixture(scope="module")
def image_paths(trained):
    return sorted((trained.scenes / "query").glob("*.png"))


@pytest.fixture
def retriever(trained):
    return CrossMediaRetriever.from_pretrained(trained.folder)


@pytest.fixture(scope="module")
def other_model(trained, tmp_path_factory):
    """The same model with other weights in one layer, visible only in the codes."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(trained.folder, folder, ignore=shutil.ignore_patterns("checkpoint-*", "plots"))
    model = CMFAHForPreTraining.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.cmfah.image_model.hash_head.parameters():
            parameter.neg_()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def foreign_index(other_model, image_paths, tmp_path):
    other = CrossMediaRetriever.from_pretrained(other_model)
    other.add_images(image_paths[:4])
    other.images.save(tmp_path / "foreign.index")
    return tmp_path / "foreign.index"


def test_the_fingerprint_covers_what_determines_the_codes(trained, retriever, tmp_path):
    """Not file names, training-only parts, or the precision of the arithmetic."""
    shutil.copytree(trained.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoint-*", "plots"))
    moved = CrossMediaRetriever.from_pretrained(tmp_path / "copy")
    assert moved.fingerprint == retriever.fingerprint
    assert len(retriever.fingerprint) == 32
    (tmp_path / "copy" / "model.safetensors").unlink()
    retriever.model.save_pretrained(tmp_path / "copy", max_shard_size="10KB")  # only the towers, in several files
    assert len(list((tmp_path / "copy").glob("model-*.safetensors"))) > 1
    assert CrossMediaRetriever.from_pretrained(tmp_path / "copy").fingerprint == retriever.fingerprint
    wide = CrossMediaRetriever.from_pretrained(trained.folder, dtype=torch.float64)
    assert wide.fingerprint == retriever.fingerprint
    parts = CMFAHModel, CMFAHProcessor
    in_memory = CrossMediaRetriever(
        *(part.from_pretrained(trained.folder) for part in parts), GraphExpander.load(trained.folder)
    )
    assert in_memory.fingerprint == retriever.fingerprint


@pytest.mark.parametrize(
    "part", ["a weight", "mean", "size", "words", "rules", "expander", "its setting", "temperature"]
)
def test_changes_of_the_codes_change_the_fingerprint(retriever, part):
    before, processor = retriever.fingerprint, retriever.processor
    if part == "a weight":
        with torch.no_grad():
            next(retriever.model.text_model.parameters()).view(-1)[-1].add_(1e-3)
    elif part == "expander":
        retriever.expander = None
    elif part == "its setting":
        retriever.expander = GraphExpander(top_k=1).fit(["boat sun", "sun sea"])
    elif part == "temperature":
        retriever.model.config.text_temperature = 3.0
        retriever = CrossMediaRetriever(retriever.model, processor, retriever.expander)
    else:
        retriever.processor = CMFAHProcessor.from_vocabulary(
            retriever.model.config,
            _vocabulary(processor)[:: -1 if part == "words" else 1],
            image_mean=[0.1, 0.2, 0.3] if part == "mean" else processor.image_processor.image_mean,
            image_std=processor.image_processor.image_std,
            word_rules=WordRules(fold_marks=part == "rules"),
        )
        if part == "size":
            retriever.processor.image_processor.size = {"height": 16, "width": 16}
    assert retriever.fingerprint != before


def _vocabulary(processor):
    entries = sorted(processor.tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return [word for word, _ in entries[2:]]


def test_equal_processors_have_equal_fingerprints(retriever):
    before, image_processor = retriever.fingerprint, retriever.processor.image_processor
    retriever.processor = CMFAHProcessor.from_vocabulary(
        retriever.model.config,
        _vocabulary(retriever.processor),
        image_processor.image_mean,
        image_processor.image_std,
    )
    assert retriever.fingerprint == before


def test_the_fingerprint_is_computed_once_and_only_when_an_index_is_filled(retriever, image_paths, monkeypatch):
    retriever = CrossMediaRetriever(retriever.model, retriever.processor, retriever.expander)  # of no known files
    calls = []
    compute = CMFAHModel.state_dict
    monkeypatch.setattr(CMFAHModel, "state_dict", lambda *args: calls.append(1) or compute(*args))
    retriever.encode_images(image_paths[:1])
    assert calls == []
    retriever.add_images(image_paths[:2])
    retriever.search(text="boat", k=1)
    retriever.add_texts(["boat"])
    assert calls == [1]


def test_an_index_of_another_model_is_refused_on_search_and_add(retriever, foreign_index, image_paths):
    with pytest.raises(HashIndexError) as caught:
        retriever.load_index(foreign_index)
    own, foreign = retriever.fingerprint, HashIndex.load(foreign_index).model
    assert own != foreign
    for part in (str(foreign_index), foreign[:8], own[:8], "any_model=True"):
        assert part in str(caught.value)
    for name in ("images", "texts"):
        with pytest.raises(HashIndexError, match="codes of another model"):
            setattr(retriever, name, HashIndex.load(foreign_index))
    permissive = CrossMediaRetriever(retriever.model, retriever.processor, retriever.expander, any_model=True)
    permissive.images = permissive.load_index(foreign_index)
    permissive.add_images(image_paths[4:6])
    assert len(permissive.images) == 6
    assert permissive.images.model == foreign
    assert permissive.search(text="boat", k=2).ids.shape == (1, 2)


def test_further_training_changes_the_fingerprint(retriever, image_paths):
    retriever.add_images(image_paths[:3])
    with torch.no_grad():
        next(retriever.model.image_model.hash_head.parameters()).mul_(-1)
    for use in (lambda: retriever.search(text="boat"), lambda: retriever.add_images(image_paths[3:5])):
        with pytest.raises(HashIndexError, match="codes of another model"):
            use()


def test_manually_built_indexes_have_no_fingerprint(retriever, image_paths, tmp_path):
    by_hand = HashIndex(16)
    by_hand.add(np.ones((3, 16)), ids=["a", "b", "c"])
    by_hand.save(tmp_path / "hand.index")
    retriever.images = retriever.load_index(tmp_path / "hand.index")
    retriever.add_images(image_paths[:2])
    assert retriever.images.model is None
    assert retriever.search(text="boat", k=5).ids.shape == (1, 5)
    retriever.images = HashIndex(16)  # an empty index takes the fingerprint of the model that fills it
    retriever.add_images(image_paths[:2])
    retriever.images.save(tmp_path / "own.index")
    assert HashIndex.load(tmp_path / "own.index").model == retriever.fingerprint


def test_an_index_next_to_the_model_is_checked(trained, other_model, retriever, image_paths, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-*", "plots"))
    retriever.add_images(image_paths[:3])
    retriever.images.save(tmp_path / "run" / "images.index")
    assert len(CrossMediaRetriever.from_pretrained(tmp_path / "run", index=True).images) == 3
    for name in ("model.safetensors", "config.json"):
        shutil.copy(other_model / name, tmp_path / "run" / name)
    with pytest.raises(HashIndexError, match=r"images\.index holds codes of another model"):
        CrossMediaRetriever.from_pretrained(tmp_path / "run", index=True)
    assert len(CrossMediaRetriever.from_pretrained(tmp_path / "run", index=True, any_model=True).images) == 3


@pytest.mark.parametrize("to", sorted(EXPORTERS))
def test_an_export_names_the_model_for_its_queries(retriever, image_paths, tmp_path, to):
    retriever.add_images(image_paths[:3])
    files = EXPORTERS[to](retriever.images, tmp_path / to)
    described = [file.name for file in files if retriever.fingerprint in file.read_bytes().decode("utf-8", "replace")]
    assert described == [{"milvus": "collection.json", "pgvector": "load.sql", "vespa": "cmfah.sd"}[to]]


@pytest.mark.parametrize("family", ["siglip", "clip"])
def test_padding_counts_where_the_encoder_reads_it(family, tmp_path):
    """SigLIP reads texts padded to their maximum length, so another token there makes other codes."""
    model, processor = load_dual_encoder(str(write_dual_encoder(family, tmp_path / family)), 16)
    inputs = processor(text=["a dog"], return_tensors="pt")
    before = fingerprint_of(model, processor), model.get_text_hash(**inputs)
    model.config.pad_token_id = model.text_model.embeddings.backbone.pad_token_id = 5
    after = fingerprint_of(model, processor), model.get_text_hash(**inputs)
    assert (before[0] == after[0]) == torch.equal(before[1], after[1]) == (family == "clip")
