"""Damaged and malicious data files: metadata, tables, matrices, cards, releases, images."""

import bz2
import gzip
import io
import json
import tarfile
import warnings
import zipfile
from pathlib import Path

import datasets
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from cmfah_hf.data import decode_image, load_image_text, open_matrices
from cmfah_hf.data.dataset_card import card_splits
from cmfah_hf.data.images import decoding_off
from cmfah_hf.data.releases.files import ReleaseFiles
from cmfah_hf.data.releases.mirflickr import MIRFlickrRelease, read_mirflickr
from cmfah_hf.data.releases.table import Corrections, CountChecks
from cmfah_hf.expansion.articles import iterate_articles
from cmfah_hf.expansion.corpus import iterate_files
from cmfah_hf.models.image_modes import to_rgb
from fuzz.harness import ODD_VALUES, mutated, mutated_json

ROWS = [
    {"file_name": "a.png", "id": "1", "text": "a dog", "labels": ["dog", "sea"], "score": 0.5, "box": [1, 2, 3, 4]},
    {"file_name": "sub/b.png", "id": "2", "text": ["cat", "sofa"], "labels": "cat;sofa", "score": 1, "box": []},
    {"file_name": "caf\u00e9.png", "id": "3", "text": None, "labels": None, "score": None, "box": None},
]


@pytest.fixture(scope="module", autouse=True)
def libraries():
    """Imports the modules for the first row, which takes longer than the time limit of an input."""
    for _ in load_image_text("scenes", streaming=True, split="query", num_train=1, num_query=1, image_size=32):
        pass


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "pairs"
    (root / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png", "cafe\u0301.png"):
        Image.new("RGB", (3, 2), "red").save(root / name)
    return root


def read(folder: Path, **kwargs) -> None:
    """Reads every row and decodes its image."""
    for part in load_image_text(folder, streaming=True, **kwargs).values():
        for row in decoding_off(part):
            if row.get("image") is not None:
                decode_image(row["image"])


def test_metadata_as_json(fuzzer, folder, canary):
    odd = (*ODD_VALUES, *canary.names(), "cafe\u0301.png", "a.png\n", "\ud800", "DIGITS")

    def attempt(rng):
        rows = [mutated_json(rng, row, odd) if rng.random() < 0.4 else row for row in ROWS]
        text = "\n".join(map(json.dumps, rows)).replace('"DIGITS"', "7" * 5000).encode()
        (folder / "metadata.jsonl").write_bytes(mutated(rng, text) if rng.random() < 0.6 else text)
        read(folder)

    fuzzer(share=0.03).run(attempt)


def test_metadata_as_csv(fuzzer, folder, canary):
    text = b'file_name,id,text,labels\na.png,1,"a dog, running",dog|sea\nsub/b.png,2,"""cat""","[""x""]"\n'

    def attempt(rng):
        content = mutated(rng, text)
        if rng.random() < 0.2:
            content = content.replace(b"sub/b.png", rng.choice(canary.names()).encode())
        (folder / "metadata.csv").write_bytes(content)
        read(folder)

    fuzzer(share=0.02).run(attempt)


def png() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(content, "PNG")
    return content.getvalue()


def table(path: str | None) -> pa.Table:
    rows = 12
    images = [
        {"bytes": png(), "path": path},
        {"bytes": None, "path": "a.png"},
        {"bytes": None, "path": path or "a.png"},
    ]
    return pa.table(
        {
            "id": [str(number) for number in range(rows)],
            "text": ["a dog \u00e9"] * rows,
            "labels": [["dog"], [], None] * 4,
            "image": images * 4,
            "score": list(range(rows)),
            "kind": pa.array(["u", "v"] * 6).dictionary_encode(),
        }
    )


def parquet(path: str | None, **options) -> bytes:
    content = io.BytesIO()
    pq.write_table(table(path), content, **options)
    return content.getvalue()


@pytest.mark.parametrize(("streaming", "share"), [(True, 0.04), (False, 0.004)])
def test_parquet(fuzzer, folder, canary, streaming, share):
    names = (*[None] * 12, *canary.names())
    bases = [parquet(name, row_group_size=5, compression=how) for name in names for how in ("none", "zstd")]

    def attempt(rng):
        content = rng.choice(bases)
        (folder / "train.parquet").write_bytes(mutated(rng, content) if rng.random() < 0.9 else content)
        if streaming:
            return read(folder)
        for row in load_image_text(folder, split="train"):
            row["image"].load()
        return None

    on_access = () if streaming else (OSError, ValueError, SyntaxError)  # from `datasets` and Pillow
    fuzzer(share=share).run(attempt, on_access)


def matrices() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "IAll": rng.integers(0, 256, (6, 5, 3, 4), np.uint8),
        "YAll": csc_matrix((rng.random((4, 7)) > 0.5).astype(float)),
        "LAll": (rng.random((4, 3)) > 0.5).astype(np.uint8),
    }


def mat(compressed: bool) -> bytes:
    content = io.BytesIO()
    savemat(content, matrices(), do_compression=compressed)
    return content.getvalue()


def hdf5(version: str, link: str | None = None, **options) -> bytes:
    given, content = matrices(), io.BytesIO()
    with h5py.File(content, "w", libver=version) as file:
        file.create_dataset("IAll", data=given["IAll"].transpose(3, 2, 1, 0), **options)
        file.create_dataset("LAll", data=given["LAll"], **options)
        if link is None:
            group = file.create_group("YAll")
            group.attrs["MATLAB_sparse"], group.attrs["MATLAB_class"] = 4, np.bytes_("double")
            sparse = given["YAll"]
            group["jc"], group["ir"], group["data"] = sparse.indptr, sparse.indices, sparse.data
        else:
            file["YAll"] = h5py.ExternalLink(link, "/YAll")
    return content.getvalue()


