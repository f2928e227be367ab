"""Loading from the Hub, against an HTTP server on the loopback that answers like the Hub."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer

from cmfah_hf.data import make_scenes, write_imagefolder

PROGRAM = """
import hashlib, json, sys
import datasets
datasets.disable_progress_bars()
from cmfah_hf.data import decode_image, drop_unreadable, load_image_text
from cmfah_hf.errors import DataError

def rows(part):
    return [[r["id"], r["text"], r["labels"], hashlib.sha256(r["image"].tobytes()).hexdigest()] for r in part]

out = {}
for name in ("me/parquet", "me/folder"):
    for streaming in (False, True):
        loaded = load_image_text(name, streaming=streaming)
        out[f"{name} {streaming}"] = {split: rows(part) for split, part in loaded.items()}
stream = load_image_text("me/folder", split="train", streaming=True)
out["checked"] = rows(drop_unreadable(stream))
value = next(iter(stream.decode(False)))["image"]
out["one image"] = [value["path"][:5], decode_image(value).size]
out["address"] = rows(load_image_text("hf://datasets/me/parquet/data/query-00000-of-00001.parquet", split="train"))
try:
    load_image_text("me/absent")
except DataError as error:
    out["absent"] = str(error)
print(json.dumps(out))
"""


@pytest.fixture
def hub(tmp_path):
    root = tmp_path / "hub"
    (root / "me" / "parquet" / "data").mkdir(parents=True)
    scenes = make_scenes(6, image_size=32)
    scenes.select(range(4)).to_parquet(root / "me/parquet/data/train-00000-of-00001.parquet")
    scenes.select(range(4, 6)).to_parquet(root / "me/parquet/data/query-00000-of-00001.parquet")
    folder = write_imagefolder(scenes.select(range(4)), root / "me" / "folder" / "train")
    # Without ids, the file names below the split are the ids, both of cached files and of streams.
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    (folder / "metadata.jsonl").write_text(
        "".join(json.dumps({k: v for k, v in x.items() if k != "id"}) + "\n" for x in lines)
    )
    with HubServer() as server:
        for name in ("me/parquet", "me/folder"):
            server.add_folder(name, root / name)
        yield server, scenes


def printed_by(program: str, server: HubServer, folder: Path, *arguments: str) -> Any:
    """The JSON document that a program prints in a new process that uses this Hub."""
    environment = server.environment(folder / "home") | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", program, *arguments]
    result = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_hub_data_sets_map_style_and_streaming(hub, tmp_path):
    server, scenes = hub
    out = printed_by(PROGRAM, server, tmp_path)
    # The images came over the wire, not from some cache.
    assert server.asked("GET", "/datasets/me/parquet/resolve/")
    assert sum(request.sent for request in server.log if request.listener == "storage") > 0

    expected = [[r["id"], r["text"], r["labels"], hashlib.sha256(r["image"].tobytes()).hexdigest()] for r in scenes]
    by_file = [[f"{row[0]}.png", *row[1:]] for row in expected[:4]]
    for streaming in (False, True):
        assert out[f"me/parquet {streaming}"] == {"train": expected[:4], "query": expected[4:]}
        assert out[f"me/folder {streaming}"] == {"train": by_file}
    assert out["checked"] == by_file
    assert out["one image"] == ["hf://", [32, 32]]
    assert out["address"] == expected[4:]
    assert out["absent"].startswith("me/absent: no such folder or file here, and as a data set on the Hub")


REFUSED = """
import json, sys
import datasets
datasets.disable_progress_bars()
from cmfah_hf.data import load_image_text
from cmfah_hf.errors import DataError

out = []
for name in sys.argv[1:]:
    try:
        for row in load_image_text(name, split="train", streaming=True):
            pass
        out.append(None)
    except DataError as error:
        out.append(str(error))
print(json.dumps(out))
"""


@pytest.mark.slow
def test_what_a_builder_refuses_while_a_stream_is_read_is_one_line(tmp_path):
    """`datasets` reads the metadata of a folder on the Hub row by row, and finds only then what is wrong with it."""
    scenes = make_scenes(3, image_size=32)
    lines = {
        "absent": {"file_name": "absent/../../../../x.png", "text": "x"},
        "number": {"file_name": 7, "text": "x"},
    }
    with HubServer() as server:
        for name, line in lines.items():
            folder = write_imagefolder(scenes, tmp_path / name / "train")
            good = (folder / "metadata.jsonl").read_text().splitlines()
            (folder / "metadata.jsonl").write_text("\n".join([*good, json.dumps(line)]) + "\n")
            server.add_folder(f"me/{name}", tmp_path / name)
        server.add("me/rows", {"train.jsonl": b'{"image": null, "text": "a"}\n{"image": [1'})
        names = [*(f"me/{name}" for name in lines), "me/rows"]
        errors = printed_by(REFUSED, server, tmp_path, *names)
    for name, error in zip(names, errors, strict=True):
        assert error is not None, name
        assert error.startswith(name), error
        assert "\n" not in error
