"""The description of ONNX files: its round trip without torch, and refused content."""

import json
import subprocess
import sys

import pytest

from cmfah_hf.errors import CheckpointError
from cmfah_hf.retrieval.onnx.files import DESCRIPTION_NAME, ImageSettings, OnnxFiles, TextSettings, file_name

FILES = {"vision_model.onnx": b"pixels", "text_model.onnx": b"words"}


@pytest.fixture
def described(tmp_path):
    from cmfah_hf.atomic import sha256_of

    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    files = OnnxFiles(
        fingerprint="0123456789abcdef" * 2,
        model_type="cmfah",
        hash_bits=64,
        precisions=("fp32",),
        files={name: {"bytes": len(FILES[name]), "sha256": sha256_of(tmp_path / name)} for name in FILES},
        opset=20,
        versions={"torch": "2.15.0"},
        image_processor=ImageSettings(
            "CLIPImageProcessor", "RGB", True, {"shortest_edge": 40}, 3, True, {"height": 32, "width": 30}, True,
            1 / 255, True, [0.5, 0.5, 0.5], [0.2, 0.2, 0.2],
        ),
        text=TextSettings(
            True, None, 0, "right", "longest", 1, "", {"segmenter": "icu", "fold_marks": True}, "similar",
            "89abcdef" * 4,
        ),
        expander="0123456789abcdef" * 4,
    )  # fmt: skip
    files.save(tmp_path)
    return files


def test_a_description_is_read_as_it_was_written_without_torch(described, tmp_path):
    assert OnnxFiles.load(tmp_path) == described
    assert described.image_processor.shape == (32, 30)
    script = (
        "import sys; from cmfah_hf.retrieval.onnx import OnnxFiles;"
        f"OnnxFiles.load({str(tmp_path)!r}).file({str(tmp_path)!r}, 'text');"
        "assert not {'torch', 'transformers', 'onnx', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_names_are_those_of_transformers_js():
    assert [file_name("vision"), file_name("text", "fp16"), file_name("vision", "int8")] == [
        "vision_model.onnx", "text_model_fp16.onnx", "vision_model_int8.onnx",
    ]  # fmt: skip


def test_a_file_is_checked_before_its_path_is_given(described, tmp_path):
    assert described.file(tmp_path, "vision") == tmp_path / "vision_model.onnx"
    with pytest.raises(CheckpointError, match=r"no files of precision 'int8', only fp32; make them with"):
        described.file(tmp_path, "vision", "int8")
    (tmp_path / "vision_model.onnx").write_bytes(b"pixelS")  # of the same size
    with pytest.raises(CheckpointError, match=r"is not the file that cmfah\.json describes"):
        described.file(tmp_path, "vision")
    assert described.file(tmp_path, "vision", whole=False)
    (tmp_path / "vision_model.onnx").write_bytes(b"more pixels")
    with pytest.raises(CheckpointError, match="is not the file"):
        described.file(tmp_path, "vision", whole=False)
    (tmp_path / "vision_model.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"vision_model.onnx is missing; make it again"):
        described.file(tmp_path, "vision")


def _set(*path):
    *parents, last, value = path

    def change(content):
        for name in parents:
            content = content[name]
        content[last] = value

    return change


WRONG = {
    "format": (_set("format", 2), "its format is 2, not 1"),
    "fingerprint": (_set("fingerprint", "x" * 32), "its fingerprint is not one of 32 hexadecimal digits"),
    "bits": (_set("hash_bits", 12), "describes no ONNX files"),
    "no precision": (_set("precisions", []), "its precisions are not some of fp32, fp16, int8"),
    "twice": (_set("precisions", ["fp32", "fp32"]), "its precisions are not some of"),
    "a path": (_set("files", {"../x.onnx": {"bytes": 1, "sha256": "0" * 64}}), "its files are not text_model.onnx"),
    "a missing file": (_set("precisions", ["fp32", "int8"]), "its files are not text_model.onnx, text_model_int8"),
    "digest": (_set("files", "text_model.onnx", "sha256", "0"), "of text_model.onnx is not one of 64 hexadecimal"),
    "bytes": (_set("files", "text_model.onnx", "bytes", True), "bytes of text_model.onnx is True"),
    "opset": (_set("opset", 0), "opset is 0"),
    "versions": (_set("versions", {"torch": 2}), "its versions are not texts"),
    "no section": (_set("text", None), "its text does not have exactly max_length"),
    "a further setting": (_set("image_processor", "do_pad", True), "its image_processor does not have exactly"),
    "a huge side": (_set("image_processor", "size", {"shortest_edge": 10**9}), "shortest_edge of size is 1000000000"),
    "half a size": (_set("image_processor", "size", {"height": 9}), "size is {'height': 9}, neither a height"),
    "no crop": (_set("image_processor", "crop_size", None), "it crops images, and has no height and width of the crop"),
    "an open size": (
        _set("image_processor", "do_center_crop", False),
        "size of its images is not known without a crop",
    ),
    "mean": (_set("image_processor", "image_mean", [0.5, float("nan"), 0.5]), "image_mean is nan"),
    "mode": (_set("image_processor", "mode", "L"), "mode is 'L', which is not RGB"),
    "padding": (_set("text", "padding", "max_length"), "it pads texts to a max_length that it does not have"),
    "side": (_set("text", "padding_side", "top"), "padding_side is 'top', which is not right or left"),
    "rules": (_set("text", "word_rules", {}), "its word_rules are not segmenter and fold_marks"),
    "expander": (_set("expander", 1), "its expander is not one of 64 hexadecimal digits"),
    "tokenizer": (_set("text", "tokenizer", None), "its tokenizer is not one of 32 hexadecimal digits"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_descriptions_are_refused_in_one_line(kind, described, tmp_path):
    change, message = WRONG[kind]
    path = tmp_path / DESCRIPTION_NAME
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        OnnxFiles.load(tmp_path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_truncated_descriptions(described, tmp_path):
    path = tmp_path / DESCRIPTION_NAME
    path.write_text(path.read_text()[:-20])
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        OnnxFiles.load(tmp_path)
    path.write_text("[]")
    with pytest.raises(CheckpointError, match="parts of it are missing, or of another type"):
        OnnxFiles.load(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"no ONNX files are described there \(cmfah.json is missing\)"):
        OnnxFiles.load(tmp_path)
