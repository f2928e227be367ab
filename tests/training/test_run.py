"""A whole run, from a configuration to a folder that loads; query pairs take no part in training."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from cmfah_hf.data import load_image_text, make_scenes, train_validation_split, write_imagefolder
from cmfah_hf.evaluation import PAIR_METRICS, RANKINGS, RetrievalEvaluator
from cmfah_hf.expansion import GraphExpander, SkipGramEmbedding
from cmfah_hf.methods import CMFAHForPreTraining
from cmfah_hf.models import CMFAHModel, CMFAHProcessor
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.training import run as run_module
from cmfah_hf.training import train
from cmfah_hf.training.evaluate import evaluate_folder, evaluate_pairs, split_figures


def hashes(model, processor, scenes_folder):
    pairs = load_image_text(scenes_folder, split="query")
    inputs = processor(images=[pair["image"] for pair in pairs], return_tensors="pt")
    texts = processor(text=list(pairs["text"]), return_tensors="pt")
    with torch.no_grad():
        return (
            model.eval().get_image_hash(inputs["pixel_values"]),
            model.get_text_hash(texts["input_ids"], texts["attention_mask"]),
        )


def test_folder_of_a_run_is_complete(trained):
    present = {path.name for path in trained.folder.iterdir() if path.is_file()}
    assert present >= {
        "config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "expander.json",
        "expander.safetensors", "skip_gram.json", "skip_gram.safetensors", "metrics.json", "trainer_state.json",
        "training_args.json", "modeling_cmfah.py", "run.yaml",
    }  # fmt: skip
    assert not list(trained.folder.rglob("*.bin"))
    assert not list(trained.folder.glob("*.pt*"))
    assert {path.name for path in (trained.folder / "plots").iterdir()} == {
        "precision_at_k.png",
        "precision_recall.png",
        "attention.png",
    }
    for plot in (trained.folder / "plots").iterdir():
        with Image.open(plot) as image:
            assert min(image.size) > 200


def test_parts_of_the_folder_load_and_agree(trained):
    towers = CMFAHModel.from_pretrained(trained.folder)
    pretraining = CMFAHForPreTraining.from_pretrained(trained.folder)
    processor = CMFAHProcessor.from_pretrained(trained.folder)
    embedding = SkipGramEmbedding.load(trained.folder)
    assert towers.config.hash_bits == 16
    for name, tensor in towers.state_dict().items():
        assert torch.equal(tensor, pretraining.cmfah.state_dict()[name]), name
    # The vocabulary is that of the word vectors; the classes are those of the training split, sorted.
    vocabulary = processor.tokenizer.get_vocab()
    assert [vocabulary[word] for word in embedding.vocabulary] == list(range(2, 2 + len(embedding)))
    assert towers.config.vocab_size == len(embedding) + 2
    part = train_validation_split(load_image_text(trained.scenes, split="train"), 0.1, seed=0)[0]
    classes = sorted({name for labels in part["labels"] for name in labels})
    assert [towers.config.id2label[i] for i in range(towers.config.num_labels)] == classes
    # The expander contains exactly the words of the training split.
    words = {word for text in part["text"] for word in text.lower().split()}
    assert set(GraphExpander.load(trained.folder).graph.vocabulary) == words
    assert isinstance(AutoModel.from_pretrained(trained.folder), CMFAHModel)
    assert isinstance(AutoProcessor.from_pretrained(trained.folder), CMFAHProcessor)


def test_metrics_match_the_saved_model(trained):
    written = json.loads((trained.folder / "metrics.json").read_text(encoding="utf-8"))
    assert written == trained.metrics
    assert (written["hash_bits"], written["train_pairs"], written["validation_pairs"]) == (16, 43, 5)

    retriever = CrossMediaRetriever.from_pretrained(trained.folder)
    sides = []
    for split in ("query", "train"):  # the database: the training pairs, including validation pairs
        pairs = load_image_text(trained.scenes, split=split)
        sides.append((retriever.encode_images(pairs["image"]), retriever.encode_texts(pairs["text"]), pairs["labels"]))
    (image_q, text_q, labels_q), (image_db, text_db, labels_db) = sides
    expected = RetrievalEvaluator()(image_q, text_q, image_db, text_db, list(labels_q), list(labels_db))
    of_pairs = RetrievalEvaluator(PAIR_METRICS, (1, 5, 10), RANKINGS).pairs(image_q, text_q)
    assert written["pairs"] == pytest.approx(of_pairs, abs=1e-6)
    assert {name: written["query"][name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert {name.partition("_")[0] for name in written["query"].keys() - expected} == {"queries", "database"}
    assert written["query"]["database"] == 48

    again = evaluate_folder(str(trained.folder), str(trained.scenes))
    assert split_figures(again) == (
        pytest.approx(written["query"], abs=1e-6),
        pytest.approx(written["pairs"], abs=1e-6),
    )
    states = json.loads((trained.folder / "trainer_state.json").read_text(encoding="utf-8"))
    maps = [log["eval_map"] for log in states["log_history"] if "eval_map" in log]
    assert len(maps) == 2
    assert written["validation"] == max(maps)
    assert written["epoch"] == 1 + maps.index(max(maps))


PROGRAM = """
import sys
import numpy as np, torch
from cmfah_hf import CMFAHModel, CMFAHProcessor, load_image_text
model, processor = CMFAHModel.from_pretrained(sys.argv[1]), CMFAHProcessor.from_pretrained(sys.argv[1])
pairs = load_image_text(sys.argv[2], split="query")
with torch.no_grad():
    images = model.eval().get_image_hash(processor(images=list(pairs["image"]), return_tensors="pt")["pixel_values"])
    texts = processor(text=list(pairs["text"]), return_tensors="pt")
    texts = model.get_text_hash(texts["input_ids"], texts["attention_mask"])
