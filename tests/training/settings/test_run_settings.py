"""Effects of a run's settings (backbones, words, splits, refitting), and incomplete or unusable data."""

import hashlib
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig

from cmfah_hf.data import drop_unreadable, load_image_text, make_scenes, write_imagefolder
from cmfah_hf.errors import CheckpointError, CMFAHError, DataError
from cmfah_hf.expansion import GraphExpander, SkipGramEmbedding
from cmfah_hf.models import CMFAHModel, CMFAHProcessor
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.training import run as run_module
from cmfah_hf.training import train
from cmfah_hf.training.data import pairs as pairs_module
from cmfah_hf.training.evaluate import evaluate_folder, split_figures


def metadata_of(folder: Path, split: str) -> list[dict]:
    lines = (folder / split / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def write_metadata(folder: Path, split: str, rows: list[dict]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / split / "metadata.jsonl").write_text(text, encoding="utf-8")


def test_frozen_backbone_trains_on_cached_regions(run_of, monkeypatch, tmp_path, caplog):
    seen = []
    monkeypatch.setattr(
        pairs_module, "keep_regions", lambda pairs, *args: seen.append((len(pairs), args[-1])) or kept(pairs, *args)
    )
    from cmfah_hf.training.data.region_cache import keep_regions as kept

    run = run_of("--freeze_backbone", "true", "--mirror", "true")
    metrics = train(run)
    assert sorted(seen) == [(16, False), (48, True)]  # queries plain only, training pairs mirrored too
    assert "frozen with weights drawn at random" in caplog.text
    # The training regions match the output of the saved model's backbone.
    figures, _ = split_figures(evaluate_folder(str(tmp_path / "out"), run.data.dataset))
    assert figures == pytest.approx(metrics["query"], abs=1e-6)
    without = run_of("--freeze_backbone", "true", "--no_keep_regions", "--output_dir", str(tmp_path / "plain"))
    assert train(without)["query"]["hamming/i2t/map"] > 0
    assert sorted(seen) == [(16, False), (48, True)]


def test_backbone_folder_provides_its_weights(run_of, tmp_path):
    from transformers import ResNetBackbone, ResNetConfig

    torch.manual_seed(8)
    parts = {"layer_type": "basic", "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
    backbone = ResNetBackbone(ResNetConfig(**parts))
    backbone.save_pretrained(tmp_path / "published")
    (tmp_path / "published" / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    )
    model = {"backbone_config": None, "backbone": str(tmp_path / "published"), "freeze_backbone": True}
    train(run_of(model=model))
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(found[f"cmfah.image_model.embeddings.backbone.{name}"], tensor), name
    assert list(CMFAHProcessor.from_pretrained(tmp_path / "out").image_processor.image_mean) == [0.5] * 3


def test_weights_with_named_mean_and_std(run_of, tmp_path):
    from transformers import ResNetBackbone, ResNetConfig

    parts = {"layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    backbone = ResNetBackbone(ResNetConfig(**parts))
    backbone.save_pretrained(tmp_path / "published")
    data = {"backbone_weights": str(tmp_path / "published"), "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4] * 3}
    train(run_of(model={"freeze_backbone": True}, data=data))
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(found[f"cmfah.image_model.embeddings.backbone.{name}"], tensor), name
    processor = CMFAHProcessor.from_pretrained(tmp_path / "out").image_processor
    assert (list(processor.image_mean), list(processor.image_std)) == ([0.1, 0.2, 0.3], [0.4] * 3)


def test_words_of_an_earlier_run_and_texts_from_other_files(run_of, trained, tmp_path):
    (tmp_path / "more.txt").write_text("the quokka sits beside the boat\n" * 3, encoding="utf-8")
    train(run_of(data={"word_corpus": [str(tmp_path / "more.txt")]}))
    processor = CMFAHProcessor.from_pretrained(tmp_path / "out")
    assert processor.known_words("quokka platypus") == ["quokka"]
    assert "quokka" not in GraphExpander.load(tmp_path / "out").graph.vocabulary

    train(run_of("--output_dir", str(tmp_path / "second"), data={"words_from": str(tmp_path / "out")}))
    for name in ("skip_gram.safetensors", "expander.safetensors", "tokenizer.json"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
    with pytest.raises(CheckpointError, match=r"expander\.json is missing"):
        train(run_of(data={"words_from": str(tmp_path / "nothing")}))


def test_without_expansion_no_expander_is_saved(run_of, tmp_path):
    train(run_of("--expand", "false"))
    assert not (tmp_path / "out" / "expander.json").exists()
    retriever = CrossMediaRetriever.from_pretrained(tmp_path / "out")
    assert retriever.expander is None
    assert retriever.expand(["A boat."]) == ["A boat."]


def test_word_table_holds_unit_length_skip_gram_vectors(run_of, tmp_path):
    train(run_of("--freeze_word_vectors", "true"))
    embedding = SkipGramEmbedding.load(tmp_path / "out")
    table = load_file(tmp_path / "out" / "model.safetensors")["cmfah.text_model.embeddings.embed_tokens.weight"].numpy()
    assert not table[:2].any()
    lengths = np.linalg.norm(table[2:], axis=1)
    np.testing.assert_allclose(lengths, np.sqrt(8), rtol=1e-5)
    own = embedding.vectors / np.linalg.norm(embedding.vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(table[2:] / lengths[:, None], own, atol=1e-6)


def test_splits_by_name(run_of, scenes_folder, tmp_path):
    folder = tmp_path / "splits"
    shutil.copytree(scenes_folder / "train", folder / "learn")
    shutil.copytree(scenes_folder / "query", folder / "choose")
    write_imagefolder(make_scenes(7, seed=3, image_size=48), folder / "find")
    arguments = ["--train_split", "learn", "--validation_split", "choose", "--database_split", "find"]
    metrics = train(run_of(*arguments, "--query_split", "choose", data={"dataset": str(folder)}))
    assert (metrics["train_pairs"], metrics["validation_pairs"]) == (48, 16)
    assert (metrics["query"]["queries"], metrics["query"]["database"]) == (16, 7)
    metrics = train(run_of(*arguments, data={"dataset": str(folder)}))
    assert "query" not in metrics


def test_a_database_split_is_searched_when_present(run_of, scenes_folder, tmp_path):
    folder = tmp_path / "with-database"
    shutil.copytree(scenes_folder, folder)
    write_imagefolder(make_scenes(7, seed=3, image_size=48), folder / "database")
    found = train(run_of(data={"dataset": str(folder)}))["query"]
    assert found["database"] == 7
    assert split_figures(evaluate_folder(str(tmp_path / "out"), str(folder)))[0] == pytest.approx(found, abs=1e-6)
    assert evaluate_folder(str(tmp_path / "out"), str(folder), database_split="train")["database"] == 48
    assert train(run_of("--database_split", "none", data={"dataset": str(folder)}))["query"]["database"] == 48


def test_refit_on_all_pairs(run_of, tmp_path):
    """`refit` restarts on all 48 pairs, for the number of epochs that the validation pairs selected."""
    metrics = train(run_of("--refit", "true", training={"num_train_epochs": 3, "learning_rate": 0.05}))
    assert metrics["refit"] is True
    assert metrics["train_pairs"] == 43
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text(encoding="utf-8"))
    maps = {log["epoch"]: log["eval_map"] for log in state["log_history"] if "eval_map" in log}
    assert metrics["epoch"] == max(maps, key=maps.get)
    chosen = CMFAHModel.from_pretrained(tmp_path / "out")
    best = CMFAHModel.from_pretrained(state["best_model_checkpoint"])
    assert not torch.equal(chosen.image_model.hash_head.dense.weight, best.image_model.hash_head.dense.weight)
    figures, _ = split_figures(evaluate_folder(str(tmp_path / "out"), str(run_of().data.dataset)))
    assert figures == pytest.approx(metrics["query"], abs=1e-6)


def test_rows_without_labels_or_text_and_unreadable_images(run_of, scenes_folder, tmp_path, caplog):
    folder = tmp_path / "rough"
    shutil.copytree(scenes_folder, folder)
    rows = metadata_of(folder, "train")
    for number, row in enumerate(rows):
        if number % 6 == 0:
            row["labels"] = []
        if number % 6 == 1:
            row["text"] = ""
    write_metadata(folder, "train", rows)
    (folder / "train" / rows[2]["file_name"]).write_bytes(b"no image")
    whole = (folder / "train" / rows[3]["file_name"]).read_bytes()
    (folder / "train" / rows[3]["file_name"]).write_bytes(whole[: len(whole) // 2])
    queries = metadata_of(folder, "query")
    queries[0]["labels"] = ["never seen in training"]
    write_metadata(folder, "query", queries)

    metrics = train(run_of(data={"dataset": str(folder)}))
    assert metrics["train_pairs"] + metrics["validation_pairs"] == 46
    assert metrics["query"]["queries_without_relevant"] == 1
    assert metrics["query"]["database_without_labels"] == 8
    assert "Left out 2 of 48 images" in caplog.text
    assert rows[2]["id"] in caplog.text
    assert rows[3]["id"] in caplog.text
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert "never seen in training" not in CMFAHModel.from_pretrained(tmp_path / "out").config.label2id


@pytest.mark.parametrize("frozen", ["true", "false"])
def test_missing_labels_are_reported_before_any_image_is_read(run_of, scenes_folder, tmp_path, monkeypatch, frozen):
    folder = tmp_path / "bare"
    shutil.copytree(scenes_folder, folder)
    rows = [{name: row[name] for name in ("file_name", "text")} for row in metadata_of(folder, "train")]
    write_metadata(folder, "train", rows)

    def read(*args, **kwargs):
        raise AssertionError("the images are read")

    monkeypatch.setattr(pairs_module, "keep_regions", read)
    monkeypatch.setattr(pairs_module, "drop_unreadable", read)
    with pytest.raises(DataError) as caught:
        train(run_of("--freeze_backbone", frozen, data={"dataset": str(folder)}))
    assert str(caught.value).startswith(f"{folder}: the split 'train' has no labels")
    with pytest.raises(DataError, match=r"there is no split 'learn'; there are train, query\."):
        train(run_of("--train_split", "learn"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ["--hash_bits", "20"],
            ValueError,
            "hash_bits is 20; a code is stored in whole bytes, so give a multiple of 8.",
        ),
        (["--dataset", "./nowhere"], DataError, "./nowhere: there is no such folder or file"),
        (["--labels_column", "kinds"], DataError, "there is no column 'kinds' for the labels"),
        (["--validation_fraction", "0.999"], DataError, "48 rows cannot be divided with 48 for validation"),
        (["--walk_length", "4"], CMFAHError, "4"),
        (["--word_corpus", "absent.txt"], DataError, "absent.txt"),
    ],
)
def test_unusable_data_is_reported_in_one_line(run_of, arguments, error, message):
    with pytest.raises(error) as caught:
        train(run_of(*arguments))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value).strip()


def test_words_from_the_graph_are_added_to_the_training_texts(run_of, monkeypatch):
    texts = []
    fit = run_module.CMFAHTrainer.train

    def training(self, *args, **kwargs):
        texts.extend(zip(self.train_dataset["text"], self.train_dataset["expanded_text"], strict=True))
        assert self.data_collator.text_column == "expanded_text"
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(run_module.CMFAHTrainer, "train", training)
    train(run_of())
    assert all(expanded.startswith(text.lower()) for text, expanded in texts if text.isascii())
    assert sum(len(expanded.split()) - len(text.split()) for text, expanded in texts) > len(texts)


def test_undamaged_scenes_are_all_readable(scenes_folder):
    """The folder of these tests is intact before it is damaged: rows are skipped above only for their damage."""
    pairs = load_image_text(scenes_folder)
    assert {name: len(drop_unreadable(part)) for name, part in pairs.items()} == {"train": 48, "query": 16}
    assert isinstance(pairs["train"], datasets.Dataset)
    drawn = make_scenes(1, image_size=48)[0]["image"].tobytes()
    assert hashlib.sha256(pairs["train"][0]["image"].tobytes()).digest() == hashlib.sha256(drawn).digest()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lr_scheduler_kwargs": {"x": 1}}, "lr_scheduler_kwargs=dict"),
        ({"optim_args": "betas"}, "optim_args='betas'"),
    ],
)
def test_settings_that_pytorch_rejects_are_named(run_of, settings, named):
    with pytest.raises(CMFAHError, match=named):
        train(run_of(training=settings))


def test_encoders_are_found_below_cmfah_data(run_of, tmp_path, monkeypatch):
    monkeypatch.setenv("CMFAH_DATA", str(tmp_path))
    folder = tmp_path / "weights" / "bert"
    BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=16).save_pretrained(folder)
    run = run_of("--text_backbone", "weights/bert")
    assert run.model["text_backbone"] == "weights/bert"  # as `run.yaml` repeats it
    assert run.model_settings["text_backbone"] == str(folder)
    assert run.model_config().text_backbone_config.hidden_size == 8
