"""Folders of small images."""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(scope="session", autouse=True)
def own_cache(datasets_cache):
    """All tests here load data sets, so all use the cache of the test run."""


@pytest.fixture
def make_folder(tmp_path):
    """Writes images of one color each, and metadata given as rows (dictionaries) or as raw text."""

    def make(rows, folder="pairs", name="metadata.jsonl", images=None) -> Path:
        root = tmp_path / folder
        root.mkdir(parents=True, exist_ok=True)
        if images is None:
            images = [row["file_name"] for row in rows]
        for i, image in enumerate(images):
            (root / image).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (6, 4), (i % 256, 90, 30)).save(root / image)
        if not isinstance(rows, str):
            rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (root / name).write_text(rows, encoding="utf-8")
        return root

    return make


@pytest.fixture
def rows_of():
    """Rows as plain values: images as size, mode and bytes."""

    def plain(dataset) -> list[dict]:
        rows = []
        for row in dataset:
            image = row["image"]
            rows.append(dict(row) | {"image": (image.size, image.mode, image.tobytes())})
        return rows

    return plain


@pytest.fixture(scope="session")
def replicas():
    """The module that builds small replicas of the released data sets."""
    spec = spec_from_file_location("release_replicas", Path(__file__).with_name("release_replicas.py"))
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module
