"""Commands that need the Hub, on a machine whose connections are refused: one line that says how to do without."""

import os
import shutil
from pathlib import Path

import pytest

# Each command, and what its line says beyond the lack of a connection.
COMMANDS = {
    "compress": ("compress owner/clip {images} --output {root}/model", "owner/clip --local-dir"),
    "search": ("search owner/model {root}/x.index --text boat", "owner/model --local-dir"),
    "index": ("index owner/model {images} --output {root}/x.index", "owner/model --local-dir"),
    "serve": ("serve owner/model --images {images} --port 0", "owner/model --local-dir"),
    "space": ("space owner/model {images}", "owner/model --local-dir"),
    "data": ("evaluate {model} owner/data", "owner/data --repo-type dataset --local-dir"),
    "train": (
        "train {config} --dataset owner/data --output_dir {root}/run --use_cpu",
        "owner/data --repo-type dataset --local-dir",
    ),
    "train an encoder": (
        "train {config} --backbone owner/encoder --output_dir {root}/run --use_cpu",
        "owner/encoder --local-dir",
    ),
}


@pytest.fixture(scope="module")
def outcomes(trained, run_in_a_new_process, tmp_path_factory):
    root = tmp_path_factory.mktemp("no-network")
    (root / "images").mkdir()
    for image in sorted((trained.scenes / "train").glob("*.png"))[:3]:
        shutil.copy(image, root / "images")
    paths = {"images": root / "images", "root": root, "config": trained.config, "model": trained.folder}
    commands = [[word.format(**paths) for word in command.split()] for command, _ in COMMANDS.values()]
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment = own | {
        "HF_HOME": str(root / "home"), "HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    return dict(zip(COMMANDS, run_in_a_new_process(commands, environment), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_lack_of_network_is_one_line_that_says_how_to_give_a_folder(command, outcomes):
    outcome = outcomes[command]
    assert outcome.code == 2, outcome
    (line,) = outcome.err.splitlines()
    assert "no connection to the Hub (ConnectError" in line
    assert f"Or give a folder; where there is a network, `hf download {COMMANDS[command][1]} FOLDER` makes one." in line
