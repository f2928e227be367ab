"""Models loaded from the Hub: by the package, by transformers alone, offline; and refused repositories."""

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
# Follows it, and the block of the card for sentence-transformers.
SENTENCES = """
assert type(model[0].model).__module__.startswith("transformers_modules."), type(model[0].model).__module__
values = {"image": torch.from_numpy(image_hash), "text": torch.from_numpy(text_hash)}
save_file(values, sys.argv[1] + ".sentences")
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


def test_card_reports_the_results_of_the_run(published_here):
    card = ModelCard.load("org/model")
    card.validate(repo_type="model")  # makes a request to the Hub
    figures = published_here.run.metrics["query"]
    name, results = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert name == "model"
    found = {(r.metric_args["ranking"], r.metric_args["direction"]): r for r in results}
    assert set(found) == {(ranking, direction) for ranking in ("hamming", "aqd") for direction in ("i2t", "t2i")}
    for (ranking, direction), result in found.items():
        assert result.metric_value == pytest.approx(figures[f"{ranking}/{direction}/map"], abs=1e-6)
        assert (result.dataset_name, result.dataset_split) == (published_here.run.scenes.name, "query")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "transformers")
    assert "sentence-transformers" in card.data.tags
    for ranking, title in (("hamming", "Hamming"), ("aqd", "AQD")):
        row = re.search(rf"^\| MAP, {title} \| (\S+) \| (\S+) \|$", card.text, re.MULTILINE)
        assert [float(value) for value in row.groups()] == [
            pytest.approx(figures[f"{ranking}/{direction}/map"], abs=6e-4) for direction in ("i2t", "t2i")
        ]
    random = re.search(r"^\| MAP of a random ranking \| (\S+) \|", card.text, re.MULTILINE)
    assert float(random[1]) == pytest.approx(figures["random/map"], abs=6e-4)
    assert f"{int(figures['queries'])} held-out queries" in card.text
    assert f"against a database of {int(figures['database'])} pairs" in card.text
    pairs = published_here.run.metrics["pairs"]
    for metric, title in (("recall@1", "recall at 1"), ("recall@10", "recall at 10"), ("median_rank", "median rank")):
        row = re.search(rf"^\| {title}, AQD \| (\S+) \| (\S+) \|$", card.text, re.MULTILINE)
        assert [float(value) for value in row.groups()] == [
            pytest.approx(pairs[f"aqd/{direction}/{metric}"], abs=6e-4) for direction in ("i2t", "t2i")
        ]
    assert f"among {int(pairs['images'])} images and {int(pairs['texts'])} texts" in card.text
    files = published_here.hub.files("org/model", "model")
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", card.text)
    assert images == ["plots/precision_at_k.png", "plots/attention.png"]
    assert set(images) <= set(files)
    for line in card.text.split("```")[0::2]:
        assert "None" not in line


def test_card_and_project_cite_the_same_papers(published):
    import yaml

    citation = yaml.safe_load((Path(__file__).parents[2] / "CITATION.cff").read_text(encoding="utf-8"))
    cited = citation["references"][["cmfah", "scahn"].index(published.run.metrics["method"])]
    assert cited["doi"] in published.card
    assert cited["title"] in " ".join(published.card.split())


def test_code_of_the_card_runs_with_the_package(published_here, capsys):
    with_package = [block for block in blocks(published_here.card) if "trust_remote_code" not in block]
    assert len(with_package) == 2
    names: dict = {}
    for block in with_package:
        exec(compile(block, "card", "exec"), names)
    assert set(names["results"].ids[0]) == {"red.jpg", "sea.jpg"}
    assert len(names["retriever"].images) == 16
    # All parts came from one commit.
    asked = [request.path for request in published_here.hub.asked("HEAD", "/resolve/")]
    revisions = {path.split("/resolve/")[1].split("/")[0] for path in asked if "config.json" not in path}
    assert revisions == {published_here.done.commit}


@pytest.mark.slow
def test_code_of_the_card_runs_without_the_package(published, tmp_path):
    """In a process that cannot import the package; then again without network."""
    pasted, sentences = (block for block in blocks(published.card) if "trust_remote_code" in block)
    text = json.loads(re.search(r"text=\[(\".*?\")\]", pasted)[1])
    script = WITHOUT_THE_PACKAGE.replace("PASTED", pasted).replace("TEXT", repr(text))
    environment = published.hub.environment(tmp_path / "home", "hf_writer") | {"OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    expected = hashes(
        AutoModel.from_pretrained(published.run.folder), CMFAHProcessor.from_pretrained(published.run.folder), text
    )
    without_both = script.replace('== "cmfah_hf"', 'in ("cmfah_hf", "sentence_transformers")')
    scripts = {"online": f"{script}\n{sentences}\n{SENTENCES}", "offline": without_both}
    for name, further in (("online", {}), ("offline", {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"})):
        target = tmp_path / f"{name}.safetensors"
        result = subprocess.run(
            [sys.executable, "-I", "-c", scripts[name], str(target)],
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
        torch.testing.assert_close(found["pipe.sea"], expected[0][1:])  # single inputs, not a batch of two
    found = load_file(tmp_path / "online.safetensors.sentences")
    for name, values in zip(("image", "text"), expected, strict=True):
        torch.testing.assert_close(found[name], values)


def test_settings_are_downloaded_as_the_card_describes(published_here, tmp_path):
    """With the client's own command."""
    from cmfah_hf.training import parse_run

    fetch, again = re.search(r"```bash\nhf (download .*?)\ncmfah (train .*?)\n```", published_here.card).groups()
    command = [sys.executable, "-m", "huggingface_hub.cli.hf", *fetch.split()]
    environment = published_here.hub.environment(tmp_path / "home", "hf_reader")
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    _, config, *arguments = again.split()
    run = parse_run(tmp_path / config, arguments)
    assert (run.model["hash_bits"], run.training.output_dir) == (16, "again")


