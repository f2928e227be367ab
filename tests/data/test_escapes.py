"""A data set reads nothing outside its own root, whatever its rows name: no file, no link, no address."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz.harness import Canary
from hub_server import HubServer
from PIL import Image

from cmfah_hf.data import decode_image, load_image_text
from cmfah_hf.data.data_root import DataRoot
from cmfah_hf.data.images import decoding_off
from cmfah_hf.errors import DataError, ImageError

IMAGE = {"bytes": pa.binary(), "path": pa.string()}


@pytest.fixture(scope="module")
def canary(tmp_path_factory):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    file = tmp_path_factory.mktemp("noise") / "noise.png"
    Image.fromarray(noise).save(file)
    canary = Canary(tmp_path_factory.mktemp("outside"), file.read_bytes())
    yield canary
    canary.close()


@pytest.fixture
def own(tmp_path, canary):
    """A folder with one image, which is not the canary's, and its bytes."""
    canary.touched()
    folder = tmp_path / "own"
    folder.mkdir()
    Image.new("RGB", (4, 4), "red").save(folder / "red.png")
    return folder, (folder / "red.png").read_bytes()


def write(file: Path, **columns) -> None:
    size = len(next(iter(columns.values())))
    pq.write_table(pa.table({"id": [str(n) for n in range(size)], "text": ["x"] * size, **columns}), file)


def files_of(values):
    return pa.array(values, pa.struct(IMAGE))


def read_all(folder: Path, streaming: bool, **kwargs) -> list:
    """Rows read in every way: decoded, undecoded, mapped, written with their images."""
    part = load_image_text(folder, split="train", streaming=streaming, **kwargs)
    seen = [row["image"] for row in part]
    seen += [decode_image(row["image"]) for row in decoding_off(part)]
    seen += [row["image"] for row in part.map(lambda row: {"n": 1})]
    if not streaming:
        part.to_parquet(folder.parent / "again.parquet")
        datasets.table.embed_table_storage(decoding_off(part).with_format("arrow")[:])
    return seen


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["file", "path", "mask", "list", "other"])
def test_no_path_in_parquet_leads_outside(own, canary, streaming, kind):
    folder, content = own
    good = {"bytes": content, "path": None}
    for name in (*canary.names(), f"zip://x.png::{canary.path}", "hf://datasets/me/private@main/x.png", "C:\\x.png"):
        bad = {"bytes": None, "path": name}
        columns = {
            "file": {"image": files_of([good, bad])},
            "path": {"image": pa.array(["red.png", name])},
            "mask": {"image": files_of([good, good]), "mask": files_of([good, bad])},
            "list": {
                "image": files_of([good, good]),
                "more": pa.array([[good], [good, bad]], pa.list_(pa.struct(IMAGE))),
            },
            "other": {"image": files_of([good, good]), "sound": files_of([None, bad])},
        }[kind]
        features = {
            "id": datasets.Value("string"), "text": datasets.Value("string"), "image": datasets.Image(),
            "mask": datasets.Image(), "more": datasets.List(datasets.Image()), "sound": datasets.Video(),
        }  # fmt: skip
        named = datasets.Features({key: features[key] for key in ("id", "text", *columns)})
        table = pa.table({"id": ["0", "1"], "text": ["x", "x"], **columns})
        if kind != "path":
            table = table.cast(named.arrow_schema)
        pq.write_table(table, folder / "train.parquet")
        with pytest.raises(DataError, match="row 1: ") as caught:
            read_all(folder, streaming)
        assert "\n" not in str(caught.value)
        assert canary.touched() is None, name


@pytest.mark.parametrize("streaming", [False, True])
def test_a_path_next_to_bytes_is_never_opened(own, canary, streaming, monkeypatch):
    folder, content = own
    monkeypatch.chdir(canary.path.parent)
    names = [*canary.names(), "canary.png"]
    write(folder / "train.parquet", image=files_of([{"bytes": content, "path": name} for name in names]))
    seen = read_all(folder, streaming)
    assert {image.size for image in seen} == {(4, 4)}
    assert canary.touched() is None


@pytest.mark.parametrize("streaming", [False, True])
def test_files_of_the_data_set_itself_are_read(own, streaming):
    folder, content = own
    (folder / "sub").mkdir()
    shutil.copy(folder / "red.png", folder / "sub" / "a.png")
    (folder / "link.png").symlink_to("sub/a.png")
    names = ["red.png", "./sub/a.png", "sub/../red.png", "sub\\a.png", "link.png", str(folder / "red.png")]
    values = [{"bytes": None, "path": name} for name in names] + [{"bytes": content, "path": None}]
    write(folder / "train.parquet", image=files_of(values))
    assert {image.size for image in read_all(folder, streaming)} == {(4, 4)}


