"""Models back from the Hub: by the package, by transformers alone, offline, and what is refused."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel

from cmfah_hf.cli import main
from cmfah_hf.data import load_image_text
from cmfah_hf.errors import CheckpointError, HashIndexError
from cmfah_hf.models import CMFAHProcessor
from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex

WITHOUT_THE_PACKAGE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "cmfah_hf":
            raise ImportError(f"{name} is hidden")

sys.meta_path.insert(0, Hidden())
import torch
torch.set_num_threads(1)
PASTED
from safetensors.torch import save_file
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
assert type(pipe).__module__.startswith("transformers_modules."), type(pipe).__module__
assert found["ranking"] == pipe({"text": TEXT, "candidates": list(images.values())})["ranking"]
alone = pipe(images["sea.jpg"])
values = {"image": image_hash, "text": text_hash, "pipe.text": torch.tensor(found["hash_values"])[None],
          "pipe.sea": torch.tensor(alone["hash_values"])[None]}
save_file({name: value.contiguous() for name, value in values.items()}, sys.argv[1])
"""


def blocks(card: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)


def hashes(model, processor, text: str):
    images = [Image.new("RGB", (256, 256), name) for name in ("red", "navy")]
    inputs = processor(images=images, text=[text], return_tensors="pt")
    with torch.inference_mode():
        return model.get_image_hash(inputs["pixel_values"]), model.get_text_hash(
            inputs["input_ids"], inputs["attention_mask"]
        )


def test_the_card_says_what_the_run_found(at_published):
    card = ModelCard.load("org/model")
    card.validate(repo_type="model")  # asks the Hub
    figures = at_published.run.metrics["query"]
    name, results = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert name == "model"
    found = {(r.metric_args["ranking"], r.metric_args["direction"]): r for r in results}
    assert set(found) == {(ranking, way) for ranking in ("hamming", "aqd") for way in ("i2t", "t2i")}
    for (ranking, way), result in found.items():
        assert result.metric_value == pytest.approx(figures[f"{ranking}/{way}/map"], abs=1e-6)
        assert (result.dataset_name, result.dataset_split) == (at_published.run.scenes.name, "query")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "transformers")
    for ranking, title in (("hamming", "Hamming"), ("aqd", "AQD")):
        row = re.search(rf"^\| MAP, {title} \| (\S+) \| (\S+) \|$", card.text, re.MULTILINE)
        assert [float(value) for value in row.groups()] == [
            pytest.approx(figures[f"{ranking}/{way}/map"], abs=6e-4) for way in ("i2t", "t2i")
        ]
    random = re.search(r"^\| MAP of a random ranking \| (\S+) \|", card.text, re.MULTILINE)
    assert float(random[1]) == pytest.approx(figures["random/map"], abs=6e-4)
    assert f"{int(figures['queries'])} held-out queries" in card.text
    assert f"against a database of {int(figures['database'])} pairs" in card.text
    files = at_published.hub.files("org/model", "model")
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", card.text)
    assert images == ["plots/precision_at_k.png", "plots/attention.png"]
    assert set(images) <= set(files)
    for line in card.text.split("```")[0::2]:
        assert "None" not in line


def test_what_the_card_cites_is_what_the_project_cites(published):
    import yaml

    citation = yaml.safe_load((Path(__file__).parents[2] / "CITATION.cff").read_text(encoding="utf-8"))
    cited = citation["references"][["cmfah", "scahn"].index(published.run.metrics["method"])]
    assert cited["doi"] in published.card
    assert cited["title"] in " ".join(published.card.split())


def test_its_code_with_the_package_runs_as_pasted(at_published, capsys):
    with_package = [block for block in blocks(at_published.card) if "trust_remote_code" not in block]
    assert len(with_package) == 2
    names: dict = {}
    for block in with_package:
        exec(compile(block, "card", "exec"), names)
    assert set(names["results"].ids[0]) == {"red.jpg", "sea.jpg"}
    assert len(names["retriever"].images) == 16
    # Of the Hub all parts came from one commit.
    asked = [request.path for request in at_published.hub.asked("HEAD", "/resolve/")]
    revisions = {path.split("/resolve/")[1].split("/")[0] for path in asked if "config.json" not in path}
    assert revisions == {at_published.done.commit}


