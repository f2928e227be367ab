"""Streamed against map-style training: pairs per second on the same data, in one run.

    python benchmarks/streaming.py
    python benchmarks/streaming.py --pairs 2000 --workers 2 --json

Both train the same model on the same synthetic scenes for the same steps; kept regions and pixels, each read as a
stream and as a data set, in alternating order. Printed are medians; "reading" is the loader alone, without the model.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path

import datasets
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, RandomSampler
from transformers import PrinterCallback

from cmfah_hf.data import load_image_text, make_scenes
from cmfah_hf.data.collator import PairCollator
from cmfah_hf.methods import CMFAHForPreTraining
from cmfah_hf.models import CMFAHConfig, CMFAHImageModel, CMFAHProcessor
from cmfah_hf.training import CMFAHTrainer, CMFAHTrainingArguments, keep_regions
from cmfah_hf.training.data.shards import count_rows
from cmfah_hf.training.data.streams import PairStream, without_gaps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    own = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    datasets.disable_progress_bars()

    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        cases = _cases(own, Path(folder))
        rates: dict[tuple[str, str], list[float]] = {}
        # Small models, so that the shared cost does not hide the difference.
        for repeat in range(own.repeats + 1):
            for name, (kinds, model, processor, classes) in cases.items():
                order = list(kinds)[:: 1 if repeat % 2 else -1]
                for kind in order:
                    for what, measure in (("reading", _read), ("training", _train)):
                        rate = measure(own, kinds[kind], model, processor, classes, Path(folder))
                        if repeat:  # the first one is a warm-up
                            rates.setdefault((f"{name}, {what}", kind), []).append(rate)
    table = Table(title=f"Pairs per second, medians of {own.repeats}, {own.workers} workers")
    for column in ("", "data set", "stream", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    rows = []
    for name in dict.fromkeys(name for name, _ in rates):
        whole, stream = (statistics.median(rates[name, kind]) for kind in ("data set", "stream"))
        rows.append({"what": name, "data_set": whole, "stream": stream, "ratio": stream / whole})
        table.add_row(name, f"{whole:,.0f}", f"{stream:,.0f}", f"{stream / whole:.2f}")
    if own.json:
        print(json.dumps(rows))  # noqa: T201
    else:
        Console(width=100).print(table)


def _cases(own: argparse.Namespace, folder: Path) -> dict:
    """By name: the pairs of both kinds, a model, its processor and the classes."""
    scenes = make_scenes(own.pairs, image_size=own.image_size)
    for number in range(8):
        scenes.shard(8, number).to_parquet(folder / "scenes" / f"train-{number:05d}-of-00008.parquet")
    classes = sorted({name for names in scenes["labels"] for name in names})
    words = sorted({word for text in scenes["text"] for word in text.split()})
    table = load_image_text(folder / "scenes", split="train")
    stream = load_image_text(folder / "scenes", split="train", streaming=True)

    def parts(**settings):
        torch.manual_seed(0)
        config = CMFAHConfig(
            hash_bits=64,
            hidden_size=64,
            word_dim=32,
            text_filters=32,
            attention="none",
            text_kernel_sizes=[1],
            use_lstm=False,
            vocab_size=len(words) + 2,
            id2label=dict(enumerate(classes)),
            label2id={name: number for number, name in enumerate(classes)},
            **settings,
        )
        return config, CMFAHForPreTraining(config), CMFAHProcessor.from_vocabulary(config, words)

    # 49 regions of 512 channels, as VGG19 gives of 224 pixels, from a cheap backbone.
    small = {"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16, 32, 512]}
    small |= {"depths": [1, 1, 1, 1], "downsample_in_first_stage": False}
    config, model, processor = parts(backbone_config=small, freeze_backbone=True, image_size=224)
    tower = CMFAHImageModel(config)
    kept = keep_regions(table, tower, processor).remove_columns("image")
    kept_stream = keep_regions(stream, tower, processor)
    cases = {"kept regions": ({"data set": kept, "stream": kept_stream}, model, processor, classes)}
    light = {"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [16], "depths": [1]}
    _, model, processor = parts(backbone_config=light, freeze_backbone=False, image_size=64)
    cases["pixels"] = ({"data set": table, "stream": stream}, model, processor, classes)
    return cases


def _read(own, pairs, model, processor, classes, folder) -> float:
    collate = PairCollator(processor, classes)
    if isinstance(pairs, datasets.IterableDataset):
        part = PairStream(pairs, count_rows(pairs)).part(own.batch_size)
        loader = DataLoader(part, own.batch_size, collate_fn=without_gaps(collate), num_workers=own.workers)
    else:
        loader = DataLoader(
            pairs, own.batch_size, sampler=RandomSampler(pairs), collate_fn=collate, num_workers=own.workers
        )
    start = time.perf_counter()
    seen = sum(len(batch["input_ids"]) for batch in loader)
    return seen / (time.perf_counter() - start)


def _train(own, pairs, model, processor, classes, folder) -> float:
    """Of one epoch after the first step, without start-up and counting."""
    args = CMFAHTrainingArguments(
        output_dir=str(folder / "out"),
        num_train_epochs=1,
        per_device_train_batch_size=own.batch_size,
        dataloader_num_workers=own.workers,
        codes_update="batch",
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = CMFAHTrainer(model, args, pairs, processing_class=processor)
    trainer.remove_callback(PrinterCallback)
    step, marks = trainer.training_step, []

    def timed(*arguments, **kwargs):
        loss = step(*arguments, **kwargs)
        marks.append(time.perf_counter())
        return loss

    trainer.training_step = timed
    trainer.train()
    return (own.pairs - own.batch_size) / (marks[-1] - marks[0])


if __name__ == "__main__":
    main()
