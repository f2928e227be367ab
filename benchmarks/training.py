"""Training pairs per second, against a plain PyTorch loop with the same steps, and the parts of an epoch's time.

    python benchmarks/training.py
    python benchmarks/training.py --only attention --repeats 15

All variants run in turns in one process, so that other load on the machine affects them equally. The results are
medians, and ratios within a turn. Nothing is downloaded: images, regions, texts and labels are synthetic. With a GPU,
VGG19 at 224 pixels with the paper's batches of 128 is measured too, frozen and fine-tuned, in float32 and bfloat16.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback, get_scheduler
from transformers.utils import logging as transformers_logging

from cmfah_hf import CMFAHForPreTraining, CMFAHProcessor, CMFAHTrainer, CMFAHTrainingArguments
from cmfah_hf.data import collect_classes, load_image_text
from cmfah_hf.data.collator import PairCollator
from cmfah_hf.data.scenes import make_scenes
from cmfah_hf.methods import TrainingState, objective_class
from cmfah_hf.methods.pretraining import PRETRAINING_MODELS
from cmfah_hf.models import MODELS
from cmfah_hf.models.tokenization_cmfah import split_words
from cmfah_hf.training import bundled_configuration
from cmfah_hf.training.processes import detached
from cmfah_hf.training.settings.yaml_files import merged, read_chain

PARTS = ("regions", "pixels", "stream", "attention", "epoch", "methods", "paper")
REGIONS, CHANNELS, CLASSES = 49, 512, 17  # of VGG19 at 224 pixels; of the COCO-derived pairs


@dataclass
class Setting:
    """A data set, and the settings of a model for it."""

    pairs: Any
    model: dict[str, Any]  # fields of the towers' configuration and of the objective's
    training: dict[str, Any]  # fields of `CMFAHTrainingArguments`
    vocabulary: list[str]
    classes: list[str]

    def build(self, method: str = "cmfah", **settings: Any) -> tuple[CMFAHForPreTraining, CMFAHProcessor]:
        names = dict(enumerate(self.classes))
        given = {**self.model, **settings}
        kind = objective_class(method)
        objective = {name: given.pop(name) for name in kind.settings_class.names() & given.keys()}
        config = MODELS[kind.model_type].config(
            **{
                **given,
                "vocab_size": len(self.vocabulary) + 2,
                "id2label": names,
                "label2id": {name: number for number, name in names.items()},
            }
        )
        torch.manual_seed(0)
        model = PRETRAINING_MODELS[kind.model_type](config, kind.settings_class(**objective), method)
        return model, CMFAHProcessor.from_vocabulary(config, self.vocabulary)

    def arguments(self, folder: str, **settings: Any) -> CMFAHTrainingArguments:
        quiet = {"disable_tqdm": True, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
        values = {**self.training, **quiet, "codes_update": "batch", "num_train_epochs": 1, "warmup_steps": 0}
        values["use_cpu"] = not torch.cuda.is_available()
        return CMFAHTrainingArguments(**{**values, "output_dir": folder, **settings})


def configuration(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sections `model` and `training` of a bundled configuration."""
    settings = merged(read_chain(bundled_configuration(f"{name}.yaml")))
    of_method = {key: value for key, value in settings.get("method", {}).items() if key != "name"}
    return {**settings["model"], **of_method}, settings["training"]


def kept_regions(count: int, folder: str, words: int = 17_769) -> Setting:
    """Random regions in float16 and random words, in the shapes of the COCO-derived pairs."""
    classes, vocabulary = [f"class{i}" for i in range(CLASSES)], [f"word{i}" for i in range(words)]

    def rows() -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(0)
        for row in range(count):
            yield {
                "id": str(row),
                "text": " ".join(rng.choice(vocabulary, rng.integers(8, 24))),
                "labels": rng.choice(classes, rng.integers(1, 4), replace=False).tolist(),
                "region_features": rng.standard_normal((REGIONS, CHANNELS)).clip(0).astype(np.float16),
            }

    features = {
        "id": datasets.Value("string"),
        "text": datasets.Value("string"),
        "labels": datasets.List(datasets.Value("string")),
        "region_features": datasets.Array2D((REGIONS, CHANNELS), "float16"),
    }
    pairs = datasets.Dataset.from_generator(rows, features=datasets.Features(features), cache_dir=folder)
    pairs = pairs.with_format("numpy", columns=["region_features"], output_all_columns=True, dtype=np.float16)
    return Setting(pairs, *configuration("cmfah-coco-pairs"), vocabulary, classes)


def scenes(count: int, **model: Any) -> Setting:
    """Synthetic scenes and the model of the demo, which trains its backbone."""
    pairs = make_scenes(count)
    vocabulary = sorted({word for text in pairs["text"] for word in split_words(text)})
    settings, training = configuration("cmfah-scenes")
    return Setting(pairs, {**settings, **model}, training, vocabulary, collect_classes(pairs))


