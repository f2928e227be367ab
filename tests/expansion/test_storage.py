"""Saved states load unchanged; damage to either file is detected."""

import json

import numpy as np
import pytest

from cmfah_hf.errors import CheckpointError
from cmfah_hf.expansion.storage import load_state, save_state


@pytest.fixture
def folder(tmp_path):
    save_state(tmp_path, "x", "Thing", {"a": np.arange(6.0).reshape(2, 3).T}, {"words": ["é", "漢"]})
    return tmp_path


def test_round_trip(folder):
    tensors, content = load_state(folder, "x", "Thing")
    np.testing.assert_array_equal(tensors["a"], np.arange(6.0).reshape(2, 3).T)
    assert content["words"] == ["é", "漢"]
    assert sorted(path.name for path in folder.iterdir()) == ["x.json", "x.safetensors"]


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def _edit(**changes):
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("x.safetensors", lambda path: path.unlink()),
        ("x.safetensors", lambda path: path.write_bytes(b"")),
        ("x.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-4])),
        ("x.safetensors", _flip),
        ("x.json", lambda path: path.unlink()),
        ("x.json", lambda path: path.write_text("{")),
        ("x.json", lambda path: path.write_bytes(b"\xff\xfe\x00")),
        ("x.json", lambda path: path.write_text("[]")),
        ("x.json", _edit(kind="Other")),
        ("x.json", _edit(format_version=99)),
    ],
)
def test_damage_is_detected_and_the_file_named(folder, name, damage):
    damage(folder / name)
    with pytest.raises(CheckpointError) as error:
        load_state(folder, "x", "Thing")
    assert str(folder / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_parts_of_two_saves_are_rejected(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    save_state(other, "x", "Thing", {"a": np.ones((3, 2))}, {"words": ["é", "漢"]})
    (other / "x.safetensors").replace(folder / "x.safetensors")
    with pytest.raises(CheckpointError, match="belongs to another save"):
        load_state(folder, "x", "Thing")


def test_an_invalid_safetensors_file_is_rejected_despite_its_checksum(folder):
    import hashlib

    (folder / "x.safetensors").write_bytes(b"nonsense")
    _edit(sha256=hashlib.sha256(b"nonsense").hexdigest())(folder / "x.json")
    with pytest.raises(CheckpointError, match=r"x\.safetensors is damaged"):
        load_state(folder, "x", "Thing")


def test_a_failed_save_keeps_the_old_state(folder):
    with pytest.raises(TypeError):
        save_state(folder, "x", "Thing", {"a": np.arange(6.0).reshape(2, 3).T}, {"words": object()})
    assert load_state(folder, "x", "Thing")[1]["words"] == ["é", "漢"]
    assert len(list(folder.iterdir())) == 2
