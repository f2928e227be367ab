"""Cached regions and texts follow the current images, are complete, or are recomputed with a warning."""

import io
import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from cmfah_hf.data import load_image_text
from cmfah_hf.errors import DataError
from cmfah_hf.models import CMFAHImageModel
from cmfah_hf.training import keep_regions, train
from cmfah_hf.training.data import kept_tables
from cmfah_hf.training.data import pairs as pairs_module
from cmfah_hf.training.data.kept_tables import Note, damage
from cmfah_hf.training.data.region_cache import RegionExtractor


@pytest.fixture
def tower(make_config):
    torch.manual_seed(0)
    return CMFAHImageModel(make_config())


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of `datasets` for this test only."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def calls(monkeypatch):
    """Counts the batches that the backbone has processed."""
    found, extract = [], RegionExtractor.__call__

    def counted(self, batch):
        found.append(len(batch["image"]))
        return extract(self, batch)

    monkeypatch.setattr(RegionExtractor, "__call__", counted)
    return found


def write_image(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="BMP")  # always of the same size, whatever the content


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six images with metadata."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for i in range(6):
        write_image(folder / f"{i}.bmp", i)
    lines = [json.dumps({"file_name": f"{i}.bmp", "text": f"boat {i}", "labels": ["boat"]}) for i in range(6)]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def regions_of(source, tower, processor) -> np.ndarray:
    kept = keep_regions(source, tower, processor)
    return np.stack([row["region_features"] for row in kept.with_format("numpy")])


