"""Tiny towers over given features with the objective of a deep method, their outputs, and pairs to train them on."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from settings import pretraining_model

from cmfah_hf.methods import FeatureHashForPreTraining
from cmfah_hf.methods.outputs import CMFAHForPreTrainingOutput
from cmfah_hf.training import CMFAHTrainer, CMFAHTrainingArguments

CLASSES = ["boat", "cat", "tree"]
IMAGE_WIDTH, TEXT_WIDTH, HIDDEN, BITS = 6, 5, 12, 8


@pytest.fixture
def deep_model():
    """A function from a method's name and settings to its model: 6 and 5 values in, 12 hidden units, 8 bits, 3 classes.

    With `classes=()`, as unsupervised methods have it, there are no classes.
    """

    def make(method: str, seed: int = 0, classes=CLASSES, dtype=torch.float32, **settings):
        torch.manual_seed(seed)
        named = dict(enumerate(classes))
        sizes = {
            "image_feature_dim": IMAGE_WIDTH,
            "text_feature_dim": TEXT_WIDTH,
            "hidden_size": HIDDEN,
            "hash_bits": BITS,
            "id2label": named,
            "label2id": {name: number for number, name in named.items()},
        }
        return pretraining_model(method, **{**sizes, **settings}).to(dtype)

    return make


@pytest.fixture
def deep_batch():
    """A function from a count to random outputs of the towers, with gradients, and labels `(B, C)`, each with 1 or 2.

    The codes are the `tanh` of the logits, which are leaves with a gradient, as are the features; the codes' gradients
    flow to the logits. `leaves` are all leaves by name.
    """

    def make(count: int, seed: int = 0, dtype=torch.float64, hidden: int = HIDDEN, bits: int = BITS, classes: int = 3):
        random = torch.Generator().manual_seed(seed)

        def drawn(width: int) -> torch.Tensor:
            return torch.randn(count, width, generator=random, dtype=torch.float64).to(dtype)

        leaves = {f"{side}_logits": drawn(bits).requires_grad_() for side in ("image", "text")}
        leaves |= {f"{side}_features": drawn(hidden).requires_grad_() for side in ("image", "text")}
        outputs = CMFAHForPreTrainingOutput(
            **leaves,
            image_hash=leaves["image_logits"].tanh(),
            text_hash=leaves["text_logits"].tanh(),
            image_vectors=drawn(IMAGE_WIDTH),
            text_vectors=drawn(TEXT_WIDTH),
        )
        labels = torch.zeros(count, classes)
        labels[torch.arange(count), torch.randint(classes, (count,), generator=random)] = 1
        labels[torch.arange(count), torch.randint(classes, (count,), generator=random)] = 1
        return SimpleNamespace(outputs=outputs, labels=labels, leaves=leaves)

    return make


@pytest.fixture
def deep_pairs():
    """A function from a count to pairs with given features near the means of their classes, one label each."""

    def make(count: int, seed: int = 0, noise: float = 0.5) -> list[dict]:
        means = np.random.default_rng(99)
        images, texts = means.normal(size=(3, IMAGE_WIDTH)), means.normal(size=(3, TEXT_WIDTH))
        rng = np.random.default_rng(seed)
        rows = []
        for number in range(count):
            kind = int(rng.integers(3))
            rows.append(
                {
                    "id": f"{seed}-{number}",
                    "text": CLASSES[kind],
                    "labels": [CLASSES[kind]],
                    "image_features": (images[kind] + noise * rng.normal(size=IMAGE_WIDTH)).astype(np.float32),
                    "text_features": (texts[kind] + noise * rng.normal(size=TEXT_WIDTH)).astype(np.float32),
                }
            )
        return rows

    return make


@pytest.fixture
def deep_trainer(deep_pairs, tmp_path):
    """A function from a model and training arguments to its trainer, on 24 pairs with 12 for validation.

    With `similarity=PairSimilarity()`, an unsupervised method can be trained.
    """

    def make(model, folder: str = "out", train=None, similarity=None, **arguments) -> CMFAHTrainer:
        settings = {
            "output_dir": str(tmp_path / folder),
            "use_cpu": True,
            "disable_tqdm": True,
            "optim": "adamw_torch",
            "learning_rate": 0.01,
            "lr_scheduler_type": "constant",
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "eval_strategy": "no",
            "save_strategy": "no",
            "load_best_model_at_end": False,
        }
        return CMFAHTrainer(
            model,
            CMFAHTrainingArguments(**{**settings, **arguments}),
            deep_pairs(24) if train is None else train,
            deep_pairs(12, seed=1),
            similarity=similarity,
        )

    return make


@pytest.fixture
def resume(deep_model, deep_trainer, tmp_path):
    """A function that resumes a training at a step, with other first weights, and expects the same weights at the end.

    It takes the method, the step, the optimizer and settings of the model, and returns the trainer of the whole
    training, that of the resumed one, and the folder of the checkpoint. An epoch has 3 steps, a training 3 epochs.
    """

    def run(method: str, step: int, similarity=None, optim="adamw_torch", **settings):
        arguments = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": step, "save_total_limit": None}
        arguments |= {"optim": optim, "weight_decay": 0.01}

        def trainer(folder: str, seed: int) -> CMFAHTrainer:
            return deep_trainer(deep_model(method, seed, **settings), folder, similarity=similarity, **arguments)

        whole = trainer("whole", seed=0)
        whole.train()
        checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
        resumed = trainer("resumed", seed=4)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        found = resumed.model.state_dict()
        for name, value in whole.model.state_dict().items():
            assert torch.equal(found[name], value), name
        return whole, resumed, checkpoint

    return run


@pytest.fixture
def reload(tmp_path):
    """A function that saves a model, loads it again with the same weights and settings, and returns the loaded one."""

    def run(model: FeatureHashForPreTraining) -> FeatureHashForPreTraining:
        model.save_pretrained(tmp_path / "model")
        again, report = FeatureHashForPreTraining.from_pretrained(tmp_path / "model", output_loading_info=True)
        assert not any(report.values())
        assert again.objective.name == model.objective.name
        assert again.objective.settings == model.objective.settings
        found = again.state_dict()
        for name, value in model.state_dict().items():
            assert torch.equal(found[name], value), name
        return again

    return run


@pytest.fixture
def assert_codes_ignore_the_batch():
    """A function that compares the codes of items, each encoded alone, with those of a batch, for both towers."""

    def check(model) -> None:
        towers = model.eval().cmfah
        for encode, name, width in (
            (towers.get_image_hash, "region_features", IMAGE_WIDTH),
            (towers.get_text_hash, "token_features", TEXT_WIDTH),
        ):
            items = torch.randn(7, 1, width)
            alone = torch.cat([encode(**{name: one}) for one in items.split(1)])
            torch.testing.assert_close(encode(**{name: items}), alone, rtol=0, atol=1e-6, msg=name)

    return check


@pytest.fixture
def share_of_equal_classes():
    """A function to the share of a trainer's validation images whose nearest text, by its code, is of their class."""

    def share(trainer: CMFAHTrainer) -> float:
        rows = [trainer.eval_dataset[number] for number in range(len(trainer.eval_dataset))]
        classes = np.array([row["labels"][0] for row in rows])
        image, text = (
            torch.tensor(np.array([row[f"{side}_features"] for row in rows]))[:, None] for side in ("image", "text")
        )
        towers = trainer.model.eval().cmfah
        with torch.no_grad():
            codes = towers.get_image_hash(region_features=image), towers.get_text_hash(token_features=text)
        nearest = torch.cosine_similarity(codes[0][:, None], codes[1][None], dim=2).argmax(dim=1)
        return (classes[nearest.numpy()] == classes).mean()

    return share