np.savez(sys.argv[3], images=images.numpy(), texts=texts.numpy())
"""


@pytest.mark.slow
def test_new_process_computes_the_same_codes_bit_for_bit(trained, tmp_path, environment):
    towers, processor = CMFAHModel.from_pretrained(trained.folder), CMFAHProcessor.from_pretrained(trained.folder)
    images, texts = hashes(towers, processor, trained.scenes)
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(trained.folder), str(trained.scenes), str(tmp_path / "found.npz")],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    with np.load(tmp_path / "found.npz") as found:
        assert found["images"].tobytes() == images.numpy().tobytes()
        assert found["texts"].tobytes() == texts.numpy().tobytes()
    assert images.std() > 0.01


@pytest.mark.slow
def test_query_pairs_do_not_affect_training(run_of, scenes_folder, tmp_path):
    """Two runs with disjoint query splits produce bit-equal models."""
    other = tmp_path / "other"
    shutil.copytree(scenes_folder, other)
    shutil.rmtree(other / "query")
    strange = make_scenes(5, seed=9, image_size=48).map(
        lambda row: {"text": "zyzzyva " + row["text"], "labels": ["zyzzyva"]}
    )
    write_imagefolder(strange, other / "query")
    states = []
    for name, dataset in (("one", scenes_folder), ("two", other)):
        data = {"dataset": str(dataset), "validation_fraction": 0.5}  # 24 validation pairs, enough for a calibration
        run = run_of("--output_dir", str(tmp_path / name), data=data)
        metrics = train(run)
        states.append(load_file(tmp_path / name / "model.safetensors"))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert "zyzzyva" not in SkipGramEmbedding.load(tmp_path / "two")
    # The calibration is fitted to the validation pairs, too, and is that of the saved model.
    one, two = ((tmp_path / name / "calibration.json").read_bytes() for name in ("one", "two"))
    assert one == two
    retriever = CrossMediaRetriever.from_pretrained(tmp_path / "two")
    assert retriever.calibration.model == retriever.fingerprint
    assert retriever.calibration.relevance == "labels"
    assert metrics["calibration"]["aqd/t2i"]["share"] == 1  # of the five queries among themselves
    assert metrics["query"]["queries"] == metrics["query"]["queries_without_relevant"] == 5
    # The validation split does matter: it selects the epoch; only the training split provides the words.
    assert metrics["train_pairs"] + metrics["validation_pairs"] == 48


def test_queries_are_read_once_and_after_training(run_of, monkeypatch):
    order = []
    fit, evaluate = run_module.CMFAHTrainer.train, evaluate_pairs

    def training(self, *args, **kwargs):
        order.append("training")
        ids = set(self.train_dataset["id"]) | set(self.eval_dataset["id"])
        assert not [name for name in ids if name.startswith("scene-9")]  # names of the query scenes
        return fit(self, *args, **kwargs)

    def evaluating(towers, processor, queries, *args, **kwargs):
        order.append("queries")
        assert all(name.startswith("scene-9") for name in queries["id"])
        return evaluate(towers, processor, queries, *args, **kwargs)

    monkeypatch.setattr(run_module.CMFAHTrainer, "train", training)
    monkeypatch.setattr(run_module, "evaluate_pairs", evaluating)
    train(run_of())
    assert order == ["training", "queries"]


@pytest.mark.slow
def test_same_run_twice_gives_the_same_model(run_of, trained, tmp_path):
    train(run_of("--output_dir", str(tmp_path / "again"), training={"num_train_epochs": 2}))
    one, two = load_file(trained.folder / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(one[name], two[name]) for name in one)
    train(run_of("--output_dir", str(tmp_path / "seeded"), "--seed", "1"))
    three = load_file(tmp_path / "seeded" / "model.safetensors")
    assert not torch.equal(one["objective.label_head.weight"], three["objective.label_head.weight"])


def test_interrupted_run_resumes_from_its_checkpoint(run_of, trained, tmp_path):
    """The words are those of the resumed run, and the result is that of the uninterrupted run."""
    folder = tmp_path / "broken"
    shutil.copytree(trained.folder, folder)
    (folder / "model.safetensors").unlink()
    first, last = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    shutil.rmtree(last)
    run = run_of("--output_dir", str(folder), "--resume_from_checkpoint", str(first), training={"num_train_epochs": 2})
    metrics = train(run)
    assert {**metrics, "seconds": 0} == {**trained.metrics, "seconds": 0}
    whole, resumed = load_file(trained.folder / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
