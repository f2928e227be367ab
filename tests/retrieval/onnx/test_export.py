"""`export_onnx` and `cmfah export onnx`: the files of a trained model, and what is refused."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim

from cmfah_hf.cli import main
from cmfah_hf.errors import CheckpointError, CMFAHError, HashIndexError
from cmfah_hf.retrieval import TorchEncoder
from cmfah_hf.retrieval.loading import load_parts
from cmfah_hf.retrieval.onnx import OnnxFiles, export_onnx
from cmfah_hf.retrieval.onnx.files import INPUTS
from cmfah_hf.retrieval.onnx.programs import onnx_program
from cmfah_hf.retrieval.onnx.towers import Tower

TEXTS = ["a red ball below a tree", "", "boat", "the sun over two houses, a kite and a bird"]


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory):
    return Path(shutil.copytree(trained.folder, tmp_path_factory.mktemp("model") / "model"))


@pytest.fixture(scope="module")
def done(model, tmp_path_factory):
    """The outputs of the command, which writes float32 into a new folder."""
    return export_onnx(model, tmp_path_factory.mktemp("out") / "new")


def test_codes_of_texts_are_those_of_the_model(model, done):
    parts = load_parts(str(model), {})
    encoder = TorchEncoder(parts.model, parts.processor, parts.expander, "cpu")
    files = OnnxFiles.load(done.folder)
    assert files == done.files
    assert files.fingerprint == encoder.fingerprint
    assert (files.hash_bits, files.model_type, files.expander is not None) == (16, "cmfah", True)
    assert files.image_processor.shape == (32, 32)
    session = onnxruntime.InferenceSession(str(files.file(done.folder, "text")))
    inputs = encoder.processor(text=encoder.expand(TEXTS), return_tensors="np")
    found = session.run(None, {name: inputs[name].astype(np.int64) for name in INPUTS["text"]})[0]
    np.testing.assert_allclose(found, encoder.encode_texts(TEXTS), atol=1e-5)
    assert {name: result.clearly for name, result in done.comparisons.items()} == dict.fromkeys(files.files, 0)


def test_files_are_valid_name_their_open_sizes_and_hold_nothing_of_this_machine(done):
    expected = {
        "vision": ({"pixel_values": ["batch", 3, 32, 32]}, {"image_embeds": ["batch", 16]}),
        "text": ({name: ["batch", "length"] for name in INPUTS["text"]}, {"text_embeds": ["batch", 16]}),
    }
    for tower, (inputs, outputs) in expected.items():
        path = done.files.file(done.folder, tower)
        loaded = onnx.load(path)
        onnx.checker.check_model(loaded, full_check=True)
        assert [opset.version for opset in loaded.opset_import if not opset.domain] == [20]
        for values, described in ((loaded.graph.input, inputs), (loaded.graph.output, outputs)):
            sizes = {
                value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
                for value in values
            }
            assert sizes == described
        assert not {word for word in (b".py", b"/site-packages", str(Path.cwd()).encode()) if word in path.read_bytes()}
        assert all(not tensor.external_data for tensor in loaded.graph.initializer)


def test_what_else_the_codes_need_lies_beside(model, done):
    beside = {path.name for path in done.folder.parent.iterdir()} - {"onnx"}
    assert {"config.json", "tokenizer.json", "processor_config.json", "expander.json", "expander.safetensors"} <= beside
    assert "model.safetensors" not in beside
    for name in beside:
        assert (done.folder.parent / name).read_bytes() == (model / name).read_bytes()


def test_an_earlier_export_and_files_of_another_model_are_left_alone(model, done, tmp_path):
    with pytest.raises(HashIndexError, match="holds an export already"):
        export_onnx(model, done.folder.parent)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json is of another model; name another folder"):
        export_onnx(model, tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "notes.txt").write_text("mine")
    with pytest.raises(HashIndexError, match=r"holds 'notes\.txt', which is not part of an export"):
        export_onnx(model, tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_a_full_disk_leaves_nothing(model, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cmfah_hf.retrieval.onnx.export.onnx_program", full)
    with pytest.raises(HashIndexError, match=r"could not be written \(No space left on device\)"):
        export_onnx(model, tmp_path / "new")
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]


class _Lacking(nn.Module):
    """Calls an operator that ONNX lacks, in a module of its own."""

    class Wave(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    def __init__(self):
        super().__init__()
        self.wave = self.Wave()

    def forward(self, pixel_values):
        return self.wave(pixel_values.flatten(1))


def test_an_operator_that_onnx_lacks_is_named_with_its_module():
    sizes = {"pixel_values": {0: Dim.DYNAMIC}}
    tower = Tower("vision", _Lacking(), lambda count, seed: (torch.rand(count, 3, 4, 4),), sizes)
    with pytest.raises(CheckpointError) as caught:
        onnx_program(tower)
    message = str(caught.value)
    assert "uses the operator aten.special_bessel_j0.default in wave (Wave), which ONNX lacks" in message
    assert "\n" not in message


BAD = {
    "no model": (["{tmp}"], "{tmp}: a folder without a config.json; give the output of a training run."),
    "no folder": (["owner/name"], "owner/name is no folder here; name the folder to write with output (--output)."),
    "precision": (["{model}", "--precision", "int4"], "The precision 'int4' is not known; give fp32, fp16, int8."),
    "opset": (["{model}", "--opset", "9"], "The opset 9 is not supported; give one from 18 to 23."),
    "images": (["{model}", "--precision", "int8", "--images", "{tmp}"], "{tmp}: no image below this folder; "),
    "onto a file": (["{model}", "-o", "{tmp}/file"], "{tmp}/file/onnx could not be written ("),
}


@pytest.mark.parametrize("kind", BAD)
def test_mistakes_are_one_line(kind, model, tmp_path, capfd):
    arguments, message = BAD[kind]
    folder = tmp_path / "it"
    folder.mkdir()
    if "file" in kind:
        (folder / "file").touch()
    places = {"tmp": str(folder), "model": str(model)}
    with pytest.raises(SystemExit) as left:
        main(["export", "onnx", *(argument.format(**places) for argument in arguments)])
    assert left.value.code == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("cmfah: ")]
    assert len(lines) == 1
    assert message.format(**places) in lines[0]


def test_without_onnx_the_extra_is_named(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(CMFAHError, match=r"needs onnxscript; install it: pip install 'cmfah-hf\[export\]'"):
        export_onnx(model)


@pytest.mark.slow
def test_the_command_writes_all_precisions_into_the_model(model, capfd):
    precisions = [f"--precision={precision}" for precision in ("fp16", "int8", "fp32")]
    with pytest.raises(SystemExit) as left:
        main(["export", "onnx", str(model), *precisions, "--json"])
    out = capfd.readouterr().out
    assert not left.value.code
    printed = json.loads(out)
    files = OnnxFiles.load(model / "onnx")
    assert files.precisions == ("fp32", "fp16", "int8")
    assert printed["files"].keys() == files.files.keys()
    assert {name: one["bytes"] for name, one in printed["files"].items()} == {
        path.name: path.stat().st_size for path in (model / "onnx").glob("*.onnx")
    }
    for tower in INPUTS:
        programs = {own: onnx.load(files.file(model / "onnx", tower, own)) for own in files.precisions}
        kinds = {own: {part.data_type for part in found.graph.initializer} for own, found in programs.items()}
        assert onnx.TensorProto.FLOAT16 in kinds["fp16"] - kinds["fp32"]
        assert kinds["int8"] & {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
        for program in programs.values():
            onnx.checker.check_model(program)
