"""A pushed model in four new environments with only what each needs: the same bits.

Runs if CMFAH_ENVIRONMENTS names a folder for them (some 10 GB). They are made with uv, from a package index.
"""

import os
import shutil
import subprocess
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import pytest
from hub.loading import (
    BY_PACKAGE,
    BY_SENTENCE_TRANSFORMERS,
    BY_TRANSFORMERS,
    by_onnx_runtime,
    codes_by,
    differing_bits,
    inputs_of,
)
from pages.blocks import ROOT

from cmfah_hf.retrieval import CrossMediaRetriever

# What is installed, and what must not be importable.
ENVIRONMENTS = {
    "transformers": (["transformers", "torch", "torchvision", "pillow"], ["cmfah_hf", "sentence_transformers"]),
    "sentence-transformers": (["sentence-transformers", "torchvision", "pillow"], ["cmfah_hf", "datasets"]),
    "onnxruntime": (["onnxruntime", "huggingface_hub", "tokenizers", "pillow"], ["cmfah_hf", "torch", "transformers"]),
    "the package": ([str(ROOT)], ["sentence_transformers", "onnxruntime"]),
}


@pytest.fixture(scope="module")
def make_environment():
    """A function that makes an environment with packages, in the versions of this one, and returns its interpreter."""
    folder, uv = os.environ.get("CMFAH_ENVIRONMENTS"), shutil.which("uv")
    if not folder or not uv:
        pytest.skip("CMFAH_ENVIRONMENTS names no folder, or there is no uv")
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    versions = {one.metadata["Name"]: one.version for one in distributions() if one.metadata["Name"] != "cmfah-hf"}
    constraints = root / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in sorted(versions.items())))

    def make(name: str, packages: list[str]) -> Path:
        folder = root / name.replace(" ", "-")
        subprocess.run([uv, "venv", "--quiet", "--clear", folder], check=True)
        python = folder / "bin" / "python"
        command = [uv, "pip", "install", "--quiet", "--python", python, "--constraints", constraints, *packages]
        subprocess.run(command, check=True, timeout=1200)
        return python

    return make


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_four_environments_give_the_same_bits(make_environment, push_run, hub, exported, trained, tmp_path):
    push_run(exported, onnx=True)
    images, texts = inputs_of(trained.scenes)
    retriever = CrossMediaRetriever.from_pretrained("org/model", device="cpu")
    wanted = {"images": retriever.encode_images(images), "texts": retriever.encode_texts(texts)}
    expanded = retriever.expand(texts)  # which only the package does
    scripts = dict(
        zip(ENVIRONMENTS, (BY_TRANSFORMERS, BY_SENTENCE_TRANSFORMERS, by_onnx_runtime(), BY_PACKAGE), strict=True)
    )
    for name, (packages, absent) in ENVIRONMENTS.items():
        python = make_environment(name, packages)
        own = hub.environment(tmp_path / f"home of {name}", "hf_writer")
        own.pop("PYTHONPATH", None)
        code = "import importlib.util, sys; sys.exit(any(map(importlib.util.find_spec, sys.argv[1:])))"
        subprocess.run([python, "-c", code, *absent], env=own, cwd=tmp_path, check=True)
        read = texts if name == "the package" else expanded
        found = codes_by(scripts[name], own, tmp_path, images, read, python=python)
        counts = {
            side: differing_bits(found[side], expected, 1e-2 if (name, side) == ("onnxruntime", "images") else 1e-4)
            for side, expected in wanted.items()
        }
        print(f"{name}: {counts} of {sum(map(np.size, wanted.values()))} bits differ")  # noqa: T201
