"""The recorded source of a run's data: a Hub id only for data loaded from the Hub, never a path."""

import json

import pytest
from hub_server import HubServer
from hub_server.client import use_hub

from cmfah_hf.data import load_image_text, make_scenes
from cmfah_hf.training import train
from cmfah_hf.training.data.data_source import source_of


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on the loopback with the data set `me/pairs`."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    make_scenes(6, image_size=32).to_parquet(folder / "train.parquet")
    with HubServer() as server:
        server.add_folder("me/pairs", folder)
        use_hub(server, tmp_path, monkeypatch)
        yield server


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_id_is_recorded_for_data_from_the_hub(hub, streaming):
    from huggingface_hub import HfApi

    source = source_of("me/pairs", load_image_text("me/pairs", streaming=streaming))
    assert source == {"kind": "hub", "name": "me/pairs", "revision": HfApi().dataset_info("me/pairs").sha}
    assert len(source["revision"]) == 40


def test_hub_address():
    file = "data/train.parquet"
    expected = {"kind": "hub", "name": "me/pairs", "revision": None}
    assert source_of(f"hf://datasets/me/pairs/{file}", {}) == expected
    assert source_of(f"hf://datasets/me/pairs@v1/{file}", {}) == {**expected, "revision": "v1"}


@pytest.mark.parametrize(
    ("folder", "given"),
    [
        ("data/my-images", "data/my-images"),
        ("images", "images/"),
        ("images", "./images/."),
        ("mine", "../here/mine"),
        (r"C:\images", r"C:\images"),
        ("here", "."),
    ],
)
def test_local_folder_gives_its_last_name(tmp_path, monkeypatch, folder, given):
    here = tmp_path / "here"
    (here / folder).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(here)
    name = folder.rpartition("/")[2].rpartition("\\")[2]
    assert source_of(given, {}) == {"kind": "local", "name": "here" if given == "." else name, "revision": None}


def test_other_address_gives_its_file_name():
    source = source_of("https://example.org/secret/pairs.parquet?token=x", {})
    assert source == {"kind": "local", "name": "pairs.parquet", "revision": None}


def test_metrics_hold_the_data_source(trained, scenes_folder, run_of, tmp_path):
    assert trained.metrics["source"] == {"kind": "local", "name": scenes_folder.name, "revision": None}
    assert source_of("cluttered-scenes", {})["kind"] == "scenes"
    written = json.loads((trained.folder / "metrics.json").read_text(encoding="utf-8"))
    assert written["source"] == trained.metrics["source"]
    assert train(run_of("--streaming", "true"))["source"]["name"] == scenes_folder.name