@pytest.mark.parametrize("streaming", [False, True])
def test_links_in_a_folder_of_images(own, canary, streaming):
    folder, _ = own
    (folder / "link.png").symlink_to(canary.path)
    (folder / "outside").symlink_to(canary.path.parent)
    for name in ("link.png", "outside/canary.png"):
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "x"}))
        with pytest.raises(DataError, match=r"metadata\.jsonl, line 1: .*leads outside the folder"):
            read_all(folder, streaming)
        assert canary.touched() is None
        allowed = load_image_text(folder, split="train", streaming=streaming, image_folders=[canary.path.parent])
        assert next(iter(allowed))["image"].size == (8, 8)
        assert canary.touched()


def test_metadata_and_tables_that_are_links(own, canary, tmp_path):
    folder, _ = own
    secret = tmp_path / "secret.jsonl"
    secret.write_text(json.dumps({"file_name": "red.png", "text": "x"}))
    (folder / "metadata.jsonl").symlink_to(secret)
    with pytest.raises(DataError, match=r"metadata\.jsonl: leads outside the folder"):
        load_image_text(folder)
    (folder / "metadata.jsonl").unlink()
    write(tmp_path / "secret.parquet", image=["red.png"])
    (folder / "train.parquet").symlink_to(tmp_path / "secret.parquet")
    for streaming in (False, True):
        with pytest.raises(DataError, match=r"train\.parquet: leads outside the folder"):
            load_image_text(folder, streaming=streaming)
    (folder / "train.parquet").unlink()
    for pattern in ("../secret.parquet", str(tmp_path / "secret.parquet"), "../*.parquet"):
        card = json.dumps({"configs": [{"config_name": "default", "data_files": pattern}]})
        (folder / "README.md").write_text(f"---\n{card}\n---\n")
        with pytest.raises(DataError, match=r"README\.md"):
            load_image_text(folder)


def test_the_cache_of_the_hub_is_links_into_its_own_blobs(own, tmp_path):
    folder, _ = own
    repo = tmp_path / "datasets--me--own"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    shutil.move(folder / "red.png", repo / "blobs" / "abc")
    (snapshot / "red.png").symlink_to("../../blobs/abc")
    (snapshot / "metadata.jsonl").write_text('{"file_name": "red.png", "text": "x"}')
    assert {image.size for image in read_all(snapshot, streaming=False)} == {(4, 4)}


@pytest.mark.parametrize("streaming", [False, True])
def test_addresses_are_fetched_where_that_is_asked_for(own, canary, streaming, caplog):
    folder, content = own
    gone = canary.url.rpartition(":")[0] + ":9/none.png"
    values = [{"bytes": content, "path": None}, {"bytes": None, "path": canary.url}, {"bytes": None, "path": gone}]
    write(folder / "train.parquet", image=files_of(values))
    with pytest.raises(DataError, match=r"row 1: .*http://127.*allow_urls=True"):
        read_all(folder, streaming)
    assert canary.touched() is None
    part = decoding_off(load_image_text(folder, split="train", streaming=streaming, allow_urls=True))
    rows = [row["image"] for row in part]
    assert [decode_image(value).size for value in rows[:2]] == [(4, 4), (8, 8)]
    assert canary.touched()
    with pytest.raises(ImageError, match="empty"):
        decode_image(rows[2])
    assert "none.png: cannot be fetched" in caplog.text


@pytest.fixture
def slow_server(tmp_path):
    """A server of its own: a request that is given up reaches it later, in the middle of another test."""
    server = Canary(tmp_path, bytes(100))
    yield server
    server.close()


def test_what_is_fetched_has_limits(slow_server, monkeypatch):
    from cmfah_hf.data.rows import files

    monkeypatch.setattr(files, "FETCH_BYTES", 10)
    with pytest.raises(ImageError, match="has more than 10 bytes"):
        files.fetch(slow_server.url)
    monkeypatch.setattr(files, "FETCH_BYTES", 10**6)
    monkeypatch.setattr(files, "FETCH_SECONDS", 1e-9)
    with pytest.raises(ImageError):
        files.fetch(slow_server.url)


def test_a_file_that_became_a_link_is_refused_though_all_is_cached(own, canary):
    folder, _ = own
    write(folder / "train.parquet", image=["red.png"])
    (folder / "metadata").mkdir()
    assert read_all(folder, streaming=False)
    (folder / "red.png").unlink()
    (folder / "red.png").symlink_to(canary.path)
    for streaming in (False, True):
        with pytest.raises(DataError, match=r"row 0: .*leads outside"):
            read_all(folder, streaming)
    assert canary.touched() is None


