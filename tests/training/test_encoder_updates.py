"""Encoders in fine-tuning: their own learning rate."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from cmfah_hf.errors import CMFAHError
from cmfah_hf.models.adapters import adapt_encoders


@pytest.fixture
def pairs(make_pairs):
    """Pairs with images, so that the backbone is trained."""
    rows = []
    for number, row in enumerate(make_pairs(8)):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)
        rows.append({"id": row["id"], "text": row["text"], "labels": row["labels"], "image": Image.fromarray(pixels)})
    return rows


def changes_of(make_trainer, make_model, pairs, **arguments):
    """The changes of all parameters by one update of SGD, by name; True for those of encoders."""
    model = make_model(freeze_backbone=False)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = make_trainer(model, pairs, weight_decay=0.1, max_steps=1, **arguments)
    trainer.train()
    changes = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
    return {name: ("embeddings.backbone" in name, change) for name, change in changes.items()}, trainer


def test_encoders_have_a_learning_rate_of_their_own(make_trainer, make_model, pairs):
    """From equal weights and batches, the first update of SGD is proportional to the learning rate."""
    common, _ = changes_of(make_trainer, make_model, pairs)
    own, trainer = changes_of(make_trainer, make_model, pairs, encoder_learning_rate=0.002)
    assert any(is_encoder and change.any() for is_encoder, change in own.values())
    for name, (is_encoder, change) in own.items():
        expected = common[name][1] * (0.002 / 0.1 if is_encoder else 1.0)
        # Weights are float32, so a small change is known up to the rounding of the weight.
        torch.testing.assert_close(change, expected, atol=2e-7, rtol=1e-3, msg=lambda text, at=name: f"{at}: {text}")
    rates = sorted({(group["lr"], group["weight_decay"]) for group in trainer.optimizer.param_groups})
    assert rates == [(0.002, 0.0), (0.002, 0.1), (0.1, 0.0), (0.1, 0.1)]
    held = [id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len(set(held))


def test_schedules_scale_both_rates(make_trainer, make_model, pairs):
    _, trainer = changes_of(
        make_trainer, make_model, pairs, encoder_learning_rate=0.002, lr_scheduler_type="linear", warmup_steps=4
    )
    assert sorted({round(group["lr"] / rate, 6) for group, rate in zip(
        trainer.optimizer.param_groups, trainer.lr_scheduler.base_lrs, strict=True
    )}) == [0.25]  # fmt: skip


def test_adapters_without_peft_are_refused_in_one_line(make_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    model = make_model(freeze_backbone=False)
    model.cmfah.image_model.embeddings.backbone = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="needs the package peft; `pip install peft` to use it"):
        adapt_encoders(model, 2)


def test_a_rate_of_frozen_encoders_is_refused(make_trainer, make_model):
    with pytest.raises(CMFAHError, match="no encoder is trained; give --freeze_backbone false"):
        make_trainer(make_model(freeze_backbone=True), encoder_learning_rate=1e-3).train()
    with pytest.raises(CMFAHError, match="encoder_learning_rate is -1"):
        make_trainer(make_model(), encoder_learning_rate=-1.0)
