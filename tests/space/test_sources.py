"""The sources of a Space: everything that an index takes, and indexes."""

import base64
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from coarse_jpegs import draw
from PIL import Image

from cmfah_hf.data import load_image_text
from cmfah_hf.errors import CMFAHError, DataError, HashIndexError, ImageError, QueryError
from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex
from cmfah_hf.retrieval.folders import FolderRequest, ModelOnDemand, UpdateOptions, update_folders
from cmfah_hf.space import Engine, SpaceSettings, html
from cmfah_hf.space.sources import read_pairs


@pytest.fixture(scope="module")
def retriever(trained):
    return CrossMediaRetriever.from_pretrained(trained.folder)


@pytest.fixture
def photos(tmp_path):
    """Two folders of the same name, with four and two photographs; one is large."""
    folders = tmp_path / "old" / "cam", tmp_path / "new" / "cam"
    for folder, numbers in zip(folders, (range(4), range(4, 6)), strict=True):
        for number in numbers:
            draw(folder / "trip" / f"{number}.jpg", number)
    Image.new("RGB", (2000, 1000), "teal").save(folders[1] / "trip" / "4.jpg")
    return folders


@pytest.fixture
def index_of(retriever, tmp_path):
    """A function that indexes folders and returns the index file."""

    def make(*folders, **options):
        path = tmp_path / "x.index"
        requests = [FolderRequest(folder, f"cam{number}") for number, folder in enumerate(folders)]
        update_folders(path, requests, ModelOnDemand.of(retriever), UpdateOptions(progress=False, **options))
        return path

    return make


def engine_of(trained, *sources, **settings):
    data = tuple(map(str, sources)) if len(sources) > 1 else str(sources[0])
    return Engine(SpaceSettings(str(trained.folder), data, **settings), trained.folder)


def write_pairs(path, images) -> None:
    """Writes a Parquet file that holds the images themselves."""
    rows = []
    for number, image in enumerate(images):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        rows.append({"id": f"row-{number}", "image": {"bytes": buffer.getvalue(), "path": None}, "text": "sun"})
    pq.write_table(pa.Table.from_pylist(rows), path)


def size_of(address: str) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).size


def test_all_formats_of_an_index_are_read(trained, photos, tmp_path):
    parquet = tmp_path / "pairs.parquet"
    write_pairs(parquet, [Image.new("RGB", (40, 40), color) for color in ("teal", "red", "blue")])
    single = photos[0] / "trip" / "3.jpg"
    sources = (photos[0], photos[1], single, trained.scenes, parquet, "scenes")
    pairs = list(read_pairs(SpaceSettings(data=tuple(map(str, sources)), limit=14)))
    # One of each in turn, until a source has no more.
    names = [pair.item_id.split("/")[0] for pair in pairs]
    turns = ["cam", "cam-2", "3.jpg", trained.scenes.name, "pairs.parquet", "scenes"]
    assert names[:6] == turns
    assert names[6:11] == [name for name in turns if name != "3.jpg"]
    assert names[11:] == ["cam", trained.scenes.name, "pairs.parquet"]
    assert [pair.item_id for pair in pairs[:3]] == ["cam/trip/0.jpg", "cam-2/trip/4.jpg", "3.jpg/3.jpg"]
    assert pairs[0].file == photos[0] / "trip" / "0.jpg"
    assert pairs[4].file is None  # of a file of many
    assert pairs[3].text == load_image_text(trained.scenes, split="train")[0]["text"]
    # Alone, a source gives its ids as they are.
    assert [pair.item_id for pair in read_pairs(SpaceSettings(data=str(single)))] == ["3.jpg"]


def test_an_image_is_shown_in_full_from_its_file_or_its_data_set(trained, photos, tmp_path):
    engine = engine_of(trained, *photos)
    row = engine.row("cam-2/trip/4.jpg")
    assert size_of(engine.images.address(row)) == (256, 128)
    assert size_of(engine.images.view(row)) == (1280, 640)
    shown = html.view(engine, "cam-2/trip/4.jpg", 1)
    assert '<p class="cm-path">cam-2/trip/4.jpg</p>' in shown
    assert "cm-place" not in shown
    assert str(tmp_path) not in shown
    with pytest.raises(QueryError, match="Unknown image"):
        html.view(engine, str(photos[1] / "trip" / "4.jpg"), 1)
    (photos[1] / "trip" / "5.jpg").unlink()
    with pytest.raises(ImageError, match=r"^cam-2/trip/5\.jpg: there is no such file"):
        engine.images.view(engine.row("cam-2/trip/5.jpg"))
    # Without a file of its own, an image is kept at the size in which it is shown.
    parquet = tmp_path / "large.parquet"
    write_pairs(parquet, [Image.new("RGB", (900, 1800), "teal"), Image.new("RGB", (100, 200), "red")])
    engine = engine_of(trained, parquet)
    assert [size_of(engine.images.view(row)) for row in range(2)] == [(640, 1280), (100, 200)]


