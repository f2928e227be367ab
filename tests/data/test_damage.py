"""Damaged and malicious files of data sets, one of each kind that once crashed, hung, or was accepted."""

import gzip
import io
import json
import os
import zipfile
import zlib

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from cmfah_hf.data import decode_image, load_image_text, open_matrices
from cmfah_hf.data.file_state import changed_files, file_states
from cmfah_hf.data.releases.files import ReleaseFiles
from cmfah_hf.errors import DataError, ImageError
from cmfah_hf.expansion.articles import iterate_articles
from cmfah_hf.expansion.corpus import iterate_files
from cmfah_hf.training.data.datasets_internals import stream_fingerprint

GOOD = '{"file_name": "a.png", "text": "a dog"}'


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": ' + "[" * 100_000, "nested too deep"),
        ('{"file_name": "b.png", "text": "x", "box": ' + "[" * 200 + "]" * 200 + "}", "nested more than 100 deep"),
        ('{"file_name": "b.png", "text": "\\ud800"}', "half of a surrogate pair"),
        ('{"file_name": "b.png", "text": "x", "n": ' + "7" * 5000 + "}", "not valid JSON"),
        ('{"file_name": "b.png", "text": "x", "text": "y"}', "gives 'text' twice"),
        ('{"file_name": "b.png\\u0000", "text": "x"}', "names no file"),
        ('{"file_name": "' + "b" * 5000 + '", "text": "x"}', "does not exist"),
        ('{"file_name": "b.png\\nx", "text": "x"}', "does not exist"),
    ],
)
def test_lines_of_metadata(make_folder, line, problem):
    folder = make_folder(f"{GOOD}\n{line}\n", images=["a.png", "b.png"])
    with pytest.raises(DataError, match=rf"metadata\.jsonl, line 2\b.*{problem}") as caught:
        load_image_text(folder, streaming=True)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"file_name,text\na.png,\xff\xfe\n", "not UTF-8"),
        ("file_name,text\na.png,x\n".encode("utf-16"), "not UTF-8"),
        (b"file_name,text,text\na.png,x,y\n", "two columns are named 'text'"),
        (b"file_name,text\na.png," + b"x" * (2**24 + 1), "line 2: has more than"),
    ],
)
def test_metadata_as_csv(make_folder, content, problem):
    folder = make_folder("", name="metadata.csv", images=["a.png"])
    (folder / "metadata.csv").write_bytes(content)
    with pytest.raises(DataError, match=problem):
        load_image_text(folder, streaming=True)


def test_metadata_that_is_a_pipe_is_not_waited_for(make_folder):
    folder = make_folder([json.loads(GOOD)])
    (folder / "metadata.jsonl").unlink()
    os.mkfifo(folder / "metadata.jsonl")
    with pytest.raises(DataError, match="holds neither a metadata file"):
        load_image_text(folder)


def test_names_that_no_file_can_have():
    for name in ("x" * 5000, "/" + "x/" * 3000, "nul\0l"):
        with pytest.raises(DataError, match="no such folder or file"):
            load_image_text(name)


