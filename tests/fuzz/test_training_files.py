"""Files that a training reads: checkpoints, settings, cached regions and the notes of a stream."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml

from cmfah_hf.errors import CheckpointError, DataError
from cmfah_hf.methods import CMFAHForPreTraining
from cmfah_hf.models import CMFAHProcessor
from cmfah_hf.training import CMFAHTrainer, CMFAHTrainingArguments, parse_run
from cmfah_hf.training.checkpoint_store import _best_checkpoint
from cmfah_hf.training.checkpoints import LIST_NAME, _checksum, find_checkpoint, newest_checkpoint
from cmfah_hf.training.data import kept_tables
from cmfah_hf.training.data.kept_tables import Note, damage, kept_table
from cmfah_hf.training.data.streaming import NOTES_NAME, TEXTS_NAME, _kept_notes
from fuzz.harness import mutated, mutated_json


@pytest.fixture(scope="module")
def trainer(trained, tmp_path_factory):
    """A trainer that can resume from a checkpoint of the tiny run."""
    rows = [{"id": str(i), "text": "boat", "labels": [], "region_features": np.zeros((4, 16))} for i in range(43)]
    arguments = {"optim": "adamw_torch", "eval_strategy": "no", "load_best_model_at_end": False, "use_cpu": True}
    made = CMFAHTrainer(
        CMFAHForPreTraining.from_pretrained(trained.folder),
        CMFAHTrainingArguments(output_dir=str(tmp_path_factory.mktemp("unused")), disable_tqdm=True, **arguments),
        rows,
        processing_class=CMFAHProcessor.from_pretrained(trained.folder),
    )
    made.create_optimizer_and_scheduler(10)
    return made


def resume(trainer: CMFAHTrainer, checkpoint: str) -> None:
    """Reads everything from a checkpoint, without a step."""
    trainer._load_from_checkpoint(checkpoint, trainer.model)
    trainer._init_training_state(10, 3, 4, checkpoint, None)
    trainer._load_optimizer_and_scheduler(checkpoint)
    trainer._load_rng_state(checkpoint)
    trainer._checkpoint = checkpoint
    trainer.store.on_train_begin(trainer.args, trainer.state, trainer.control)
    _best_checkpoint(Path(checkpoint))


def change(rng, path: Path) -> None:
    """Changes one file: as bytes, or as JSON if it is JSON."""
    content = path.read_bytes()
    path.unlink()  # it may be a hard link
    if path.suffix == ".json" and rng.random() < 0.7:
        path.write_text(json.dumps(mutated_json(rng, json.loads(content))), encoding="utf-8", errors="replace")
    else:
        path.write_bytes(mutated(rng, content))


def rewrite_file_list(folder: Path) -> None:
    listed = json.loads((folder / LIST_NAME).read_text())
    listed["files"] = {
        name: [(folder / name).stat().st_size, _checksum(folder / name)]
        for name in sorted(listed["files"])
        if (folder / name).is_file()
    }
    (folder / LIST_NAME).unlink()
    (folder / LIST_NAME).write_text(json.dumps(listed))


def test_checkpoints(fuzzer, trained, trainer, tmp_path):
    source = newest_checkpoint(trained.folder)
    names = sorted(path.name for path in source.iterdir())
    folder = tmp_path / source.name

    def attempt(rng):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder, copy_function=lambda a, b: Path(b).hardlink_to(a))
        name = rng.choice(names)
        change(rng, folder / name)
        if name != LIST_NAME and rng.random() < 0.8:
            rewrite_file_list(folder)
        resume(trainer, str(find_checkpoint(rng.choice((str(folder), "last")), tmp_path)))

    fuzzer(share=0.025).run(attempt)


SETTINGS = {
    "model": {"model_type": "cmfah", "hash_bits": 16, "text_kernel_sizes": [1, 3], "dropout": 0.1, "use_lstm": False,
              "backbone_config": {"model_type": "resnet", "depths": [1, 1], "hidden_sizes": [8, 16]}},
    "data": {"dataset": "scenes", "top_k": 3, "word_corpus": ["a.txt"], "image_mean": [0.1, 0.2, 0.3], "mirror": True,
             "expand": True, "knowledge": ["b.jsonl"], "query_split": None, "similarity": "tags"},
    "training": {"optim": "adamw_torch", "learning_rate": 1e-3, "num_train_epochs": 2, "seed": 1, "warmup_steps": 0.1,
                 "lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 0.5}, "save_total_limit": 2,
                 "hub_token": "hf_" + "x" * 30, "report_to": "none", "eval_strategy": "epoch", "use_cpu": True,
                 "accelerator_config": {"split_batches": False}, "max_steps": -1, "early_stopping_patience": 3},
}  # fmt: skip


def test_settings(fuzzer, tmp_path, canary):
    file = tmp_path / "run.yaml"
    text = yaml.safe_dump(SETTINGS).encode()
    names = [name for values in SETTINGS.values() for name in values if name != "model_type"]
    oddities = (
        "nan",
        ".inf",
        "[" * 300,
        "{a: b}",
        "[1, [2]]",
        "!!python/name:os.system",
        "x" * 5000,
        "-1",
        "0",
        "null",
        "{",
    )

    def attempt(rng):
        kind, arguments = rng.random(), []
        if kind < 0.4:
            file.write_bytes(mutated(rng, text))
        elif kind < 0.8:
            changed = mutated_json(rng, SETTINGS)
            file.write_text(json.dumps(changed), encoding="utf-8", errors="replace")
        else:
            file.write_bytes(text)
            arguments = [f"--{rng.choice(names)}={rng.choice((*oddities, canary.url))}"]
        run = parse_run(file, arguments)
        run.model.pop("backbone", None)  # a name would be looked up on the Hub
        run.model_config()

    fuzzer(share=0.025).run(attempt)


FEATURES = datasets.Features(
    {
        "region_features": datasets.Array2D((4, 8), "float16"),
        "readable": datasets.Value("bool"),
        "text": datasets.Value("string"),
    }
)


def test_cached_regions(fuzzer, tmp_path):
    rng = np.random.default_rng(0)
    rows = {"region_features": rng.normal(size=(40, 4, 8)).astype(np.float16), "readable": [True] * 40,
            "text": [f"café {i}" for i in range(40)]}  # fmt: skip

    def make(file):
        whole = datasets.Dataset.from_dict({"number": list(range(40))})
        whole.map(
            lambda batch: {name: [values[i] for i in batch["number"]] for name, values in rows.items()},
            batched=True, remove_columns=["number"], features=FEATURES, cache_file_name=str(file), writer_batch_size=16,
        )  # fmt: skip

    folder = tmp_path / "kept"
    kept_table(folder, FEATURES, 40, make)
    file, note = folder / "table.arrow", folder / "note.json"
    table, noted = file.read_bytes(), json.loads(note.read_text())

    def attempt(rng):
        file.unlink()
        note.unlink()
        if rng.random() < 0.2:
            file.write_bytes(table)
            text = json.dumps(mutated_json(rng, noted)).encode()
            note.write_bytes(mutated(rng, text) if rng.random() < 0.3 else text)
        else:
            file.write_bytes(mutated(rng, table))
            note.write_text(json.dumps(noted))
            if rng.random() < 0.9:
                Note(40, 40, kept_tables.sha256_of(file)).write(note)
        problem = damage(file, note, FEATURES)
        if problem is not None:
            raise DataError(problem)
        found = kept_tables.open_arrow(file, FEATURES, "x").with_format("numpy", dtype=np.float16)
        assert found[:]["region_features"].shape == (40, 4, 8)
        found.with_format(None)["text"][:]

    fuzzer(share=0.02).run(attempt)


def test_notes_of_a_stream(fuzzer, tmp_path):
    texts = tmp_path / TEXTS_NAME
    texts.write_bytes(b"PAR1")
    own = {"fingerprint": "x", "counts": [3, 4], "classes": ["boat"], "together": {"boat": {"boat": 7}}}
    content = {"notes": {"train": own, "validation": own}, "texts_sha256": kept_tables.sha256_of(texts)}

    def attempt(rng):
        text = json.dumps(mutated_json(rng, content)).encode()
        (tmp_path / NOTES_NAME).write_bytes(mutated(rng, text) if rng.random() < 0.3 else text)
        for notes in _kept_notes(tmp_path / NOTES_NAME, texts).values():
            assert sum(notes.counts) >= 0

    fuzzer(share=0.01, limit_s=2).run(attempt)


def test_file_lists_of_checkpoints_cannot_point_elsewhere(fuzzer, trained, tmp_path, canary):
    source = newest_checkpoint(trained.folder)
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    content = json.loads((folder / LIST_NAME).read_text())
    odd = (*canary.names(), "/dev/zero", "..", "", "\0", "a" * 5000, [1, 2], -1, 2**70)

    def attempt(rng):
        changed = mutated_json(rng, content, odd)
        if isinstance(changed, dict) and isinstance(changed.get("files"), dict):
            changed["files"][rng.choice(canary.names())] = [1, 1]
        (folder / LIST_NAME).write_text(json.dumps(changed), encoding="utf-8", errors="replace")
        if newest_checkpoint(tmp_path) is None:
            raise CheckpointError("none")

    fuzzer(share=0.01).run(attempt)
