"""Runs of a tiny model for `test_processes.py`, the same in one process and in several.

    python process_runs.py FOLDER GROUP

Every run saves `FOLDER/GROUP-NAME-RANK.pt` with its weights, losses, codes and metrics. The rank and the number of
processes come from the environment, as for `torch.distributed`.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from accelerate import DistributedType, PartialState

# This file is a program, so modules next to it can be imported by name.
from conftest import BACKBONE, CLASSES, TINY, VOCABULARY
from settings import pretraining_model
from test_alternating_updates import CONFIG_WEIGHTS
from torch import distributed as dist

from cmfah_hf.data.similarity import PairSimilarity
from cmfah_hf.methods import CMFAHForPreTraining
from cmfah_hf.models import CMFAHProcessor
from cmfah_hf.training import CMFAHTrainer, CMFAHTrainingArguments
from cmfah_hf.training.processes import gather_rows, process_count

WORLD, RANK = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))


def make_model(method: str = "cmfah", **settings) -> CMFAHForPreTraining:
    torch.manual_seed(RANK)  # each process starts from other weights, and those of the first must win
    model = pretraining_model(method, **{**TINY, **CONFIG_WEIGHTS, "backbone_config": dict(BACKBONE), **settings})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "concepts" in name or "embed_tokens" in name:
                parameter.normal_()
    return model


def make_pairs(count: int, seed: int = 0, images: bool = False) -> list[dict]:
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        labels = sorted(rng.choice(CLASSES, rng.integers(1, 3), replace=False).tolist())
        regions = rng.normal(size=(4, 16)).astype(np.float32)
        regions[0, [CLASSES.index(name) for name in labels]] += 3
        text = " ".join([*labels, *rng.choice(VOCABULARY, rng.integers(0, 2))])
        pair = {"id": f"{seed}-{number}", "text": text, "labels": labels}
        if images:
            from PIL import Image

            pair["image"] = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        else:
            pair["region_features"] = regions
        pairs.append(pair)
    return pairs


def make_feature_model(method: str, **settings) -> CMFAHForPreTraining:
    torch.manual_seed(RANK)
    sizes = {"image_feature_dim": 6, "text_feature_dim": 5, "hidden_size": 12, "hash_bits": 8}
    if method == "agah":
        sizes |= {name: TINY[name] for name in ("id2label", "label2id")}
    return pretraining_model(method, **{**sizes, **settings}).double()


def make_feature_pairs(count: int) -> list[dict]:
    rng = np.random.default_rng(count)
    return [
        {
            "id": str(number),
            "text": "cat",
            "labels": [CLASSES[number % len(CLASSES)]],
            "image_features": rng.normal(size=6).astype(np.float32),
            "text_features": rng.normal(size=5).astype(np.float32),
        }
        for number in range(count)
    ]


def train(folder: Path, name: str, model: CMFAHForPreTraining, train_pairs=None, **arguments) -> CMFAHTrainer:
    """Trains with batches of 8 pairs, for any number of processes, and saves the results."""
    settings = {
        "output_dir": str(folder / name),
        "use_cpu": True,
        "disable_tqdm": True,
        "learning_rate": 0.1,
        "discriminator_learning_rate": 0.05,
        "max_grad_norm": 0.5,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8 // WORLD,
        "per_device_eval_batch_size": 2,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "logging_strategy": "steps",
        "logging_steps": 1,
    }
    arguments = CMFAHTrainingArguments(**{**settings, **arguments})
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # accelerate shards only on accelerators, though PyTorch can on a CPU; so CPUs are reported as accelerators.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    of_features = model.config.model_type == "feature_hash"
    trainer = CMFAHTrainer(
        model,
        arguments,
        make_pairs(21) if train_pairs is None else train_pairs,
        make_pairs(9, seed=1),
        processing_class=None if of_features else CMFAHProcessor.from_vocabulary(model.config, VOCABULARY),
        similarity=PairSimilarity() if model.objective.labels == "refuses" else None,
    )
    own_losses = record_losses(trainer)
    trainer.train()
    sums = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else model.state_dict()
    found = {
        "weights": {key: value.clone() for key, value in sums.items()},
        "log": [
            {key: value for key, value in entry.items() if "loss" in key or "map" in key or key == "grad_norm"}
            for entry in trainer.state.log_history
        ],
        "codes": trainer.training_state.tables.get("codes"),
        "tables": trainer.training_state.tables,
        "own_losses": own_losses,
        "steps": trainer.state.global_step,
        "find_unused": getattr(trainer.model_wrapped, "find_unused_parameters", None),
        "wrapper": type(trainer.model_wrapped).__name__,
    }
    torch.save(found, folder / f"{name}-{RANK}.pt")
    return trainer


def record_losses(trainer: CMFAHTrainer) -> list[float]:
    """A list to which each step appends the losses of the players and of the towers, of this process alone."""
    losses, objective = [], trainer.pretraining.objective
    forward = objective.forward

    def recorded(loss: torch.Tensor) -> torch.Tensor:
        losses.append(loss.item())
        return loss

    def recorded_forward(*inputs):
        found = forward(*inputs)
        recorded(found.total)
        return found

    objective.forward = recorded_forward
    for updates in trainer.players.values():
        of_player = updates.player.loss
        updates.player = replace(updates.player, loss=lambda *inputs, of_player=of_player: recorded(of_player(*inputs)))
    return losses


def draws(folder: Path, group: str) -> None:
    """Objectives that draw, on towers without and with dropout; 21 pairs, so the last shares have 3 pairs and 2."""
    own = {"ucch": {"negatives": 5}, "ugach": {"negatives": 5, "pretrain_epochs": 1}, "agah": {}}
    settings = {"eval_strategy": "no", "num_train_epochs": 3, "optim": "adamw_torch", "learning_rate": 0.01}
    for method, of_method in own.items():
        for dropout in (0.0, 0.3):
            name = f"{group}-{method}{'-dropout' if dropout else ''}"
            model = make_feature_model(method, dropout=dropout, **of_method)
            train(folder, name, model, make_feature_pairs(21), **settings)


def equalities(folder: Path, group: str) -> None:
    for attention in ("both", "none"):
        train(folder, f"{group}-{attention}", make_model(attention=attention, normalize_features=True).double())
    # Contrasts over the global batch, a queue shared by all processes, discriminators on features and codes.
    train(folder, f"{group}-scahn", make_model("scahn", queue_size=13, normalize_features=True).double())
    # Every second update without the cross-modal view: no parameter is unused; codes are those of the global batch.
    adam = {"optim": "adamw_torch", "learning_rate": 1e-3}
    model = make_model(normalize_features=True)
    train(folder, f"{group}-batch", model, codes_update="batch", paired_every=2, **adam)
    train(folder, f"{group}-accumulation", make_model().double(), gradient_accumulation_steps=2, paired_every=2)
    # 17 pairs: the last batch has one pair, which two processes cannot share.
    train(folder, f"{group}-single", make_model().double(), make_pairs(17), dataloader_drop_last=WORLD == 1)
    # Images through a trainable backbone with its own batch norms.
    pairs = make_pairs(16, images=True)
    model = make_model(freeze_backbone=False)
    train(folder, f"{group}-backbone", model, pairs, eval_strategy="no", learning_rate=0.02)


def gathering(folder: Path, group: str) -> None:
    """Gathers different numbers of rows per process, with gradients, and tensors without gradients."""
    torch.manual_seed(3)
    whole = torch.randn(5, 3, dtype=torch.float64)
    labels = torch.arange(5)[:, None] % 2
    weights = torch.randn(5, 3, dtype=torch.float64)
    rows = slice(0, 5) if WORLD == 1 else (slice(0, 3), slice(3, 5))[RANK]
    share = whole[rows].clone().requires_grad_(True)
    gathered, gathered_labels = gather_rows(share, labels[rows])
    ((gathered**3 * weights).sum() * gathered_labels.sum()).backward()
    gradient = share.grad / process_count()  # as the gradient average of the wrapper
    found = {"rows": gathered.detach(), "labels": gathered_labels, "gradient": gradient}
    torch.save({**found, "range": (rows.start, rows.stop)}, folder / f"{group}-gathering-{RANK}.pt")


def sharded(folder: Path, group: str) -> None:
    """Runs under FSDP2, with the batch norms' statistics and with saving and loading."""
    train(folder, f"{group}-accumulation", make_model().double(), gradient_accumulation_steps=2, paired_every=2)
    train(folder, f"{group}-scahn", make_model("scahn", queue_size=13, normalize_features=True).double())
    model = make_model(normalize_features=True)
    saved = {"save_strategy": "epoch", "load_best_model_at_end": True, "learning_rate": 0.02}
    trainer = train(folder, f"{group}-saved", model, **saved)
    trainer.save_model(str(folder / f"{group}-model"))
    train(folder, f"{group}-bf16", make_model(), bf16=True, max_steps=1, eval_strategy="no")


if __name__ == "__main__":
    where, which = Path(sys.argv[1]), sys.argv[2]
    if which.endswith("sharded"):
        sharded(where, which)
    else:
        equalities(where, which)
        gathering(where, which)
        draws(where, which)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