@pytest.mark.parametrize("kind", ["mat", "h5"])
def test_matrices(fuzzer, tmp_path, canary, kind):
    packed = {"compression": "gzip", "shuffle": True, "chunks": True}
    bases = [mat(False), mat(True)]
    if kind == "h5":
        bases = [hdf5("earliest"), hdf5("latest", **packed), hdf5("earliest", str(canary.path), fletcher32=True)]
    file = tmp_path / f"x.{kind}"

    def attempt(rng):
        file.write_bytes(mutated(rng, rng.choice(bases)))
        for _ in open_matrices(file).to_dataset():
            pass

    fuzzer(share=0.025).run(attempt)


def test_images(fuzzer):
    noise = np.random.default_rng(0).integers(0, 256, (20, 16, 3), np.uint8)
    bases = []
    for kind, options in {
        "JPEG": {}, "PNG": {}, "GIF": {}, "WEBP": {"lossless": True}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"},
        "ICO": {}, "TGA": {}, "PPM": {}, "JPEG2000": {}, "ICNS": {}, "SGI": {}, "PCX": {}, "DDS": {}, "AVIF": {},
    }.items():  # fmt: skip
        if kind in Image.SAVE or Image.init() is not None:
            content = io.BytesIO()
            Image.fromarray(noise).save(content, kind, **options)
            bases.append(content.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 6
    content = io.BytesIO()
    Image.fromarray(noise).save(content, "JPEG", exif=exif)
    bases.append(content.getvalue())

    fuzzer(share=0.05).run(lambda rng: to_rgb(decode_image(mutated(rng, rng.choice(bases)), "the image")))


def test_cards(fuzzer, folder, canary):
    pq.write_table(table(None), folder / "x.parquet")
    head = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: '*.parquet'\n"

    def attempt(rng):
        content = f"---\n{head}---\n# A data set\n".encode()
        if rng.random() < 0.5:
            config = {"config_name": "default", "data_files": [{"split": "train", "path": "*.parquet"}]}
            odd = (*ODD_VALUES, *canary.names(), "**", "[", "../*")
            content = f"---\n{json.dumps(mutated_json(rng, {'configs': [config]}, odd))}\n---\n".encode()
        (folder / "README.md").write_bytes(mutated(rng, content))
        for files in (card_splits(folder) or {}).values():
            assert all(Path(file).resolve().is_relative_to(folder.resolve()) for file in files)

    fuzzer(share=0.02).run(attempt)


RELEASE = MIRFlickrRelease(
    num_rows=3, num_tags=2, tag_ones=3, label_ones=3, variants={3: True}, queries=1, train=1, classes=("sky", "sea")
)
FILES = {
    "doc/common_tags.txt": b"beach 2\r\nnikon 1\n",
    "meta/tags/tags1.txt": b"beach\nnikon\n",
    "meta/tags/tags2.txt": b"beach\r\n",
    "meta/tags/tags3.txt": b"\xe9\n",
    "sky.txt": b"1\n2\n",
    "sea.txt": b"3\r\n",
}


def archive(kind: str) -> bytes:
    content = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, text in FILES.items():
                opened.writestr(name, text)
    else:
        with tarfile.open(fileobj=content, mode="w") as opened:
            for name, text in FILES.items():
                member = tarfile.TarInfo(name)
                member.size = len(text)
                opened.addfile(member, io.BytesIO(text))
    return content.getvalue()


def test_releases(fuzzer, tmp_path):
    archives = {kind: archive(kind) for kind in ("zip", "tar")}

    def attempt(rng):
        root = tmp_path / str(rng.random())
        if rng.random() < 0.5:
            chosen = rng.choice(list(FILES))
            for name, text in FILES.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(mutated(rng, text) if name == chosen else text)
        else:
            kind = rng.choice(list(archives))
            root.mkdir()
            (root / f"all.{kind}").write_bytes(mutated(rng, archives[kind]))
        with ReleaseFiles(root) as files:
            read_mirflickr(files, RELEASE, CountChecks(True, Corrections(files)))

    fuzzer(share=0.03).run(attempt)


def test_corpus_files(fuzzer, tmp_path):
    lines = b'{"text": "a dog", "title": "Dog"}\n{"text": ["cat", "sofa"]}\n'
    bases = {
        "x.jsonl": lines,
        "x.jsonl.gz": gzip.compress(lines),
        "x.parquet": parquet(None),
        "x.txt": "\u00e9 dog\n".encode(),
    }

    def attempt(rng):
        name = rng.choice(list(bases))
        (tmp_path / name).write_bytes(mutated(rng, bases[name]))
        for _ in iterate_files(tmp_path / name):
            pass

    fuzzer(share=0.02).run(attempt)


DUMP = b"""<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/"><page><title>Dog</title><ns>0</ns><revision>
<text>A [[dog]] is {{a|template}} an ''animal''.</text></revision></page><page><title>Cat</title><ns>0</ns><revision>
<text>== Cat ==\n* a [[cat|kitten]] <ref>x</ref></text></revision></page></mediawiki>"""


def test_dumps(fuzzer, tmp_path):
    bases = {"x.xml": DUMP, "x.xml.bz2": bz2.compress(DUMP), "x.xml.gz": gzip.compress(DUMP)}

    def attempt(rng):
        name = rng.choice(list(bases))
        (tmp_path / name).write_bytes(mutated(rng, bases[name]))
        for _ in iterate_articles(tmp_path / name, "text", None, str.split, links=True):
            pass

    fuzzer(share=0.02).run(attempt)
