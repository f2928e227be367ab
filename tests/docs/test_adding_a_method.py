"""The method of docs/adding-a-method.md, trained, evaluated, pushed and loaded, without a change to the package."""

import json
import subprocess
import sys

import pytest
import yaml
from hub_server.server import HubServer
from hub_server.store import User
from pages.blocks import DOCS, ROOT, blocks, commands

PAGE = DOCS / "adding-a-method.md"
LOAD = """
import json, sys
import torch
from cmfah_hf import CMFAHForPreTraining, CMFAHModel
from cmfah_hf.methods.registry import registered_methods
towers, report = CMFAHModel.from_pretrained("owner/pairwise-model", output_loading_info=True)
assert not any(report.values()) and "pairwise" not in registered_methods()
try:
    CMFAHForPreTraining.from_pretrained("owner/pairwise-model", variant="pretraining")
except ValueError as error:
    assert "There is no method 'pairwise'" in str(error), error
import pairwise
model = CMFAHForPreTraining.from_pretrained("owner/pairwise-model", variant="pretraining")
assert isinstance(model.objective, pairwise.PairwiseObjective)
for name, tensor in towers.state_dict().items():
    assert torch.equal(tensor, model.cmfah.state_dict()[name]), name
print(json.dumps(model.config.objective))
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory, scenes_folder):
    """A folder with the page's files, for a small run."""
    folder = tmp_path_factory.mktemp("method")
    code, settings = (next(b.text for b in blocks(PAGE) if b.language == kind) for kind in ("python", "yaml"))
    (folder / "pairwise.py").write_text(code, encoding="utf-8")
    run = yaml.safe_load(settings)
    run["data"]["dataset"] = str(scenes_folder)
    run["training"] |= {"num_train_epochs": 2, "per_device_train_batch_size": 16, "use_cpu": True, "seed": 3}
    (folder / "pairwise.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    return folder


def test_the_method_is_short(written):
    assert len((written / "pairwise.py").read_text(encoding="utf-8").splitlines()) < 80


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_of_the_page(written, scenes_folder):
    with HubServer(users={"hf_writer": User("owner", ())}) as hub:
        environment = hub.environment(written / "home", "hf_writer")
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

        def python(*words: str) -> str:
            run = subprocess.run(
                [sys.executable, *words], cwd=written, env=environment, capture_output=True, text=True, timeout=280
            )
            assert run.returncode == 0, run.stderr
            return run.stdout

        (shell,) = (block for block in blocks(PAGE) if block.language == "bash")
        for command in commands(shell):
            assert command.words[0] == "python"
            python(*(str(scenes_folder) if word == "scenes" else word for word in command.words[1:]))
        folder = written / "pairwise-model"
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        assert metrics["method"] == "pairwise"
        assert metrics["query"]["hamming/i2t/map"] > 0
        kept = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
        assert kept["method"] == {"name": "pairwise", "balance_weight": 0.5, "quantization_weight": 0.5}
        logs = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        assert {"loss_likelihood", "loss_quantization", "loss_balance"} < set(logs[0])
        card = hub.files("owner/pairwise-model", "model")["README.md"].decode()
        assert "jiang2017dcmh" in card
        section = json.loads(python("-c", LOAD))
        assert section == {"_name": "pairwise", "quantization_weight": 0.5, "balance_weight": 0.5}