@pytest.mark.parametrize("streaming", [False, True])
def test_pipes_and_devices_are_neither_waited_for_nor_read(own, streaming):
    folder, _ = own
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    write(folder / "train.parquet", image=["pipe.png"])
    with pytest.raises(DataError, match="not a regular file"):
        read_all(folder, streaming)
    (folder / "train.parquet").unlink()
    for name in ("pipe.png", "zero.png", "sub"):
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "x"}))
        (folder / "sub").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=r"metadata\.jsonl, line 1: .*(not a regular file|leads outside)"):
            read_all(folder, streaming)
    for value in (folder / "pipe.png", "/dev/zero"):
        with pytest.raises(ImageError, match="not a regular file"):
            decode_image(value)


def test_texts_are_never_opened_as_files(own, canary):
    folder, content = own
    good, bad = {"bytes": content, "path": None}, {"bytes": None, "path": str(canary.path)}
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "text": datasets.Image(),
            "image": datasets.Image(),
            "labels": datasets.Image(),
        }
    )
    columns = {"id": ["0"], "text": files_of([bad]), "image": files_of([good]), "labels": files_of([bad])}
    pq.write_table(pa.table(columns).cast(features.arrow_schema), folder / "train.parquet")
    for streaming in (False, True):
        with pytest.raises(DataError, match="the column 'text' holds files and no texts"):
            read_all(folder, streaming)
    assert canary.touched() is None


def test_what_lies_at_an_address(canary):
    root = DataRoot.of_address("hf://datasets/me/own@abc/data/x.parquet")
    assert root.place("im/1.png") == "hf://datasets/me/own@abc/im/1.png"
    assert root.place("hf://datasets/me/own@abc/im/1.png") == "hf://datasets/me/own@abc/im/1.png"
    assert root.place("zip://1.png::hf://datasets/me/own@abc/a.zip") == "zip://1.png::hf://datasets/me/own@abc/a.zip"
    outside = [
        *canary.names(), "hf://datasets/me/own@abd/x", "hf://datasets/me/own@abc/../../me/private@abc/x", "../x", "/x",
        "hf://me/own/x", "simplecache::hf://datasets/me/own@abc/x", "s3://bucket/x", "", "nul\0l", "a::b",
    ]  # fmt: skip
    for name in outside:
        with pytest.raises(DataError):
            root.place(name)


HUB_PROGRAM = """
import sys
import datasets
datasets.disable_progress_bars()
from cmfah_hf.data import decode_image, load_image_text
from cmfah_hf.data.images import decoding_off
for name in sys.argv[1:]:
    for streaming in (False, True):
        try:
            part = load_image_text(name, split="train", streaming=streaming)
            found = [row["image"].size for row in part]
            found += [decode_image(row["image"]).size for row in decoding_off(part)]
        except ValueError as error:  # ours, or that of the builder of `datasets`
            found = str(error)
        print(repr((name, streaming, found)))
"""


@pytest.mark.slow
def test_no_row_of_a_data_set_on_the_hub_leads_outside(own, canary, tmp_path):
    folder, _ = own
    card = (
        "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: text\n    dtype: string\n---\n"
    )
    with HubServer() as server:
        good = []
        for number, name in enumerate([str(canary.path), canary.url, "hf://datasets/me/private@main/red.png"]):
            root = tmp_path / f"parquet{number}"
            root.mkdir()
            write(root / "train.parquet", image=files_of([{"bytes": None, "path": name}]))
            json_root = tmp_path / f"json{number}"
            json_root.mkdir()
            (json_root / "train.jsonl").write_text(json.dumps({"image": {"bytes": None, "path": name}, "text": "x"}))
            (json_root / "README.md").write_text(card)
            images = tmp_path / f"images{number}" / "train"
            images.mkdir(parents=True)
            shutil.copy(folder / "red.png", images / "red.png")
            (images / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "x"}))
            for kind in ("parquet", "json", "images"):
                server.add_folder(f"me/{kind}{number}", tmp_path / f"{kind}{number}")
                good.append(f"me/{kind}{number}")
        environment = server.environment(tmp_path / "home") | {"PYTHONPATH": str(Path(__file__).parents[2])}
        result = subprocess.run(
            [sys.executable, "-c", HUB_PROGRAM, *good],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 2 * len(good)
    assert canary.touched() is None
    for line in lines:
        _, _, found = eval(line)
        assert isinstance(found, str), line
        assert "\n" not in found