def test_the_path_of_an_opened_image_is_shown_if_metadata_give_another_id(trained, photos, index_of, tmp_path):
    for folder, numbers in zip(photos, (range(4), range(4, 6)), strict=True):
        rows = [f"{number},trip/{number}.jpg,a trip" for number in numbers]
        (folder / "metadata.csv").write_text("\n".join(["id,file_name,text", *rows]), encoding="utf-8")
    for source, item_id, place in (
        (photos[:1], "2", "trip/2.jpg"),
        (photos, "cam-2/5", "cam-2/trip/5.jpg"),
        ([index_of(*photos)], "cam1/5", "cam1/trip/5.jpg"),
    ):
        shown = html.view(engine_of(trained, *source), item_id, 1)
        assert f'<p class="cm-path">{item_id}</p><p class="cm-note cm-place">{place}</p>' in shown
        assert str(tmp_path) not in shown


def test_an_index_is_searched_whole_without_encoding(trained, retriever, photos, index_of, caplog, monkeypatch):
    path = index_of(*photos)
    index = HashIndex.load(path)
    (photos[0] / "trip" / "2.jpg").unlink()
    draw(photos[0] / "not-indexed.jpg", 9)
    encoded = []
    encode = CrossMediaRetriever.encode_images
    monkeypatch.setattr(
        CrossMediaRetriever,
        "encode_images",
        lambda self, images, *args: encode(self, [encoded.append(1) or image for image in images], *args),
    )
    engine = engine_of(trained, path, limit=1)
    assert len(encoded) == 1  # the warm-up
    assert "1 items of" in caplog.text
    ids = [item_id for item_id in index.ids.tolist() if item_id != "cam0/trip/2.jpg"]
    assert engine.images.ids == ids
    photo = Image.open(photos[0] / "trip" / "1.jpg")
    found = engine.search(image=photo, k=5).rankings["images"]
    asked = np.packbits(retriever.encode_images([photo]) >= 0, axis=1, bitorder="little")
    rows = [index.ids.tolist().index(item_id) for item_id in ids]
    distances = np.unpackbits(index.codes[rows] ^ asked, axis=1).sum(axis=1)
    assert found["hamming"].scores == sorted(distances.tolist())
    assert engine.images.ids[found["hamming"].rows[0]] == "cam0/trip/1.jpg"
    assert size_of(engine.images.address(engine.row("cam1/trip/4.jpg"))) == (256, 128)
    # A file that goes later leaves a gray square.
    (photos[1] / "trip" / "5.jpg").unlink()
    assert engine.images.image(engine.row("cam1/trip/5.jpg")).getpixel((9, 9)) == (128, 128, 128)


def test_texts_of_an_index_are_shown(trained, retriever, tmp_path):
    path = tmp_path / "x.index"
    request = FolderRequest(trained.scenes, split="train", keep=("text",))
    update_folders(path, [request], ModelOnDemand.of(retriever), UpdateOptions(progress=False))
    engine = engine_of(trained, path)
    pairs = load_image_text(trained.scenes, split="train")
    assert dict(zip(engine.images.ids, engine.images.texts, strict=True)) == dict(
        zip(pairs["id"], pairs["text"], strict=True)
    )


def test_indexes_that_cannot_be_shown_are_refused_in_one_line(trained, retriever, photos, index_of, tmp_path):
    path = index_of(photos[0])
    with pytest.raises(DataError, match="searched by itself"):
        engine_of(trained, path, photos[1])
    for file in (photos[0] / "trip").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="not one of its images is in its folders"):
        engine_of(trained, path)
    plain = tmp_path / "plain.index"
    plain_index = HashIndex(retriever.model.config.hash_bits, retriever.fingerprint)
    plain_index.add(np.ones((1, plain_index.bits), np.int8), ids=["x"])
    plain_index.save(plain)
    with pytest.raises(HashIndexError, match="follows no folder"):
        engine_of(trained, plain)
    other = HashIndex(retriever.model.config.hash_bits, "another")
    other.add(np.ones((1, other.bits), np.int8), ids=["x"])
    other.save(plain, overwrite=True)
    with pytest.raises(HashIndexError, match=r"plain\.index"):
        engine_of(trained, plain)


def test_sources_come_from_the_command_line(monkeypatch):
    from cmfah_hf.cli.space import space

    served = []
    monkeypatch.setattr("cmfah_hf.space.serve", lambda settings, *_, **__: served.append(settings.data), raising=False)
    space("my-model", ["a", "b"], data=["c"])
    space("my-model", ["x.index"])
    space(data=["c"])
    space()
    assert served == [("a", "b", "c"), "x.index", "c", "scenes"]
    with pytest.raises(CMFAHError, match="cmfah space my-model FOLDER"):
        space("my-model")