class PlainLoop:
    """The Trainer's training step as a plain PyTorch loop."""

    def __init__(self, model: CMFAHForPreTraining, pairs: Any, processor: CMFAHProcessor, args, steps: int):
        self.model, self.args, self.steps = model.to(args.device), args, steps
        classes = [model.config.id2label[i] for i in range(model.config.num_labels)]
        self.loader = DataLoader(
            pairs,
            batch_size=args.per_device_train_batch_size,
            shuffle=not isinstance(pairs, datasets.IterableDataset),
            collate_fn=PairCollator(processor, classes),
        )
        self.discriminators = model.objective.discriminators
        ours = {id(parameter) for parameter in self.discriminators.parameters()}
        self.towers = [p for p in model.parameters() if p.requires_grad and id(p) not in ours]
        self.optimizer = torch.optim.AdamW(self.towers, args.learning_rate, weight_decay=args.weight_decay)
        self.discriminator_optimizer = torch.optim.AdamW(
            self.discriminators.parameters(), args.discriminator_learning_rate, weight_decay=args.weight_decay
        )
        self.schedules = [
            get_scheduler(args.lr_scheduler_type, optimizer, num_warmup_steps=0, num_training_steps=1_000_000)
            for optimizer in (self.optimizer, self.discriminator_optimizer)
        ]

    def train(self) -> float:
        """Trains an epoch and returns its seconds."""
        synchronize()
        start = time.perf_counter()
        self.model.train()
        total = torch.zeros((), device=self.args.device)
        for batch, number in zip(self.loader, range(self.steps), strict=False):
            paired = number % self.args.paired_every == 0
            total += self.step({name: tensor.to(self.args.device) for name, tensor in batch.items()}, paired)
        total.item()
        return time.perf_counter() - start

    def step(self, batch: dict[str, torch.Tensor], paired: bool) -> torch.Tensor:
        model, labels = self.model, batch.pop("labels")
        autocast = torch.autocast(self.args.device.type, torch.bfloat16) if self.args.bf16 else nullcontext()
        with autocast:
            outputs = model(**batch, paired=paired)
        if model.objective.settings.adversarial_weight:
            self.discriminators.requires_grad_(True)
            with autocast:
                loss = model.objective.players()[0].loss({"labels": labels}, detached(outputs), TrainingState())
            loss.backward()
            self.discriminators.requires_grad_(False)
            self.discriminator_optimizer.step()
            self.discriminator_optimizer.zero_grad()
            self.schedules[1].step()
        with autocast:
            loss = model.objective({"labels": labels}, outputs, TrainingState()).total
        loss.backward()
        clip_grad_norm_(self.towers, self.args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedules[0].step()
        return loss.detach()


class Clock(TrainerCallback):
    """Start time of a training's first step, and end time of its last one."""

    def on_train_begin(self, args, state, control, **kwargs):
        synchronize()
        self.begin = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        synchronize()
        self.end = time.perf_counter()


class TimedTrainer(CMFAHTrainer):
    """A trainer that times its epoch, its start-up, and its other work."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.clock = Clock()
        self.add_callback(self.clock)
        self.remove_callback(PrinterCallback)
        self.other_work = {"codes": 0.0, "evaluation": 0.0, "saving": 0.0}

    def seconds(self) -> float:
        """Trains and returns the seconds from the start of the first step to the end of the last one."""
        start = time.perf_counter()
        self.train()
        self.start_up = self.clock.begin - start
        return self.clock.end - self.clock.begin

    def _timed(self, name: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            self.other_work[name] += time.perf_counter() - start

    def end_epoch(self, *args, **kwargs):
        return self._timed("codes", super().end_epoch, *args, **kwargs)

    def evaluate(self, *args, **kwargs):
        return self._timed("evaluation", super().evaluate, *args, **kwargs)

    def _save_checkpoint(self, *args, **kwargs):
        return self._timed("saving", super()._save_checkpoint, *args, **kwargs)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turns(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """The seconds of each run, `repeats` times after a warm-up; every second turn runs in reverse order."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats):
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            seconds[name].append(runs[name]())
    return seconds


def ratio(upper: list[float], lower: list[float]) -> float:
    return statistics.median(u / v for u, v in zip(upper, lower, strict=True))


def against_plain(setting: Setting, pairs: Any, steps: int, repeats: int, folder: str, **arguments: Any):
    """Pairs per second of `CMFAHTrainer` and of the plain loop, and their ratio."""
    args = setting.arguments(folder, **arguments)
    model, processor = setting.build()
    trainer = TimedTrainer(model, args, pairs, processing_class=processor)
    loop = PlainLoop(setting.build()[0], pairs, processor, args, steps)
    seconds = in_turns({"trainer": trainer.seconds, "plain": loop.train}, repeats)
    count = steps * args.per_device_train_batch_size
    rates = {name: count / statistics.median(values) for name, values in seconds.items()}
    return rates["trainer"], rates["plain"], ratio(seconds["plain"], seconds["trainer"])


def throughput(parts: list[str], repeats: int, small: bool, folder: str) -> Table:
    table = Table(title="Pairs per second of training")
    for column in ("pairs from", "CMFAHTrainer", "plain loop", "ratio"):
        table.add_column(column, justify="left" if column == "pairs from" else "right")

    def add(name: str, found: tuple[float, float, float]) -> None:
        table.add_row(name, f"{found[0]:,.0f}", f"{found[1]:,.0f}", f"{found[2]:.3f}")

    batch, steps = (8, 2) if small else (128, 8)
    if "regions" in parts:
        setting = kept_regions(batch * steps, folder)
        size = {"per_device_train_batch_size": batch}
        add("kept regions", against_plain(setting, setting.pairs, steps, repeats, folder, **size))
    if {"pixels", "stream"} & set(parts):
        batch, steps = (8, 2) if small else (32, 24)
        setting = scenes(batch * steps)
        size = {"per_device_train_batch_size": batch}
        if "pixels" in parts:
            add("pixels", against_plain(setting, setting.pairs, steps, repeats, folder, **size))
        if "stream" in parts:
            shards = Path(folder) / "shards"
            shards.mkdir()
            for number in range(2):
                setting.pairs.shard(2, number).to_parquet(shards / f"train-0000{number}-of-00002.parquet")
            stream = load_image_text(shards, split="train", streaming=True)
            add("Parquet stream", against_plain(setting, stream, steps, repeats, folder, max_steps=steps, **size))
    return table


def attention(repeats: int, small: bool, folder: str) -> Table:
    """An epoch with attention and discriminators over one without either, by the Trainer."""
    table = Table(title="An epoch of training, over one without attention and discriminators")
    for column in ("pairs from", "what is trained", "pairs", "seconds", "ratio"):
        table.add_column(column, justify="left" if column in ("pairs from", "what is trained") else "right")
    batch, steps = (8, 2) if small else (128, 8)
    settings = {"kept regions": (kept_regions(batch * steps, folder), batch, repeats)}
    # Without a GPU, VGG19 takes a second for a few images, so a small batch suffices.
    vgg = {"backbone": "vgg19", "backbone_config": None, "image_size": 224, "freeze_backbone": True}
    wide, _ = configuration("cmfah-coco-pairs")
    count = 2 if small else 8
    vgg = {**wide, **vgg, **({"backbone": "vgg11", "image_size": 32} if small else {})}
    settings["pixels, VGG19"] = (scenes(count, **vgg), count, min(repeats, 3))
    for name, (setting, batch, times) in settings.items():
        weight = setting.model["adversarial_weight"] or 1.0
        every = setting.arguments(folder).paired_every
        kinds = {
            "neither": ("none", 0.0, every),
            "attention": ("both", 0.0, every),
            "attention and discriminators": ("both", weight, every),
        }
        if every > 1:
            kinds["the same, cross-modal in every update"] = ("both", weight, 1)
        runs = {}
        for kind, (variant, adversarial, paired_every) in kinds.items():
            model, processor = setting.build(attention=variant, adversarial_weight=adversarial)
            args = setting.arguments(folder, per_device_train_batch_size=batch, paired_every=paired_every)
            runs[kind] = TimedTrainer(model, args, setting.pairs, processing_class=processor).seconds
        seconds = in_turns(runs, times)
        for kind, values in seconds.items():
            median, found = statistics.median(values), ratio(values, seconds["neither"])
            table.add_row(name, kind, str(len(setting.pairs)), f"{median:.2f}", f"{found:.2f}")
    return table


def epoch(small: bool, folder: str) -> Table:
    """The parts of an epoch's time: 1,170 pairs with kept regions, a tenth of them for validation."""
    table = Table(title="Seconds of an epoch, kept regions: 1,053 pairs train, 117 validate")
    for column in ("attention", "train", "codes", "evaluation", "saving", "start-up, once"):
        table.add_column(column, justify="left" if column == "attention" else "right")
    setting = kept_regions(40 if small else 1170, folder)
    parts = setting.pairs.train_test_split(0.1, seed=0)
    epochs = 2
    for kind in ("both", "none"):
        model, processor = setting.build(attention=kind)
        args = setting.arguments(
            folder, codes_update="epoch", eval_strategy="epoch", save_strategy="epoch", num_train_epochs=epochs
        )
        trainer = TimedTrainer(model, args, parts["train"], parts["test"], processing_class=processor)
        total = trainer.seconds() / epochs
        other = {name: seconds / epochs for name, seconds in trainer.other_work.items()}
        seconds = (total - sum(other.values()), *other.values(), trainer.start_up)
        table.add_row(kind, *(f"{value:.2f}" for value in seconds))
    return table


def methods(repeats: int, small: bool, folder: str) -> Table:
    """An epoch of CMFAH over one of AGAH, each with the settings of its paper, on the same images from pixels."""
    table = Table(title="An epoch from pixels, over one of AGAH")
    for column in ("method", "pairs", "seconds", "ratio"):
        table.add_column(column, justify="left" if column == "method" else "right")
    count = 2 if small else 8
    size = {"backbone": "vgg11", "image_size": 32} if small else {"backbone": "vgg19", "image_size": 224}
    pairs, runs = scenes(count), {}
    for method, name in (("agah", "paper/agah"), ("cmfah", "paper/cmfah-mirflickr")):
        model, training = configuration(name)
        setting = Setting(pairs.pairs, {**model, **size}, training, pairs.vocabulary, pairs.classes)
        args = setting.arguments(folder, per_device_train_batch_size=count, codes_update="epoch", num_train_epochs=2)
        trained, processor = setting.build(method)
        runs[method] = TimedTrainer(trained, args, setting.pairs, processing_class=processor).seconds
    seconds = in_turns(runs, repeats)
    for method, values in seconds.items():
        found = ratio(values, seconds["agah"])
        table.add_row(method.upper(), str(count), f"{statistics.median(values) / 2:.2f}", f"{found:.2f}")
    return table


def paper(repeats: int, small: bool, folder: str) -> Table:
    """The paper's backbone and batches, VGG19 at 224 pixels and 128 pairs, with the default losses, from pixels."""
    table = Table(title="VGG19 at 224 pixels, batches of 128" if not small else "VGG11 at 32 pixels, batches of 2")
    for column in ("backbone", "numbers", "pairs a second", "over float32", "peak memory, GiB"):
        table.add_column(column, justify="left" if column in ("backbone", "numbers") else "right")
    batch, steps = (2, 1) if small else (128, 8)
    size = {"backbone": "vgg11", "image_size": 32} if small else {"backbone": "vgg19", "image_size": 224}
    on_gpu = torch.cuda.is_available()
    for frozen in (True, False):
        setting = scenes(batch * steps)
        setting.model = {**size, "freeze_backbone": frozen}
        runs: dict[str, TimedTrainer] = {}
        for numbers in ("float32", "bfloat16"):
            model, processor = setting.build()
            args = setting.arguments(
                folder,
                per_device_train_batch_size=batch,
                bf16=numbers == "bfloat16",
                # Decoding must not be the bottleneck.
                dataloader_num_workers=8 if on_gpu else 0,
                dataloader_persistent_workers=on_gpu,
            )
            runs[numbers] = TimedTrainer(model, args, setting.pairs, processing_class=processor)
        memory = dict.fromkeys(runs, 0.0)

        def measured(name: str, trainer: TimedTrainer, memory: dict[str, float] = memory) -> float:
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            seconds = trainer.seconds()
            memory[name] = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else float("nan")
            return seconds

        seconds = in_turns(
            {name: (lambda n=name, t=trainer: measured(n, t)) for name, trainer in runs.items()}, repeats
        )
        for name, values in seconds.items():
            rate = batch * steps / statistics.median(values)
            over = ratio(seconds["float32"], values)
            table.add_row(
                "frozen" if frozen else "fine-tuned", name, f"{rate:,.1f}", f"{over:.2f}", f"{memory[name]:.1f}"
            )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, help="Parts to run. Default: all that fit the machine.")
    parser.add_argument("--repeats", type=int, default=5, help="Counted turns.")
    parser.add_argument(
        "--paper-setting", action="store_true", help="Add VGG19 at 224 pixels and batches of 128 without a GPU."
    )
    parser.add_argument("--small", action="store_true", help="A few pairs, as a smoke test.")
    own = parser.parse_args()
    parts = list(own.only or [part for part in PARTS if part != "paper" or torch.cuda.is_available()])
    if own.paper_setting and "paper" not in parts:
        parts.append("paper")
    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    console = Console(width=120)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    console.print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, {device}")
    with tempfile.TemporaryDirectory() as folder:
        if {"regions", "pixels", "stream"} & set(parts):
            console.print(throughput(parts, own.repeats, own.small, folder))
        if "attention" in parts:
            console.print(attention(own.repeats, own.small, folder))
        if "epoch" in parts:
            console.print(epoch(own.small, folder))
        if "methods" in parts:
            console.print(methods(min(own.repeats, 3), own.small, folder))
        if "paper" in parts:
            console.print(paper(own.repeats, own.small, folder))


if __name__ == "__main__":
    main()
