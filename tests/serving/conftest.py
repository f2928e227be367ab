"""A small model, images, and a server."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from coarse_jpegs import draw

from cmfah_hf.data.scenes import draw_scene
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.serving import ServedRetriever
from serving.servers import Running, running


@pytest.fixture(scope="session")
def loaded(trained) -> CrossMediaRetriever:
    return CrossMediaRetriever.from_pretrained(trained.folder, device="cpu")


@pytest.fixture
def retriever(loaded) -> CrossMediaRetriever:
    """The model with empty indexes."""
    return CrossMediaRetriever(loaded.model, loaded.processor, loaded.expander, "cpu")


@pytest.fixture(scope="session")
def scenes() -> list[bytes]:
    """Images as PNG."""
    contents = []
    for number in range(6):
        buffer = io.BytesIO()
        draw_scene(number, image_size=48).image.save(buffer, "PNG")
        contents.append(buffer.getvalue())
    return contents


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of five images."""
    folder = tmp_path / "photos"
    for number in range(5):
        draw(folder / f"{number}.jpg", number)
    return folder


@pytest.fixture
def server(retriever, scenes, tmp_path) -> Iterator[Running]:
    """A server of six images with years, and of a few texts, without a token."""
    retriever.add_images(scenes, [f"{n}.png" for n in range(6)], metadata={"year": [2020 + n for n in range(6)]})
    retriever.images.save(tmp_path / "images.index")
    files = {"images": tmp_path / "images.index", "texts": tmp_path / "texts.index"}
    with running(ServedRetriever(retriever, files)) as own:
        yield own