def test_main_a_commit_and_the_cache_give_the_same_bits(published_here, monkeypatch):
    here = (
        AutoModel.from_pretrained(published_here.run.folder),
        CMFAHProcessor.from_pretrained(published_here.run.folder),
    )
    expected = hashes(*here, "sun tree")
    commit = published_here.done.commit
    for settings in ({}, {"revision": commit}, {"token": "hf_reader"}, {"local_files_only": True}):
        found = hashes(
            AutoModel.from_pretrained("org/model", **settings),
            CMFAHProcessor.from_pretrained("org/model", **settings),
            "sun tree",
        )
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), settings
    published_here.hub.log.clear()
    retriever = CrossMediaRetriever.from_pretrained("org/model")
    local = CrossMediaRetriever.from_pretrained(published_here.run.folder)
    assert retriever.expander.expand("sun") == local.expander.expand("sun")
    assert np.array_equal(retriever.encode_texts(["sun tree"]), local.encode_texts(["sun tree"]))
    published_here.hub.log.clear()
    retriever = CrossMediaRetriever.from_pretrained("org/model", local_files_only=True)
    assert np.array_equal(retriever.encode_texts(["sun tree"]), local.encode_texts(["sun tree"]))
    assert published_here.hub.asked("GET") == published_here.hub.asked("HEAD") == []


def test_missing_permission_is_reported(published_here, monkeypatch):
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


def test_commands_load_from_the_hub(published_here, capsys):
    run = published_here.run
    code, out, err = run_here(capsys, "search", "org/model", "--text", "sun tree", "-k", "3", "--json")
    assert code == 0, err
    local = run_here(capsys, "search", run.folder, published_here.index, "--text", "sun tree", "-k", "3", "--json")
    assert json.loads(out) == json.loads(local[1])
    code, out, err = run_here(capsys, "evaluate", "org/model", run.scenes, "--json")
    assert code == 0, err
    assert json.loads(out)["hamming/t2i/map"] == pytest.approx(run.metrics["query"]["hamming/t2i/map"], abs=1e-6)
    code, _, err = run_here(capsys, "search", run.folder, "--text", "sun tree")
    assert code == 2
    assert "no index came with it" in err


def test_an_index_belongs_to_its_model(published_here):
    retriever = CrossMediaRetriever.from_pretrained("org/model", index=True)
    assert len(CrossMediaRetriever.from_pretrained("org/model").images) == 0
    local = HashIndex.load(published_here.index)
    assert np.array_equal(retriever.images.codes, local.codes)
    query = load_image_text(published_here.run.scenes, split="query")[0]
    found = retriever.search(image=query["image"], k=1, metric="hamming")
    assert found.scores[0, 0] == 0
    with pytest.raises(HashIndexError, match="no index came with it"):
        CrossMediaRetriever.from_pretrained(published_here.run.folder, index=True)


# Capabilities that a repository must not have


def files_of(published) -> dict[str, bytes]:
    files = dict(published.hub.files("org/model", "model"))
    files.pop(".gitattributes")
    return files


def test_no_pickle_is_loaded(published_here, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save({"weights": Trap()}, tmp_path / "trap.bin")
    files = files_of(published_here)
    del files["model.safetensors"]
    published_here.hub.add("org/pickle", {**files, "pytorch_model.bin": (tmp_path / "trap.bin").read_bytes()}, "model")
    for load in (AutoModel.from_pretrained, CrossMediaRetriever.from_pretrained):
        with pytest.raises((OSError, CheckpointError), match="no weights as safetensors") as raised:
            load("org/pickle")
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="never loaded"):
        AutoModel.from_pretrained("org/pickle", use_safetensors=False)
    assert not published_here.hub.asked("GET", "pytorch_model.bin")  # not even downloaded
    # The same from a folder.
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in files.items():
        if "/" not in name:
            (folder / name).write_bytes(content)
    (tmp_path / "trap.bin").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no weights as safetensors"):
        CrossMediaRetriever.from_pretrained(folder)
    assert not (tmp_path / "executed").exists()


def test_file_names_cannot_leave_the_cache(published_here, tmp_path):
    from huggingface_hub import snapshot_download

    files = files_of(published_here)
    weights = files.pop("model.safetensors")
    tensors = json.loads(files["model.safetensors.index.pretraining.json"])["weight_map"]
    for number, name in enumerate(("../x.safetensors", "../../../x.safetensors", "a/../../x.safetensors")):
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
        content = {**files, "model.safetensors.index.json": json.dumps(index).encode(), name: weights}
        published_here.hub.add(f"org/escape-{number}", content, "model")
        with pytest.raises(CheckpointError) as raised:
            CrossMediaRetriever.from_pretrained(f"org/escape-{number}")
        assert "\n" not in str(raised.value)
        with pytest.raises((ValueError, OSError)):
            snapshot_download(f"org/escape-{number}", local_dir=tmp_path / "deep" / "pulled")
    assert not [path for path in tmp_path.rglob("x.safetensors") if path.is_file()]