@pytest.mark.parametrize("streaming", [False, True])
def test_texts_in_parquet_that_are_not_utf8_name_the_file(tmp_path, streaming):
    text = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 3], np.int32)), pa.py_buffer(b"a\xff\xfe"))
    content = io.BytesIO()
    Image.new("RGB", (2, 2)).save(content, "PNG")
    pq.write_table(pa.table({"text": text, "image": [content.getvalue()] * 2}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet.*(UTF8|utf-8)"):
        list(load_image_text(tmp_path / "x.parquet", split="train", streaming=streaming))


def test_parquet_columns_of_odd_names(tmp_path):
    content = io.BytesIO()
    Image.new("RGB", (2, 2)).save(content, "PNG")
    columns = {"3": [1], "text": ["x"], "image": [content.getvalue()], "": [2], "a\nb": [3], "\u202e": [4]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    for streaming in (False, True):
        (row,) = load_image_text(tmp_path / "x.parquet", split="train", streaming=streaming)
        assert [row[name] for name in ("3", "", "a\nb", "\u202e")] == [1, 2, 3, 4]


@pytest.mark.parametrize("how", ["link", "soft link through one", "external storage", "virtual", "in a sparse group"])
def test_hdf5_reads_no_other_file(tmp_path, how):
    with h5py.File(tmp_path / "secret.h5", "w") as secret:
        secret["values"] = np.ones((4, 3))
        secret.create_group("g")["values"] = np.ones((4, 3))
    (tmp_path / "secret.bin").write_bytes(np.ones((4, 3)).tobytes())
    with h5py.File(tmp_path / "x.h5", "w") as file:
        if how == "link":
            file["YAll"] = h5py.ExternalLink("secret.h5", "/values")
        elif how == "soft link through one":
            file["#other"] = h5py.ExternalLink("secret.h5", "/g")
            file["YAll"] = h5py.SoftLink("/#other/values")
        elif how == "external storage":
            file.create_dataset("YAll", (4, 3), "f8", external=[(str(tmp_path / "secret.bin"), 0, 96)])
        elif how == "virtual":
            layout = h5py.VirtualLayout((4, 3), "f8")
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "values", (4, 3))
            file.create_virtual_dataset("YAll", layout)
        else:
            group = file.create_group("YAll")
            group.attrs["MATLAB_sparse"] = 4
            group["jc"] = h5py.ExternalLink("secret.h5", "/values")
    with pytest.raises(DataError, match=r"x\.h5, .*(is a link, which may lead to another file|in other files)"):
        open_matrices(tmp_path / "x.h5")


@pytest.mark.parametrize("kind", ["mat", "h5"])
def test_sparse_matrices_whose_places_lie_outside_are_refused(tmp_path, kind):
    """scipy computes with them as they are, and takes the process down."""
    tags = csc_matrix((np.random.default_rng(0).random((50, 9)) > 0.5).astype(float))
    file = tmp_path / f"x.{kind}"
    if kind == "mat":
        savemat(file, {"YAll": tags, "LAll": np.ones((50, 2))})
        wrong = tags.indices.astype("<i4").tobytes()
        content = file.read_bytes()
        assert wrong in content
        file.write_bytes(content.replace(wrong, np.full(len(tags.indices), 10**9, "<i4").tobytes()))
    else:
        with h5py.File(file, "w") as opened:
            group = opened.create_group("YAll")
            group.attrs["MATLAB_sparse"] = 50
            group["jc"], group["ir"], group["data"] = tags.indptr, np.full(len(tags.indices), 10**9), tags.data
            opened["LAll"] = np.ones((50, 2))
    with pytest.raises(DataError, match=f"x.{kind}.*(not a valid sparse matrix|not a readable HDF5 file)"):
        list(open_matrices(file, axes={"labels": "ND", "tags": "ND"}).to_dataset())


def test_bombs_in_archives_and_pipes_as_members(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as opened:
        opened.writestr("im1.jpg", b"\0" * 2**25)
        opened.writestr("tags1.txt", "x")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / "outside.txt").symlink_to("/etc/hostname")
    with ReleaseFiles(tmp_path) as files:
        assert files.read(files.find("tags1.txt")) == b"x"
        with pytest.raises(OSError, match="would expand from"):
            files.read(files.find("im1.jpg"))
        with pytest.raises(DataError, match="would expand from"):
            list(files.chunks(files.find("im1.jpg"), 1000))
        for name, problem in (("pipe.txt", "not a regular file"), ("zero.txt", "outside"), ("outside.txt", "outside")):
            with pytest.raises(DataError, match=problem):
                list(files.lines(files.find(name)))
    os.mkfifo(tmp_path / "b.zip")
    with pytest.raises(DataError, match=r"b\.zip: damaged or cut short .*not a regular file"):
        ReleaseFiles(tmp_path)


def png_of(width: int, height: int, packed: bytes, *more: bytes) -> bytes:
    def chunk(kind, content):
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    head = width.to_bytes(4) + height.to_bytes(4) + b"\x08\x02\0\0\0"
    rest = b"".join(chunk(part[:4], part[4:]) for part in more)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + rest + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def test_bombs_in_images():
    zeros = zlib.compress(b"\0" * 2**26)
    with pytest.raises(ImageError, match="too large to be read safely"):
        decode_image(png_of(40_000, 40_000, zeros), "bomb")
    text = b"zTXtx\0\0" + zeros
    with pytest.raises(ImageError):
        decode_image(png_of(2, 2, zlib.compress(b"\0" * 14), *[text] * 3), "bomb")
    assert decode_image(png_of(2, 2, zeros), "more values than pixels").size == (2, 2)


def test_images_that_start_a_program_are_refused(tmp_path):
    content = io.BytesIO()
    Image.new("RGB", (2, 2)).save(content, "EPS")
    with pytest.raises(ImageError, match="not an image in a format"):
        decode_image(content.getvalue(), "program")


def test_corpora_without_an_end(tmp_path):
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b'{"text": "' + b"x" * (2**26 + 100) + b'"}', 1))
    with pytest.raises(DataError, match=r"line 1, has more than .* characters"):
        list(iterate_files(tmp_path / "x.jsonl.gz"))
    damaged = bytearray(gzip.compress(b'{"text": "x"}\n' * 1000))
    damaged[30] ^= 255
    (tmp_path / "y.jsonl.gz").write_bytes(damaged)
    with pytest.raises(DataError, match=r"y\.jsonl\.gz cannot be read"):
        list(iterate_files(tmp_path / "y.jsonl.gz"))
    (tmp_path / "z.jsonl").write_text('{"text": ' + "[" * 100_000)
    with pytest.raises(DataError, match=r"z\.jsonl, line 1, is not JSON"):
        list(iterate_files(tmp_path / "z.jsonl"))
    page = b"<mediawiki><page><title>x</title><text>" + b"x" * (2**26 + 100)
    (tmp_path / "x.xml.gz").write_bytes(gzip.compress(page, 1))
    with pytest.raises(DataError, match="a page of it has more than"):
        list(iterate_articles(tmp_path / "x.xml.gz", "text", None, str.split))


