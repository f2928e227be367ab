"""One small model and one folder of images for all pages, and a folder and a Hub for each page."""

from pathlib import Path

import pytest
from hub_server import HubServer
from hub_server.client import use_hub
from hub_server.store import User
from pages.blocks import ROOT
from pages.session import PageSession

# Words in the queries of the pages, so that the model knows them.
_QUERIES = ("a dog on the beach", "a cat at night", "boat sun", "house tree moon", "a boat on the sea")


@pytest.fixture(scope="session")
def my_images(tmp_path_factory, datasets_cache) -> Path:
    """40 training and 12 query scenes as a folder of images with metadata. Read-only: tests change copies."""
    from cmfah_hf.data import load_scenes, write_imagefolder

    def with_words_of_the_pages(row: dict, number: int) -> dict:
        return {"text": f"{row['text']} {_QUERIES[number % len(_QUERIES)]}"}

    scenes = load_scenes(40, 12, image_size=64).map(with_words_of_the_pages, with_indices=True)
    return write_imagefolder(scenes, tmp_path_factory.mktemp("docs") / "my-images")


@pytest.fixture(scope="session")
def my_model(my_images, tmp_path_factory) -> Path:
    """The demo's model of 64 bits after one epoch on them. Read-only: tests change copies."""
    from cmfah_hf.training import parse_run, train

    folder = tmp_path_factory.mktemp("docs") / "my-model"
    small = ["--dataset", str(my_images), "--output_dir", str(folder), "--num_train_epochs", "1", "--refit", "false"]
    train(
        parse_run(ROOT / "hub_configs" / "cmfah-scenes.yaml", [*small, "--use_cpu", "true", "--disable_tqdm", "true"])
    )
    return folder


@pytest.fixture
def hub():
    """A Hub on the loopback where `owner` and `my-name` of the pages are the same reader."""
    with HubServer(users={"hf_writer": User("owner", ("my-name",))}) as server:
        yield server


@pytest.fixture
def session(tmp_path, my_model, my_images, hub, monkeypatch) -> PageSession:
    """A folder with the model and the images as the working folder of this process, and a Hub."""
    use_hub(hub, tmp_path / "home", monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    session = PageSession(tmp_path / "page")
    session.folder.mkdir()
    session.prepare(my_model, my_images)
    monkeypatch.chdir(session.folder)
    return session
