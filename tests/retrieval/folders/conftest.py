"""A small model, and folders of small images."""

from collections.abc import Callable
from pathlib import Path

import pytest
from coarse_jpegs import draw

from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.retrieval.folders import FolderRequest, ModelOnDemand, UpdateOptions, update_folders


class Counted(ModelOnDemand):
    """A loaded model that counts the images it encodes."""

    encoded: int

    def __init__(self, retriever: CrossMediaRetriever):
        super().__init__("model")
        self.state, self.revision, self._retriever, self.encoded = None, None, retriever, 0
        original = retriever.encode_pixels

        def encode(pixel_values):
            self.encoded += len(pixel_values)
            return original(pixel_values)

        self.encode = encode

    @property
    def retriever(self) -> CrossMediaRetriever:
        self._retriever.encode_pixels = self.encode
        return self._retriever


@pytest.fixture(scope="session")
def small_retriever(trained) -> CrossMediaRetriever:
    return CrossMediaRetriever.from_pretrained(trained.folder, device="cpu")


@pytest.fixture
def model(small_retriever) -> Counted:
    """A model that is loaded already and counts the images it encodes."""
    counted = Counted(small_retriever)
    yield counted
    del small_retriever.encode_pixels


@pytest.fixture
def photos(tmp_path) -> Path:
    """Ten JPEGs below a folder, in two subfolders."""
    folder = tmp_path / "photos"
    for number in range(10):
        draw(folder / ("a" if number < 5 else "b") / f"{number}.jpg", number)
    return folder


@pytest.fixture
def drawn() -> Callable[[Path, int], Path]:
    """The function that draws a JPEG."""
    return draw


@pytest.fixture
def target(tmp_path):
    return tmp_path / "x.index"


@pytest.fixture
def update(model, target):
    """A function that updates the index and says how many images were encoded."""

    def run(*folders, **options):
        before = model.encoded
        requests = [own if isinstance(own, FolderRequest) else FolderRequest(own) for own in folders]
        changes = update_folders(target, requests, model, UpdateOptions(**options))
        return changes, model.encoded - before

    return run