@pytest.mark.parametrize("forms", [("caf\u00e9", "cafe\u0301"), ("cafe\u0301", "caf\u00e9")])
@pytest.mark.parametrize("streaming", [False, True])
def test_names_are_found_in_any_form_of_unicode(tmp_path, forms, streaming):
    """Metadata hold `\u00e9` as one character and the disk as two, as in every archive from a Mac; or the reverse."""
    named, spelled = forms
    (tmp_path / spelled).mkdir()
    for name in (f"{spelled}.png", f"{spelled}/{spelled}.png", "plain.png"):
        Image.new("RGB", (3, 2), "red").save(tmp_path / name)
    names = [f"{named}.png", f"{named}/{named}.png", f"{spelled}/{named}.png", "plain.png"]
    rows = [{"file_name": name, "id": str(number), "text": "x"} for number, name in enumerate(names)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["image"].size for row in load_image_text(tmp_path, split="train", streaming=streaming)] == [(3, 2)] * 4
    (tmp_path / "metadata.jsonl").unlink()
    pq.write_table(pa.table({"image": names, "text": ["x"] * 4}), tmp_path / "train.parquet")
    part = load_image_text(tmp_path, split="train", streaming=streaming)
    assert [row["image"].size for row in part] == [(3, 2)] * 4
    assert [row["id"] for row in part] == names


def test_the_exact_name_goes_first_and_two_others_are_an_error(tmp_path):
    composed, decomposed, third = "\u1e9b\u0323", "\u017f\u0323\u0307", "\u017f\u0307\u0323"
    for name, color in ((composed, "red"), (third, "blue")):
        Image.new("RGB", (3, 2), color).save(tmp_path / f"{name}.png")
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text(json.dumps({"file_name": f"{composed}.png", "text": "x"}))
    (row,) = load_image_text(tmp_path, split="train", streaming=True)
    assert row["image"].getpixel((0, 0)) == (255, 0, 0)
    metadata.write_text(json.dumps({"file_name": f"{decomposed}.png", "text": "x"}))
    with pytest.raises(DataError, match=r"line 1: .* could be either of .*\\u017f.* and .*\\u1e9b") as caught:
        load_image_text(tmp_path, split="train", streaming=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["images", "parquet"])
def test_images_that_were_overwritten_are_seen(tmp_path, kind):
    """Results computed from a data set are cached by its fingerprint; metadata and names are unchanged here."""
    image = tmp_path / "a.png"
    Image.new("RGB", (3, 2), (200, 0, 0)).save(image)
    state = image.stat()
    if kind == "images":
        (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "x"}))
    else:
        pq.write_table(pa.table({"image": ["a.png"], "text": ["x"]}), tmp_path / "train.parquet")

    def reds(streaming):
        part = load_image_text(tmp_path, split="train", streaming=streaming)
        return next(iter(part.map(lambda row: {"red": row["image"].getpixel((0, 0))[0]})))["red"]

    before = stream_fingerprint(load_image_text(tmp_path, split="train", streaming=True))
    states = file_states([image])
    assert [reds(False), reds(True)] == [200, 200]
    Image.new("RGB", (3, 2), (100, 0, 0)).save(image)
    os.utime(image, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert image.stat().st_size == state.st_size
    assert changed_files(states) == [str(image)]
    assert [reds(False), reds(True)] == [100, 100]
    assert stream_fingerprint(load_image_text(tmp_path, split="train", streaming=True)) != before


def test_matrices_that_were_overwritten_are_seen(tmp_path):
    def write(value):
        savemat(tmp_path / "x.mat", {"YAll": np.full((5, 3), value, np.uint8), "LAll": np.ones((5, 2), np.uint8)})

    def texts():
        kwargs = {"axes": {"tags": "ND", "labels": "ND"}}
        return load_image_text(tmp_path / "x.mat", split="train", **kwargs)["text"][:]

    write(1)
    state = (tmp_path / "x.mat").stat()
    assert texts() == ["tag00 tag01 tag02"] * 5
    write(0)
    os.utime(tmp_path / "x.mat", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert texts() == [""] * 5