def by_paths(folder: Path, streaming: bool):
    """A data set that holds only the paths of its images, which do not depend on their content."""
    rows = {"id": [str(i) for i in range(6)], "image": [str(folder / f"{i}.bmp") for i in range(6)]}
    made = datasets.Dataset.from_dict(rows | {"text": ["boat"] * 6}).cast_column("image", datasets.Image())
    return made.to_iterable_dataset(2) if streaming else made


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["folder", "paths"])
def test_images_overwritten_under_the_same_names(folder, cache, tower, processor, calls, kind, streaming):
    def load():
        if kind == "folder":
            return load_image_text(folder, split="train", streaming=streaming)
        return by_paths(folder, streaming)

    before = regions_of(load(), tower, processor)
    seen = len(calls)
    np.testing.assert_array_equal(regions_of(load(), tower, processor), before)
    assert len(calls) == seen  # cached
    stat = (folder / "3.bmp").stat()
    write_image(folder / "3.bmp", 99)
    os.utime(folder / "3.bmp", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a copy that preserves times
    after = regions_of(load(), tower, processor)
    assert len(calls) > seen
    changed = [row for row in range(6) if not np.array_equal(before[row], after[row])]
    assert changed == [3]


def zeros_in_the_middle(content: bytes) -> bytes:
    third = len(content) // 3
    return content[:third] + bytes(third) + content[2 * third :]


DAMAGES = {
    "garbage": lambda content: b"garbage" * 100,
    "zeros": zeros_in_the_middle,
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "more": lambda content: content + b"x",
    "one bit": lambda content: content[:-200] + bytes([content[-200] ^ 1]) + content[-199:],
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_cache_is_recomputed_and_named(folder, cache, tower, processor, calls, caplog, kind, streaming):
    before = regions_of(load_image_text(folder, split="train", streaming=streaming), tower, processor)
    seen = len(calls)
    file = next((cache / "cmfah-regions").glob("*/*.arrow"))
    file.write_bytes(DAMAGES[kind](file.read_bytes()))
    again = regions_of(load_image_text(folder, split="train", streaming=streaming), tower, processor)
    np.testing.assert_array_equal(again, before)
    assert len(calls) > seen
    assert f"{file} is damaged, its checksum is another; it is computed again." in caplog.text
    assert len(regions_of(load_image_text(folder, split="train", streaming=streaming), tower, processor)) == 6


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "content", ["", "[]", "[" * 90_000, "{}", '{"read": 1, "kept": 2, "sha256": "", "sources": []}']
)
def test_damaged_note_is_recomputed(folder, cache, tower, processor, caplog, content, streaming):
    before = regions_of(load_image_text(folder, split="train", streaming=streaming), tower, processor)
    note = sorted((cache / "cmfah-regions").glob("*/*.json"))[0]
    note.write_text(content)
    again = regions_of(load_image_text(folder, split="train", streaming=streaming), tower, processor)
    np.testing.assert_array_equal(again, before)
    assert f"{note}" in caplog.text
    assert "computed again" in caplog.text


def crafted(file: Path, change) -> None:
    """A changed table with a recomputed checksum."""
    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
        table = change(reader.read_all().combine_chunks())
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    file.write_bytes(sink.getvalue())
    note = file.with_name("note.json")
    old = Note.read_from(note)
    Note(old.read, old.kept, kept_tables.sha256_of(file), old.sources).write(note)


def offsets_beyond(table: pa.Table) -> pa.Table:
    column = table.column("region_features").chunk(0)
    offsets = np.frombuffer(column.storage.buffers()[1], np.int32).copy()
    offsets[3] = 2**30
    buffers = [None, pa.py_buffer(offsets.tobytes())]
    storage = pa.Array.from_buffers(column.storage.type, len(column), buffers, children=[column.storage.values])
    return table.set_column(0, "region_features", pa.ExtensionArray.from_storage(column.type, storage))


def other_shape(table: pa.Table) -> pa.Table:
    column = table.column("region_features").chunk(0)
    storage = pa.array([row[:-1] for row in column.storage.to_pylist()], column.storage.type)
    return table.set_column(0, "region_features", pa.ExtensionArray.from_storage(column.type, storage))


CRAFTED = {
    "offsets": offsets_beyond,
    "shape": other_shape,
    "columns": lambda table: table.drop_columns(["readable"]),
    "rows": lambda table: table.slice(0, 4),
}


@pytest.mark.parametrize("kind", CRAFTED)
def test_crafted_table_is_not_read(folder, cache, tower, processor, caplog, kind):
    before = regions_of(load_image_text(folder, split="train"), tower, processor)
    file = next((cache / "cmfah-regions").glob("*/table.arrow"))
    crafted(file, CRAFTED[kind])
    again = regions_of(load_image_text(folder, split="train"), tower, processor)
    np.testing.assert_array_equal(again, before)
    assert f"{file} is damaged" in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("moment", ["flush", "sha256_of", "Note.write"])
def test_killed_while_regions_are_written(folder, cache, tower, processor, moment, streaming):
    from cmfah_hf import atomic
    from cmfah_hf.training.data import region_cache

    child = os.fork()
    if child == 0:

        def kill_process(*args):
            os.kill(os.getpid(), 9)

        if moment == "flush":
            atomic.flush = kill_process
        elif moment == "sha256_of":
            kept_tables.sha256_of = region_cache.sha256_of = kill_process
        else:
            Note.write = kill_process
        keep_regions(load_image_text(folder, split="train", streaming=streaming), tower, processor)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == 9
    found = regions_of(load_image_text(folder, split="train", streaming=streaming), tower, processor)
    assert len(found) == 6
    left = [path.name for path in (cache / "cmfah-regions").rglob("*") if path.name.startswith((".", "tmp"))]
    assert left == []


def test_changed_images_are_reported_as_damage(folder, tmp_path):
    from cmfah_hf.data.file_state import file_states

    file, note = tmp_path / "x.arrow", tmp_path / "x.json"
    Note(1, 0, "", tuple(file_states([folder / "1.bmp"]))).write(note)
    features = datasets.Features({"x": datasets.Value("string")})
    assert damage(file, note, features) is None
    write_image(folder / "1.bmp", 77)
    assert f"{folder / '1.bmp'} the first of 1" in damage(file, note, features)


def test_wait_for_another_process_is_bounded(folder, cache, tower, processor, monkeypatch):
    from cmfah_hf.training.data import region_cache

    monkeypatch.setattr(region_cache, "_STALLED_S", 0.5)
    stream = load_image_text(folder, split="train", streaming=True)
    with pytest.raises(DataError, match=r"is missing, and no process has made it for 0\.5 seconds; start again\."):
        keep_regions(stream, tower, processor, num_processes=2, process_index=1)


def test_damaged_expanded_texts_are_recomputed(run_of, scenes_folder, cache, tmp_path, caplog):
    metrics = train(run_of())
    file = next((cache / "cmfah-expanded").glob("*/table.arrow"))
    file.write_bytes(zeros_in_the_middle(file.read_bytes()))
    again = train(run_of("--output_dir", str(tmp_path / "again")))
    assert f"{file} is damaged" in caplog.text
    assert {**again, "seconds": 0} == {**metrics, "seconds": 0}
    one, two = (tmp_path / name / "model.safetensors" for name in ("out", "again"))
    assert one.read_bytes() == two.read_bytes()


def test_random_frozen_weights_are_reported_before_any_computation(run_of, monkeypatch, caplog):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(pairs_module, "keep_regions", stop)
    with pytest.raises(KeyboardInterrupt):
        train(run_of("--freeze_backbone", "true"))
    assert "The image backbone is frozen with weights drawn at random" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["note", "texts", "list"])
def test_damaged_notes_of_a_stream_are_recounted(run_of, tmp_path, caplog, kind):
    run = ("--streaming", "true", "--expand", "false")
    metrics = train(run_of(*run))
    out = tmp_path / "out"
    shutil.rmtree(out / "plots")
    if kind == "texts":
        (out / "stream-texts.parquet").write_bytes(b"garbage")
    else:
        (out / "stream.json").write_text("[]" if kind == "list" else '{"notes": {"train": 3}}')
    again = train(run_of(*run, "--resume_from_checkpoint", "last"))
    assert "The rows are counted again." in caplog.text
    assert {**again, "seconds": 0} == {**metrics, "seconds": 0}
