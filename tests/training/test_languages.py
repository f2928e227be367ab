"""`benchmarks/languages.py` on a few drawings with texts in two languages."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
TEXTS = {"th": {"a": ("หน้าสุนัข", "สุนัข"), "b": ("เรือใบ", "ทะเล")}, "de": {"a": ("Hund", "Tier"), "b": ("Boot", "Meer")}}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("languages")


@pytest.fixture
def packages(tmp_path):
    """Names and drawings of 24 items in two groups, as the packages have them; one has no drawing, one is a flag."""
    rows = []
    (tmp_path / "drawings" / "img" / "twitter" / "64").mkdir(parents=True)
    for number in range(26):
        code = f"{0x1F600 + number:X}"
        category = "Flags" if number == 25 else "Objects"
        row = {"unified": code, "image": f"{code.lower()}.png", "category": category, "has_img_twitter": number != 24}
        rows.append(row | {"subcategory": ("animal-dog", "boat")[number % 2]})
        Image.new("RGBA", (8, 8)).save(tmp_path / "drawings" / "img" / "twitter" / "64" / row["image"])
    (tmp_path / "drawings" / "emoji.json").write_text(json.dumps(rows))
    for language, texts in TEXTS.items():
        names = {}
        for number in range(26):
            name, keyword = texts["ab"[number % 2]]
            names[chr(0x1F600 + number)] = {"tts": [name], "default": [keyword, name]}
        folder = tmp_path / "names" / "annotations" / language
        folder.mkdir(parents=True)
        (folder / "annotations.json").write_text(json.dumps({"annotations": {"annotations": names}}))
    return tmp_path


def test_items_are_those_with_a_drawing_and_a_group(script, packages, tmp_path):
    items = script.read_items(packages / "names", packages / "drawings", ["th", "de"])
    assert len(items) == 24
    assert items[0] == {
        "id": "1f600",
        "label": "animal dog",
        "texts": {
            name: {"tts": [texts["a"][0]], "default": [texts["a"][1], texts["a"][0]]} for name, texts in TEXTS.items()
        },
    }


@pytest.mark.slow
def test_all_variants_are_measured(script, packages, monkeypatch, capsys):
    output = packages / "out"
    output.mkdir()
    ids = [item["id"] for item in script.read_items(packages / "names", packages / "drawings", ["th"])]
    features_NC = np.random.default_rng(0).normal(size=(24, 4)) + 4 * (np.arange(24) % 2)[:, None]
    np.savez(output / "features.npz", ids=ids, features=features_NC.astype(np.float32))
    monkeypatch.setattr(script, "SMALL", [*script.SMALL, "--num_train_epochs", "1", "--use_cpu", "true"])
    given = [str(packages / "names"), str(packages / "drawings"), "--output", str(output), "--seeds", "0"]
    monkeypatch.setenv("COLUMNS", "200")  # no header in two lines
    monkeypatch.setattr(sys, "argv", ["languages.py", *given, "--languages", "th", "de"])
    script.main()
    assert "class names" in capsys.readouterr().out
    document = json.loads((output / "figures.json").read_text())
    figures = [document["common"] | figure for figure in document["figures"]]
    shares = {
        (one["variant"], one["method"], one["split"]): one["mean"] for one in figures if one["metric"] == "without"
    }
    assert set(shares) == {
        *(("th", method, split) for method in ("before", "rules", "similar", "labels") for split in ("query", "names")),
        *(("de", method, split) for method in ("before", "rules", "similar") for split in ("query", "names")),
    }
    assert shares["th", "before", "names"] == 1
    assert shares["th", "labels", "names"] == 0
    models = sorted(path.relative_to(output / "models").as_posix() for path in (output / "models").glob("*/*"))
    assert models == ["de/none-False-False", "th/icu-False-False", "th/icu-False-True", "th/none-False-False"]
