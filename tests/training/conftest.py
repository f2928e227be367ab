"""A tiny trainable model and pairs with precomputed regions, so that no test decodes images."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from settings import split

from cmfah_hf.methods import CMFAHForPreTraining
from cmfah_hf.models import CMFAHConfig, CMFAHProcessor
from cmfah_hf.training import CMFAHTrainer, CMFAHTrainingArguments, parse_run

CLASSES = ["boat", "car", "cat", "tree"]
VOCABULARY = ["boat", "car", "cat", "photo", "red", "sea", "sun", "tree"]
REGIONS, CHANNELS = 4, 16
BACKBONE = {
    "model_type": "resnet",
    "layer_type": "basic",
    "embedding_size": 4,
    "hidden_sizes": [8, CHANNELS],
    "depths": [1, 1],
}
# 16 bits, 4 classes; `process_runs.py` uses it in its own processes too.
TINY = {
    "backbone_config": BACKBONE,
    "hash_bits": 16,
    "image_size": 32,
    "hidden_size": 12,
    "word_dim": 6,
    "text_filters": 5,
    "text_kernel_sizes": [1, 3],
    "num_concepts": 3,
    "vocab_size": len(VOCABULARY) + 2,
    "id2label": dict(enumerate(CLASSES)),
    "label2id": {name: number for number, name in enumerate(CLASSES)},
    "use_lstm": False,
}


@pytest.fixture(autouse=True)
def own_cache_of_datasets(datasets_cache):
    """Tests of this folder neither read nor write the user's own cache."""


@pytest.fixture(autouse=True)
def undrawn_plots(monkeypatch):
    """Runs write empty files as plots, because drawing them takes longer than the training.

    Not those of fixtures such as `trained`, which are made before: test_run.py looks at them.
    """
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **settings: Path(file).touch())


@pytest.fixture(scope="session")
def make_config():
    """A function from settings to a tiny configuration: 16 bits, 4 classes, a ResNet of 4 x 4 regions at 32 pixels."""

    def make(**settings) -> CMFAHConfig:
        backbone = None if "backbone" in settings else dict(BACKBONE)
        return CMFAHConfig(**{**TINY, "backbone_config": backbone, **settings})

    return make


@pytest.fixture(scope="session")
def make_model(make_config):
    """A function from settings to a tiny model with unit-length word vectors and concepts, the same for each seed."""

    def make(seed: int = 0, **settings) -> CMFAHForPreTraining:
        torch.manual_seed(seed)
        of_towers, objective = split({"similarity_weight": 0.5, **settings})
        model = CMFAHForPreTraining(make_config(**of_towers), objective)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "concepts" in name or "embed_tokens" in name:
                    parameter.normal_()
        return model

    return make


@pytest.fixture(scope="session")
def processor(make_config) -> CMFAHProcessor:
    return CMFAHProcessor.from_vocabulary(make_config(), VOCABULARY)


@pytest.fixture(scope="session")
def make_pairs():
    """A function to pairs as a data set: regions near their class means, one or two labels, a few words."""

    def make(count: int, seed: int = 0, **columns) -> datasets.Dataset:
        rng = np.random.default_rng(seed)
        labels = [sorted(rng.choice(CLASSES, rng.integers(1, 3), replace=False).tolist()) for _ in range(count)]
        texts = [" ".join([*own, *rng.choice(VOCABULARY, rng.integers(0, 2))]) for own in labels]
        regions = rng.normal(size=(count, REGIONS, CHANNELS)).astype(np.float32)
        for row, own in enumerate(labels):
            regions[row, 0, [CLASSES.index(name) for name in own]] += 3
        features = {
            "id": datasets.Value("string"),
            "text": datasets.Value("string"),
            "labels": datasets.List(datasets.Value("string")),
            "region_features": datasets.Array2D((REGIONS, CHANNELS), "float32"),
        }
        values = {"id": [f"{seed}-{i}" for i in range(count)], "text": texts, "labels": labels}
        pairs = datasets.Dataset.from_dict(
            {**values, "region_features": regions, **columns},
            features=datasets.Features({**features, **dict.fromkeys(columns, features["region_features"])}),
        )
        return pairs.with_format("numpy", columns=["region_features", *columns], output_all_columns=True)

    return make


@pytest.fixture
def make_trainer(make_model, make_pairs, processor, tmp_path):
    """A function from training arguments to a trainer of a tiny model; model and pairs are optional arguments."""

    def make(model=None, train=None, validation=None, callbacks=None, database=None, **arguments) -> CMFAHTrainer:
        settings = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "disable_tqdm": True,
            "learning_rate": 0.1,
            "discriminator_learning_rate": 0.05,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8,
            "eval_strategy": "no",
            "save_strategy": "no",
            "load_best_model_at_end": False,
        }
        return CMFAHTrainer(
            model if model is not None else make_model(),
            CMFAHTrainingArguments(**{**settings, **arguments}),
            make_pairs(24) if train is None else train,
            make_pairs(9, seed=1) if validation is None else validation,
            processing_class=processor,
            callbacks=callbacks,
            database=database,
        )

    return make


@pytest.fixture
def run_of(scenes_folder, write_config, tmp_path):
    """A function that reads the tiny run with changes by section; one epoch by default."""

    def make(*arguments: str, **changes):
        changes.setdefault("data", {}).setdefault("dataset", str(scenes_folder))
        changes.setdefault("training", {}).setdefault("num_train_epochs", 1)
        return parse_run(
            write_config(tmp_path / "run.yaml", **changes), ["--output_dir", str(tmp_path / "out"), *arguments]
        )

    return make


@pytest.fixture
def with_captions(scenes_folder, tmp_path):
    """A function that copies the scenes with a list of captions per image, `captions_of(number, text)`."""

    def copied(captions_of):
        folder = tmp_path / "captioned"
        shutil.copytree(scenes_folder, folder)
        for path in folder.glob("*/metadata.jsonl"):
            rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            for number, row in enumerate(rows):
                row["text"] = captions_of(number, row["text"])
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return folder

    return copied
