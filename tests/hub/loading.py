"""Ways to load the pushed model `org/model`: scripts that make codes of images and texts, in new processes."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pages.blocks import ROOT, blocks

# Nothing of `blocked` can be imported; then codes of images and texts are made and saved.
_BEGIN = """
import sys
import json, pathlib
own_images, own_texts, blocked, target = json.loads(sys.argv[1])
for name in blocked:
    sys.modules[name] = None
import numpy as np
"""
_END = "\nnp.savez(target, images=image_codes, texts=text_codes)\n"

BY_TRANSFORMERS = """
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained("org/model", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("org/model", trust_remote_code=True)
with torch.inference_mode():
    inputs = processor(images=[Image.open(path) for path in own_images], return_tensors="pt")
    image_codes = model.get_image_hash(inputs["pixel_values"]).numpy()
    inputs = processor(text=own_texts, return_tensors="pt")
    text_codes = model.get_text_hash(inputs["input_ids"], inputs["attention_mask"]).numpy()
"""
BY_SENTENCE_TRANSFORMERS = """
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("org/model", trust_remote_code=True, device="cpu")
image_codes, text_codes = model.encode(own_images), model.encode(own_texts)
"""
BY_PACKAGE = """
from cmfah_hf.retrieval import CrossMediaRetriever
retriever = CrossMediaRetriever.from_pretrained("org/model")
image_codes, text_codes = retriever.encode_images(own_images), retriever.encode_texts(own_texts)
"""
BY_PACKAGE_AND_ONNX = BY_PACKAGE.replace('"org/model"', '"org/model", backend="onnx"')


def by_onnx_runtime() -> str:
    """The script of the page, up to its examples."""
    (script,) = (
        block.text for block in blocks(ROOT / "docs" / "hub.md") if "onnxruntime.InferenceSession" in block.text
    )
    return script.partition("\ndiffering")[0].replace("owner/name", "org/model") + (
        "\nimage_codes = np.concatenate([encode_image(path) for path in own_images])"
        "\ntext_codes = np.concatenate([encode_text(text) for text in own_texts])"
    )


def inputs_of(scenes: Path) -> tuple[list[Path], list[str]]:
    """All images of a folder of scenes, and the texts of its training pairs."""
    lines = (scenes / "train" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return sorted(scenes.rglob("*.png")), [json.loads(line)["text"] for line in lines]


def codes_by(
    script: str,
    environment: Mapping[str, str],
    folder: Path,
    images: Sequence[Path],
    texts: Sequence[str],
    blocked: Sequence[str] = (),
    python: str | Path = sys.executable,
) -> dict[str, np.ndarray]:
    """The codes that a script makes of images and texts, in a new process of an interpreter, in a folder."""
    target = folder / "codes.npz"
    arguments = json.dumps([list(map(str, images)), list(texts), list(blocked), str(target)])
    command = [str(python), "-c", _BEGIN + script + _END, arguments]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return dict(np.load(target))


def differing_bits(found: np.ndarray, wanted: np.ndarray, near: float) -> int:
    """The number of bits that differ, none of a value that is farther than `near` from 0."""
    assert found.shape == wanted.shape
    differs = (found >= 0) != (wanted >= 0)
    assert not (differs & (np.abs(wanted) >= near)).any()
    np.testing.assert_allclose(found, wanted, atol=near)
    return int(differs.sum())