@pytest.mark.slow
def test_its_code_without_the_package_runs_as_pasted(published, tmp_path):
    """In a process in which the package cannot be imported; then again without any network."""
    (pasted,) = (block for block in blocks(published.card) if "trust_remote_code" in block)
    text = json.loads(re.search(r"text=\[(\".*?\")\]", pasted)[1])
    script = WITHOUT_THE_PACKAGE.replace("PASTED", pasted).replace("TEXT", repr(text))
    environment = published.hub.environment(tmp_path / "home", "hf_writer") | {"OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    expected = hashes(
        AutoModel.from_pretrained(published.run.folder), CMFAHProcessor.from_pretrained(published.run.folder), text
    )
    for name, further in (("online", {}), ("offline", {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"})):
        target = tmp_path / f"{name}.safetensors"
        result = subprocess.run(
            [sys.executable, "-I", "-c", script, str(target)],
            env=environment | further,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert result.returncode == 0, result.stderr
        found = load_file(target)
        assert torch.equal(found["image"], expected[0])
        assert torch.equal(found["text"], expected[1])
        assert torch.equal(found["pipe.text"], expected[1])
        torch.testing.assert_close(found["pipe.sea"], expected[0][1:])  # alone, and not in a batch of two


def test_the_settings_can_be_fetched_as_the_card_says(at_published, tmp_path):
    """By the client's own command."""
    from cmfah_hf.training import parse_run

    fetch, again = re.search(r"```bash\nhf (download .*?)\ncmfah (train .*?)\n```", at_published.card).groups()
    command = [sys.executable, "-m", "huggingface_hub.cli.hf", *fetch.split()]
    environment = at_published.hub.environment(tmp_path / "home", "hf_reader")
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    _, config, *arguments = again.split()
    run = parse_run(tmp_path / config, arguments)
    assert (run.model["hash_bits"], run.training.output_dir) == (16, "again")


def test_the_same_bits_come_back_from_main_from_a_commit_and_from_the_cache(at_published, monkeypatch):
    here = AutoModel.from_pretrained(at_published.run.folder), CMFAHProcessor.from_pretrained(at_published.run.folder)
    expected = hashes(*here, "sun tree")
    commit = at_published.done.commit
    for settings in ({}, {"revision": commit}, {"token": "hf_reader"}, {"local_files_only": True}):
        found = hashes(
            AutoModel.from_pretrained("org/model", **settings),
            CMFAHProcessor.from_pretrained("org/model", **settings),
            "sun tree",
        )
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), settings
    at_published.hub.log.clear()
    retriever = CrossMediaRetriever.from_pretrained("org/model")
    local = CrossMediaRetriever.from_pretrained(at_published.run.folder)
    assert retriever.expander.expand("sun") == local.expander.expand("sun")
    assert np.array_equal(retriever.encode_texts(["sun tree"]), local.encode_texts(["sun tree"]))
    at_published.hub.log.clear()
    retriever = CrossMediaRetriever.from_pretrained("org/model", local_files_only=True)
    assert np.array_equal(retriever.encode_texts(["sun tree"]), local.encode_texts(["sun tree"]))
    assert at_published.hub.asked("GET") == at_published.hub.asked("HEAD") == []


def test_who_may_not_see_it_is_told_so(at_published, monkeypatch):
    for token in ("hf_stranger", False):
        with pytest.raises(CheckpointError) as raised:
            CrossMediaRetriever.from_pretrained("org/model", token=token)
        assert "\n" not in str(raised.value)
        assert "hf_stranger" not in str(raised.value)
        assert str(raised.value).startswith("org/model: ")
    with pytest.raises(CheckpointError, match="org/model: "):
        CrossMediaRetriever.from_pretrained("org/model", revision="no-such-branch")
    with pytest.raises(CheckpointError, match="org/elsewhere: "):
        CrossMediaRetriever.from_pretrained("org/elsewhere")


def run_here(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    streams = capsys.readouterr()
    return left.value.code or 0, streams.out, streams.err


def test_commands_take_it_from_the_hub(at_published, capsys):
    run = at_published.run
    code, out, err = run_here(capsys, "search", "org/model", "--text", "sun tree", "-k", "3", "--json")
    assert code == 0, err
    local = run_here(capsys, "search", run.folder, at_published.index, "--text", "sun tree", "-k", "3", "--json")
    assert json.loads(out) == json.loads(local[1])
    code, out, err = run_here(capsys, "evaluate", "org/model", run.scenes, "--json")
    assert code == 0, err
    assert json.loads(out)["hamming/t2i/map"] == pytest.approx(run.metrics["query"]["hamming/t2i/map"], abs=1e-6)
    code, _, err = run_here(capsys, "search", run.folder, "--text", "sun tree")
    assert code == 2
    assert "no index came with it" in err


def test_an_index_is_that_of_the_model(at_published):
    retriever = CrossMediaRetriever.from_pretrained("org/model", index=True)
    assert len(CrossMediaRetriever.from_pretrained("org/model").images) == 0
    local = HashIndex.load(at_published.index)
    assert np.array_equal(retriever.images.codes, local.codes)
    query = load_image_text(at_published.run.scenes, split="query")[0]
    found = retriever.search(image=query["image"], k=1, metric="hamming")
    assert found.scores[0, 0] == 0
    with pytest.raises(HashIndexError, match="no index came with it"):
        CrossMediaRetriever.from_pretrained(at_published.run.folder, index=True)


# What a repository must not be able to do


def files_of(published) -> dict[str, bytes]:
    files = dict(published.hub.files("org/model", "model"))
    files.pop(".gitattributes")
    return files


def test_no_pickle_is_loaded(at_published, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"weights": Trap()}, tmp_path / "trap.bin")
    files = files_of(at_published)
    del files["model.safetensors"]
    at_published.hub.add("org/pickle", {**files, "pytorch_model.bin": (tmp_path / "trap.bin").read_bytes()}, "model")
    for load in (AutoModel.from_pretrained, CrossMediaRetriever.from_pretrained):
        with pytest.raises((OSError, CheckpointError), match="no weights as safetensors") as raised:
            load("org/pickle")
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="never loaded"):
        AutoModel.from_pretrained("org/pickle", use_safetensors=False)
    assert not at_published.hub.asked("GET", "pytorch_model.bin")  # not even fetched
    # A folder likewise.
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in files.items():
        if "/" not in name:
            (folder / name).write_bytes(content)
    (tmp_path / "trap.bin").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no weights as safetensors"):
        CrossMediaRetriever.from_pretrained(folder)
    assert not (tmp_path / "sprung").exists()


def test_no_name_leads_out_of_the_cache(at_published, tmp_path):
    from huggingface_hub import snapshot_download

    files = files_of(at_published)
    weights = files.pop("model.safetensors")
    tensors = json.loads(files["model.safetensors.index.pretraining.json"])["weight_map"]
    for number, name in enumerate(("../x.safetensors", "../../../x.safetensors", "a/../../x.safetensors")):
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
        content = {**files, "model.safetensors.index.json": json.dumps(index).encode(), name: weights}
        at_published.hub.add(f"org/escape-{number}", content, "model")
        with pytest.raises(CheckpointError) as raised:
            CrossMediaRetriever.from_pretrained(f"org/escape-{number}")
        assert "\n" not in str(raised.value)
        with pytest.raises((ValueError, OSError)):
            snapshot_download(f"org/escape-{number}", local_dir=tmp_path / "deep" / "pulled")
    assert not [path for path in tmp_path.rglob("x.safetensors") if path.is_file()]
