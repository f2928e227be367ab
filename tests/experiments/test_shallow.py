"""Shallow methods in grids: their figures are those of their codes, with each protocol of the database."""

import datasets
import numpy as np
import pytest

from cmfah_hf import load_image_text
from cmfah_hf.errors import CMFAHError
from cmfah_hf.evaluation import RetrievalEvaluator
from cmfah_hf.experiments import read_grid, read_results, run_grid
from cmfah_hf.experiments.report import select
from cmfah_hf.methods import ShallowHasher

METHODS = {
    "scm": {"title": "SCM", "config": "tiny-{data}.yaml", "reference": "scm"},
    "cmfh": {"config": "tiny-{data}.yaml", "reference": "cmfh", "hasher": {"rounds": 2}},
    "scratch": {"config": "tiny-{data}.yaml", "reference": "scratch", "hasher": {"anchors": 20, "rounds": 2}},
}


def test_every_database_of_a_method_is_measured(write_grid, tmp_path):
    grid = read_grid(write_grid(methods=METHODS, bits=[8], seeds=[0, 1], protocols=["seen", "unseen"]))
    assert [run.name for run in grid.runs][:2] == [
        "scenes/scm/full/8-bits/seen/seed-0",
        "scenes/scm/full/8-bits/seen/seed-1",
    ]
    output = tmp_path / "out"
    assert run_grid(grid, output) == []
    results = read_results(output)
    encodings = {
        (one.method, one.protocol): {
            other.encoding
            for other in select(results, {"method": one.method})
            if other.protocol == one.protocol and other.database == one.protocol
        }
        for one in results
    }
    assert encodings == {
        ("scm", "seen"): {"single"},
        ("scm", "unseen"): {"single"},
        ("cmfh", "seen"): {"single", "pair"},
        ("cmfh", "unseen"): {"single", "pair"},
        ("scratch", "seen"): {"single", "learnt"},
        ("scratch", "unseen"): {"single"},
    }
    # Finished runs are not repeated, and other settings are refused.
    times = {path: path.stat().st_mtime_ns for path in output.glob("runs/**/model.safetensors")}
    assert len(times) == 12
    run_grid(grid, output)
    assert times == {path: path.stat().st_mtime_ns for path in output.glob("runs/**/model.safetensors")}
    changed = {**METHODS, "cmfh": {**METHODS["cmfh"], "hasher": {"rounds": 3}}}
    other = read_grid(write_grid(methods=changed, bits=[8], seeds=[0]))
    assert run_grid(other, output) == ["scenes/cmfh/full/8-bits/seen/seed-0"]


def test_given_features_of_both_modalities_are_used(write_grid, tmp_path):
    random = np.random.default_rng(0)
    names = np.array(["bird", "boat", "cat"])
    folder = tmp_path / "features"
    for split, count in (("train", 60), ("query", 12)):
        classes = np.arange(count) % 3
        rows = datasets.Dataset.from_dict(
            {
                "image_features": (np.eye(3)[classes] @ np.eye(3, 8) + 0.1 * random.normal(size=(count, 8))).tolist(),
                "text_features": (np.eye(3)[classes] @ np.eye(3, 5) + 0.1 * random.normal(size=(count, 5))).tolist(),
                "text": names[classes].tolist(),
                "labels": [[name] for name in names[classes]],
            }
        )
        folder.mkdir(exist_ok=True)
        rows.to_parquet(folder / f"{split}.parquet")
    path = write_grid(
        data={"own": {"dataset": str(folder)}},
        methods={"scm": {**METHODS["scm"], "config": "tiny-scenes.yaml"}},
        bits=[8],
        seeds=[0],
    )
    output = tmp_path / "out"
    assert run_grid(read_grid(path), output) == []
    hasher = ShallowHasher.from_pretrained(output / "runs" / "own/scm/full/8-bits/seen/seed-0" / "model")
    splits = load_image_text(folder)
    train, queries = splits["train"], splits["query"]
    features = [
        np.asarray(pairs[f"{name}_features"], np.float32) for pairs in (queries, train) for name in ("image", "text")
    ]
    codes = [encode(each) for encode, each in zip([hasher.encode_image, hasher.encode_text] * 2, features, strict=True)]
    expected = RetrievalEvaluator(("map",))(*codes, queries["labels"], train["labels"])
    for direction in ("i2t", "t2i"):
        where = {"ranking": "hamming", "metric": "map", "direction": direction}
        (result,) = select(read_results(output), where)
        assert result.value == pytest.approx(expected[f"hamming/{direction}/map"])
        assert result.value > 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "scn"}, "reference 'scn'; choose linear, cca-itq, cmfh"),
        ({"hasher": {"margin": 1}}, "scm: scm has no setting margin here"),
        ({"hasher": {"seed": 1}}, "scm: scm has no setting seed here"),
        ({"hasher": {"on_rise": "stop"}}, "on_rise is 'stop'; choose 'continue' or 'cca'"),
        ({"hasher": [1]}, "scm, hasher is list; give a mapping"),
        ({"reference": "linear", "hasher": {"on_rise": "cca"}}, "only a shallow method as its reference has"),
    ],
)
def test_bad_shallow_methods_are_found_before_anything_runs(write_grid, change, message):
    with pytest.raises(CMFAHError, match=message):
        read_grid(write_grid(methods={"scm": {**METHODS["scm"], **change}}))
