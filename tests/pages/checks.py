"""Expected state after a page has run: values compared with earlier ones or with another computation."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from hub_server import HubServer

from cmfah_hf import HashIndex
from pages.blocks import DOCS, blocks
from pages.session import PageSession


def _readme(session: PageSession, hub: HubServer) -> None:
    ids = {path.stem for path in (session.folder / "my-images").rglob("*.png")}
    found = session.names["retriever"].search(text="a dog on the beach", k=10)
    assert {name.rsplit("/", 1)[-1] for name in found.ids[0]} <= ids
    assert session.names["hash_values"].shape == (1, 64)
    assert session.names["index"].codes.nbytes == 8
    by_image = json.loads(session.printed["cmfah search my-model my.index --image beach.jpg --unique 3 --json"])[
        "results"
    ]
    scores = [hit["score"] for hit in by_image]
    assert 0 < len(scores) <= 10
    assert scores == sorted(scores, reverse=True)
    assert "data:image/" in (session.folder / "answers.html").read_text(encoding="utf-8")


def _data(session: PageSession, hub: HubServer) -> None:
    # The files shown on the page, except for the number of shards, which differs for a release of 60 images.
    (shown,) = (block.text for block in blocks(DOCS / "data.md") if block.language == "text")
    names = [re.sub(r"-of-\d+", "-of-*", line.split()[0]) for line in shown.splitlines()]
    assert len(names) == 4
    assert [name for name in names if not list(session.folder.glob(name))] == []
    assert session.names["found"].duplicates.leaks == {}
    # The memory depends on the machine; the matrix does not.
    assert [
        text for text in session.printed.values() if text.startswith("<96 rows of IAll (uint8, 96 x 3 x 256 x 256)")
    ]
    assert hub.store.repositories["dataset", "owner/my-own"].private
    assert not hub.store.repositories["dataset", "owner/name"].private
    assert len(list(session.names["loader"])) == 20  # half of 40, on one of two nodes
    assert json.loads((session.folder / "seen" / "inspection.json").read_text(encoding="utf-8"))["items"] == 52


def _evaluation(session: PageSession, hub: HubServer) -> None:
    from sklearn.metrics import average_precision_score

    names = session.names
    # The four orders consistent with two ties of two items.
    assert np.isclose(names["expected"], np.mean([5 / 6, 3 / 4, 7 / 12, 1 / 2]))
    assert np.isclose(names["lucky"], np.mean([1, 2 / 3]))
    figures = names["figures"]
    assert figures["hamming/i2t/map"] > 2 * figures["random/map"] > 0
    # Without ties all definitions agree.
    scores, relevant = np.array([[4.0, 3, 2, 1]]), np.array([[0, 1, 0, 1]])
    assert np.isclose(
        names["mean_average_precision"](scores, relevant), average_precision_score(relevant[0], scores[0])
    )
    printed = json.loads(session.printed["cmfah evaluate my-model my-images --plots figures --json"])
    again = names["evaluate_folder"]("my-model", "my-images")
    assert printed["hamming/t2i/map"] == again["hamming/t2i/map"]
    assert (session.folder / "figures" / "precision_recall.png").is_file()
    assert 0 < names["pointing"]["chance"] < 1


def _expansion(session: PageSession, hub: HubServer) -> None:
    assert session.names["expanded"] == ["a", "dog", "beach", "sea", "cat", "sofa"]
    (explained,) = (text for place, text in session.printed.items() if place.startswith("docs/expansion.md"))
    rows = [line.split()[:2] for line in explained.splitlines()[2:5]]
    assert rows == [["beach", "graph"], ["sea", "graph"], ["cat", "knowledge"]]
    assert "beach" in session.printed["cmfah expand explain words dog beach"]
    assert (session.folder / "dog.png").is_file()
    assert (session.folder / "my-model" / "knowledge.json").is_file()


def _hub(session: PageSession, hub: HubServer) -> None:
    from cmfah_hf import CMFAHModel

    files = hub.files("owner/name", "model")
    pushed, own = session.names["model"].state_dict(), CMFAHModel.from_pretrained("my-model").state_dict()
    assert set(pushed) == set(own)
    assert all(torch.equal(tensor, own[name]) for name, tensor in pushed.items())
    (session.folder / "pushed.index").write_bytes(files["images.index"])
    shared, mine = (HashIndex.load(session.folder / name) for name in ("pushed.index", "my.index"))
    assert np.array_equal(shared.codes, mine.codes)
    assert (shared.ids.tolist(), shared.folders) == (mine.ids.tolist(), None)  # paths are private
    assert "owner/trained" in {name for kind, name in hub.store.repositories if kind == "model"}
    code = np.asarray(session.names["pipe"]("boat sun")["code"]).ravel()
    assert code.dtype == np.int8
    assert set(code.tolist()) <= {-1, 1}
    assert len(code) == 64
    assert len(session.names["retriever"].images) == 52


def _method(session: PageSession, hub: HubServer) -> None:
    graph = session.names["graph"]
    assert len(graph) == 16  # the object classes of the scenes
    assert (session.folder / "labels.png").is_file()


def _scaling(session: PageSession, hub: HubServer) -> None:
    exact = session.names["index"].search(session.names["hash_values"], k=10, metric="aqd")
    assert exact.ids[:, 0].tolist() == ["p0", "p1"]
    lines = (session.folder / "images-vespa" / "feed.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 300


def _search(session: PageSession, hub: HubServer) -> None:
    index, same = session.names["index"], session.names["same"]
    assert len(index) == 1000
    assert "beach-7.jpg" not in index
    assert "new.jpg" in same
    assert session.names["results"].ids[:, 0].tolist() == ["beach-0.jpg", "beach-1.jpg"]
    answers = session.names["answers"]
    assert [len(answer) for answer in answers] == answers.counts.tolist()
    years = same.metadata.append_column("id", [same.ids.tolist()]).to_pylist()
    assert {"year": 2031, "id": "beach-8.jpg"} in years
    of_2024 = next(text for command, text in session.printed.items() if command.endswith("--where year=2024"))
    assert of_2024.count("2024") >= 5  # four images of the folder and one from the Hub
    assert session.names["changes"].left_out == 1  # the photo that was removed by hand


def _serving(session: PageSession, hub: HubServer) -> None:
    by_command = next(text for command, text in session.printed.items() if command.startswith("cmfah search --server"))
    assert {Path(hit["path"]).name for hit in json.loads(by_command)["results"]} == {"dog.jpg", "sea.jpg"}
    assert len(session.names["reply"]["answers"][0]) == 3  # one of the two that were added is removed
    synced = next(text for command, text in session.printed.items() if "/sync" in command)
    assert json.loads(synced)["changes"]["unchanged"] == 2


def _space(session: PageSession, hub: HubServer) -> None:
    best = session.names["found"]["images"]["aqd"]["hits"][0]
    assert (best["id"], best["text"]) == ("scene-900309", "sunny 2021 sailboat 2019")
    assert round(best["score"], 1) == 50.4
    assert {name for kind, name in hub.store.repositories if kind == "space"} == {"owner/my-search"}


def _training(session: PageSession, hub: HubServer) -> None:
    runs = {path.parent.name for path in (session.folder / "runs").glob("*/metrics.json")}
    assert runs == {"followed", "paper", "scenes", "stream", "tags"}
    tags = json.loads((session.folder / "runs" / "tags" / "config.json").read_text(encoding="utf-8"))
    assert tags["objective"]["positive_overlap"] > 0


def _own_images(session: PageSession, hub: HubServer) -> None:
    figures = session.names["metrics"]["query"]
    assert 0 < figures["random/map"] < figures["hamming/t2i/map"] < 1
    assert (
        json.loads((session.folder / "runs" / "first" / "config.json").read_text(encoding="utf-8"))["hash_bits"] == 32
    )
    mixed = session.printed["cmfah search my-model my.index --text at night --image beach.jpg --json"]
    local = [hit["id"] for hit in json.loads(mixed)["results"]]
    assert len(local) == 10
    assert len(session.names["retriever"].images) == 52
    assert "README.md" in hub.files("owner/name", "model")


_HIDDEN = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "cmfah_hf":
            raise ImportError(f"{name} is hidden")

sys.meta_path.insert(0, Hidden())
BLOCK
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
print("CODES", hash_values.tolist())
"""


