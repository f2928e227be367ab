"""The workflow of the README in new processes: train under accelerate, evaluate, index, search, and the library."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cmfah_hf.data import load_image_text, load_scenes, write_imagefolder

ROOT = Path(__file__).parents[1]
# Several commands in one process, because startup takes longer than most commands.
COMMANDS = """
import contextlib, io, json, sys
from cmfah_hf.cli import main
outs = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main(arguments)
    outs.append(out.getvalue())
print(json.dumps(outs))
"""

pytestmark = pytest.mark.slow


def run(arguments, environment, folder) -> str:
    process = subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, cwd=folder, capture_output=True, text=True, timeout=280
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder of images, which also receives the output of the commands."""
    folder = tmp_path_factory.mktemp("workspace")
    write_imagefolder(load_scenes(240, 60), folder / "my-images")
    return folder


def test_from_images_to_search_results(workspace, environment):
    launch = ["-m", "accelerate.commands.launch", "--num_processes", 1, "--num_machines", 1, "--cpu"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    settings = ["--dataset", "my-images", "--output_dir", "my-model", "--num_train_epochs", 6, "--use_cpu", "true"]
    # From the repository's root, as in the README, except for the paths of the images and the model.
    settings = [workspace / word if str(word).startswith("my-") else word for word in settings]
    run([*launch, "train.py", "hub_configs/cmfah-scenes.yaml", *settings], environment, ROOT)
    metrics = json.loads((workspace / "my-model" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["train_pairs"] + metrics["validation_pairs"] == 240
    # It has learned: about twice the random ranking in both directions, without query pairs.
    for direction in ("i2t", "t2i"):
        assert metrics["query"][f"hamming/{direction}/map"] > 1.5 * metrics["query"]["random/map"]

    # An image finds itself by its bits, and things of its own classes more often than chance.
    pairs = load_image_text(workspace / "my-images")["train"]
    labels = {f"train/{row['id']}": set(row["labels"]) for row in pairs.select_columns(["id", "labels"])}
    name = next(name for name, own in labels.items() if len(own) == 1)
    file = f"my-images/{name}.png"
    commands = [
        ["evaluate", "my-model", "my-images", "--json"],
        ["index", "my-model", "my-images", "--output", "my.index"],
        ["search", "my-model", "my.index", "--text", "a boat on the sea", "--json"],
        ["search", "my-model", "my.index", "--image", file, "--metric", "hamming", "-k", "20", "--json"],
    ]
    figures, indexed, by_text, by_image = json.loads(
        run(["-c", COMMANDS, json.dumps(commands)], environment, workspace)
    )
    # `evaluate` searches the split `train`, like the run at its end: training and validation pairs.
    assert json.loads(figures)["aqd/t2i/map"] == pytest.approx(metrics["query"]["aqd/t2i/map"], abs=1e-6)
    assert "300 items, 2,400 bytes of codes" in indexed
    scores = [hit["score"] for hit in json.loads(by_text)["results"]]
    assert len(scores) == 10
    assert scores == sorted(scores, reverse=True)
    found = json.loads(by_image)["results"]
    assert found[0]["score"] == 0
    assert name in [hit["id"] for hit in found if hit["score"] == 0]
    kinds = [labels[hit["id"]] for hit in found if hit["id"] in labels]
    share = sum(bool(own & labels[name]) for own in kinds) / len(kinds)
    assert share > sum(bool(own & labels[name]) for own in labels.values()) / len(labels)
