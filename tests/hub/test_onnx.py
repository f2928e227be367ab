"""`cmfah push --onnx`, and the pushed model in processes that have only some of the libraries: the same bits."""

import json
import shutil
from pathlib import Path

import pytest
from hub.loading import BY_PACKAGE_AND_ONNX, BY_TRANSFORMERS, by_onnx_runtime, codes_by, differing_bits, inputs_of
from pages.blocks import ROOT

from cmfah_hf.errors import CheckpointError
from cmfah_hf.retrieval import CrossMediaRetriever

FILES = {"onnx/cmfah.json", "onnx/text_model.onnx", "onnx/vision_model.onnx"}


@pytest.fixture
def environment(hub, tmp_path):
    return hub.environment(tmp_path / "home", "hf_writer") | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_a_pushed_model_has_the_same_bits_whatever_is_installed(
    push_run, hub, exported, trained, environment, tmp_path
):
    """PyTorch and ONNX Runtime by this package, transformers alone, and ONNX Runtime alone."""
    push_run(exported, onnx=True)
    images, texts = inputs_of(trained.scenes)
    retriever = CrossMediaRetriever.from_pretrained("org/model", device="cpu")
    wanted = {"images": retriever.encode_images(images), "texts": retriever.encode_texts(texts)}
    expanded = retriever.expand(texts)  # which the others do not do
    without = ["torch", "transformers", "datasets"]
    ways = {
        "the package by ONNX": (BY_PACKAGE_AND_ONNX, without, texts),
        "transformers": (BY_TRANSFORMERS, ["cmfah_hf", "onnxruntime"], expanded),
        "ONNX Runtime": (by_onnx_runtime(), [*without, "cmfah_hf"], expanded),
    }
    for way, (script, blocked, read) in ways.items():
        found = codes_by(script, environment, tmp_path, images, read, blocked)
        for side, expected in wanted.items():
            # Pillow resizes otherwise than PyTorch by one level of few pixels, where codes are not this package's.
            differing_bits(found[side], expected, 1e-2 if (way, side) == ("ONNX Runtime", "images") else 1e-4)


def test_pushed_files_and_those_that_a_search_downloads(push_run, hub, exported, here):
    done = push_run(exported, onnx=True)
    assert set(done.files) >= FILES
    pushed = hub.files("org/model", "model")
    for name in FILES:
        assert pushed[name] == (exported / name).read_bytes()
    card = pushed["README.md"].decode()
    assert "`onnx/text_model.onnx`, `onnx/vision_model.onnx`" in card
    hub.log.clear()
    retriever = CrossMediaRetriever.from_pretrained("org/model", backend="onnx")
    assert retriever.encode_texts(["boat"]).shape == (1, 16)
    asked = {request.path.partition("/resolve/")[2].partition("/")[2] for request in hub.asked("HEAD", "/resolve/")}
    assert "onnx/text_model.onnx" in asked
    assert not asked & {"model.safetensors", "onnx/vision_model.onnx", "pretraining.safetensors"}
    (code,) = (block for block in card.split("```python\n")[1:] if 'backend="onnx"' in block)
    names: dict = {"CrossMediaRetriever": CrossMediaRetriever}
    exec(compile(code.partition("```")[0], "card", "exec"), names)
    assert names["retriever"].fingerprint == retriever.fingerprint

    without = push_run(exported)  # those of the former push are removed
    assert not FILES & set(without.files)
    assert not FILES & set(hub.files("org/model", "model"))


@pytest.mark.parametrize("fault", ["of another model", "damaged"])
def test_files_that_do_not_fit_are_not_pushed(push_run, hub, exported, tmp_path, fault):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    path = folder / "onnx" / ("cmfah.json" if fault == "of another model" else "vision_model.onnx")
    if fault == "damaged":
        path.write_bytes(path.read_bytes() + b"x")
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "0" * 32}))
    with pytest.raises(
        CheckpointError, match=r"is of another model|is not the file that cmfah\.json describes"
    ) as caught:
        push_run(folder, onnx=True)
    assert "cmfah export onnx" in str(caught.value)
    assert not hub.asked("POST", "/commit/")


@pytest.mark.slow
def test_missing_files_are_made_by_the_push(push_run, hub, trained, exported):
    done = push_run(trained.folder, onnx=True)
    assert set(done.files) >= FILES
    assert not (trained.folder / "onnx").exists()
    described = json.loads(hub.files("org/model", "model")["onnx/cmfah.json"])
    assert described["fingerprint"] == json.loads((exported / "onnx" / "cmfah.json").read_text())["fingerprint"]
    assert Path(CrossMediaRetriever.from_pretrained("org/model", backend="onnx").name) == Path("org/model")