def _without_the_package(session: PageSession, hub: HubServer) -> np.ndarray:
    """The codes of the page's last Python block, in a process that cannot import the package."""
    block = [block.text for block in blocks(DOCS / "adding-an-encoder.md") if block.language == "python"][-1]
    environment = hub.environment(session.folder / "another-home", "hf_writer") | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _HIDDEN.replace("BLOCK", block)]
    run = subprocess.run(command, env=environment, cwd=session.folder, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    return np.asarray(json.loads(run.stdout.rpartition("CODES")[2]), np.float32)


def _adding_an_encoder(session: PageSession, hub: HubServer) -> None:
    """The text model was trained, searched, pushed and reloaded, with and without the package, as one model."""
    import transformers

    from cmfah_hf import CMFAHModel, CMFAHProcessor, CrossMediaRetriever

    trained, pushed = CMFAHModel.from_pretrained("my-bert"), session.names["retriever"].model
    assert type(pushed.text_model.embeddings.backbone) is transformers.BertModel
    before = transformers.BertModel.from_pretrained("my-text-model", add_pooling_layer=False).state_dict()
    learned = trained.text_model.embeddings.backbone.state_dict()
    assert set(before) == set(learned)
    assert any(not torch.equal(before[name], learned[name]) for name in before)  # freeze_text_backbone: false
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, pushed.state_dict()[name]), name
    assert not list((session.folder / "my-bert").glob("skip_gram.*"))

    # The same model locally, on the Hub and by the code in the repository: the same codes, the same results.
    text = "some sailboats, at night"
    local = CrossMediaRetriever.from_pretrained("my-bert")
    expected = local.encode_texts([text])
    assert np.array_equal(session.names["retriever"].encode_texts([text]), expected)
    assert np.array_equal(session.names["hash_values"].detach().numpy(), expected)
    assert np.array_equal(_without_the_package(session, hub), expected)
    assert local.fingerprint == session.names["retriever"].fingerprint
    hits = json.loads(
        session.printed[next(name for name in session.printed if name.startswith("cmfah search my-bert"))]
    )
    found = session.names["retriever"].search(text=text, k=10)
    assert [hit["id"] for hit in hits["results"]] == found.ids[0].tolist()

    # Subwords belong to whole words; texts of any length and with any characters have distinct codes.
    processor = CMFAHProcessor.from_pretrained("my-bert")
    spans = processor.word_spans("Sailboats, at night!")
    assert [word for word, _ in spans] == ["sailboats", "at", "night"]
    assert len(spans[0][1]) > 1
    positions = [position for _, of_word in spans for position in of_word]
    assert positions == sorted(set(positions))
    assert processor(text=["night " * 500], return_tensors="pt").input_ids.shape == (1, 24)
    codes = local.encode_texts(["", "\u6d77", "night", "night " * 500])
    assert np.isfinite(codes).all()
    assert not processor.has_known_tokens(" ")
    assert processor.has_known_tokens("\u6d77")


CHECKS: dict[str, Callable[[PageSession, HubServer], None]] = {
    "README.md": _readme,
    "docs/adding-an-encoder.md": _adding_an_encoder,
    "docs/data.md": _data,
    "docs/evaluation.md": _evaluation,
    "docs/expansion.md": _expansion,
    "docs/hub.md": _hub,
    "docs/method.md": _method,
    "docs/own-images.md": _own_images,
    "docs/scaling.md": _scaling,
    "docs/search.md": _search,
    "docs/serving.md": _serving,
    "docs/space.md": _space,
    "docs/training.md": _training,
}
