"""Research matrices in all layouts, against the arrays that were written."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from cmfah_hf.data import load_image_text, open_matrices
from cmfah_hf.data.matrices import hdf5, storage
from cmfah_hf.data.matrices import rows as matrix_rows
from cmfah_hf.data.matrices.opening import list_variables
from cmfah_hf.errors import DataError

COUNT, TAGS, CLASSES = 9, 14, 5
DCMH = Path(os.environ.get("CMFAH_DATA", "")) / "data" / "mirflickr25k-dcmh"
HAS_DCMH = bool(os.environ.get("CMFAH_DATA")) and DCMH.is_dir()


@pytest.fixture(scope="module")
def arrays():
    """Images `(N, H, W, C)` that are not square, features, tags and labels."""
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 256, (COUNT, 6, 8, 3), dtype=np.uint8),
        "features": rng.normal(size=(COUNT, 7)),
        "tags": (rng.random((COUNT, TAGS)) < 0.3).astype(np.float64),
        "labels": rng.random((COUNT, CLASSES)) < 0.4,
    }


def write_mat73(path: Path, values: dict, extra=None) -> Path:
    """Writes an HDF5 file like MATLAB's `save -v7.3`: a user block, classes as attributes, reversed axes, sparse
    matrices as groups of compressed columns."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in values.items():
            if scipy.sparse.issparse(value):
                value = value.tocsc()
                group = file.create_group(name)
                group.attrs["MATLAB_class"] = np.bytes_(b"double")
                group.attrs["MATLAB_sparse"] = np.uint64(value.shape[0])
                group["jc"] = value.indptr.astype(np.uint64)
                if value.nnz:
                    group["ir"] = value.indices.astype(np.uint64)
                    group["data"] = value.data.astype(np.float64)
                continue
            dataset = file.create_dataset(name, data=value.T.astype(np.uint8) if value.dtype == bool else value.T)
            kind = {"b": "logical", "u": "uint8", "f": "double"}[value.dtype.kind]
            dataset.attrs["MATLAB_class"] = np.bytes_(kind.encode())
        if extra is not None:
            extra(file)
    head = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    with path.open("r+b") as file:
        file.write(head)
    return path


def check(matrices, arrays, role="images"):
    rows = getattr(matrices, role)
    assert len(matrices) == len(rows) == COUNT
    np.testing.assert_array_equal(rows[:], arrays[role])
    np.testing.assert_array_equal(rows[2:5], arrays[role][2:5])
    np.testing.assert_array_equal(rows[-1], arrays[role][-1])
    np.testing.assert_array_equal(np.concatenate(list(rows.blocks())), arrays[role])
    for role in ("tags", "labels"):
        rows = getattr(matrices, role)
        np.testing.assert_array_equal(rows[:].toarray(), arrays[role])
        np.testing.assert_array_equal(rows[3].toarray()[0], arrays[role][3])


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    "names",
    [("IAll", "YAll", "LAll"), ("images", "tags", "labels"), ("XAll", "TAll", "label"), ("FALL", "text", "category")],
)
def test_matlab_5(tmp_path, arrays, names, sparse, compressed):
    images, tags, labels = names
    values = {
        images: arrays["images"].transpose(1, 2, 3, 0),
        tags: scipy.sparse.csc_matrix(arrays["tags"]) if sparse else arrays["tags"],
        labels: scipy.sparse.csc_matrix(arrays["labels"]) if sparse else arrays["labels"],
        "param": {"seed": 3.0},
    }
    scipy.io.savemat(tmp_path / "all.mat", values, do_compression=compressed)
    matrices = open_matrices(tmp_path / "all.mat")
    check(matrices, arrays)
    assert {role: variable.name for role, variable in matrices.variables.items()} == dict(
        zip(("images", "tags", "labels"), names, strict=True)
    )
    assert matrices.axes == {"images": "HWCN", "tags": "ND", "labels": "ND"}
    listed = {variable.name: (variable.shape, variable.kind) for variable in list_variables(tmp_path / "all.mat")}
    expected = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(tmp_path / "all.mat")}
    # scipy uses the type logical for a sparse logical matrix.
    assert {name: shape for name, (shape, _) in listed.items()} == {
        name: shape for name, (shape, _) in expected.items()
    }
    assert listed["param"][1] == "struct"


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u4", "i8", "f4", "f8", "?"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
def test_any_type_and_byte_order(tmp_path, arrays, dtype, order, compressed):
    from scipy.io.matlab._mio5 import MatFile5Writer

    labels = arrays["labels"].astype(np.dtype(dtype).newbyteorder(order))
    with (tmp_path / "all.mat").open("wb") as file:
        MatFile5Writer(file, do_compression=compressed).put_variables(
            {"IAll": arrays["features"].astype(order + "f8"), "YAll": arrays["tags"], "LAll": labels}
        )
    check(open_matrices(tmp_path / "all.mat"), arrays, "features")
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.update({"FAll": arrays["features"], "YAll": arrays["tags"], "LAll": labels})
    check(open_matrices(tmp_path / "all.h5"), arrays, "features")


def test_big_endian_file(tmp_path):
    """Written by hand, since scipy only writes the native byte order: one double matrix of 2 x 3."""
    import struct

    values = np.arange(6, dtype=">f8")
    flags = struct.pack(">2I2I", 6, 8, 6, 0)
    shape = struct.pack(">2I2i", 5, 8, 2, 3)
    name = struct.pack(">2H4s", 4, 1, b"YAll")
    data = struct.pack(">2I", 9, 48) + values.tobytes()
    body = flags + shape + name + data
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI"
    (tmp_path / "big.mat").write_bytes(head + struct.pack(">2I", 14, len(body)) + body)
    expected = scipy.io.loadmat(tmp_path / "big.mat")["YAll"]
    np.testing.assert_array_equal(expected, values.reshape(2, 3, order="F"))
    matrices = open_matrices(tmp_path / "big.mat", axes={"tags": "DN"})
    np.testing.assert_array_equal(matrices.tags[:].toarray(), expected.T)


@pytest.mark.parametrize("sparse", [False, True])
def test_matlab_73_axes_are_reversed(tmp_path, arrays, sparse):
    values = {
        "IAll": arrays["images"].transpose(1, 2, 3, 0),  # H x W x C x N in MATLAB, N x C x W x H in h5py
        "YAll": scipy.sparse.csc_matrix(arrays["tags"]) if sparse else arrays["tags"],
        "LAll": arrays["labels"],
    }
    matrices = open_matrices(write_mat73(tmp_path / "FLICKR-25K.mat", values))
    check(matrices, arrays)
    assert matrices.axes == {"images": "NCWH", "tags": "ND" if sparse else "DN", "labels": "DN"}
    assert "IAll (uint8, 9 x 3 x 8 x 6), read as N x C x W x H" in matrices.describe()[0]


def test_a_sparse_group_without_values(tmp_path, arrays):
    values = {"YAll": scipy.sparse.csc_matrix((COUNT, TAGS)), "LAll": arrays["labels"]}
    matrices = open_matrices(write_mat73(tmp_path / "x.mat", values))
    assert matrices.tags[:].shape == (COUNT, TAGS)
    assert matrices.tags[:].nnz == 0


@pytest.mark.parametrize(("axes", "order"), [("NCHW", (0, 3, 1, 2)), ("NHWC", (0, 1, 2, 3)), ("WHCN", (2, 1, 3, 0))])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("chunks", [None, True])
def test_hdf5_written_by_python(tmp_path, arrays, axes, order, transposed, chunks):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("images", data=arrays["images"].transpose(order), chunks=chunks)
        file["tags"] = arrays["tags"].T if transposed else arrays["tags"]
        file["labels"] = arrays["labels"].T if transposed else arrays["labels"]
    matrices = open_matrices(tmp_path / "x.h5")
    check(matrices, arrays)
    assert matrices.axes == {"images": axes} | dict.fromkeys(("tags", "labels"), "DN" if transposed else "ND")


def test_three_files_of_two_formats_in_a_folder(tmp_path, arrays):
    """The usual download: images as HDF5, the rest as MATLAB 5, and a file with the image names in cells."""
    folder = tmp_path / "mirflickr"
    for name in ("IAll", "YAll", "LAll", "FAll"):
        (folder / name).mkdir(parents=True)
    write_mat73(folder / "IAll" / "mirflickr25k-iall.mat", {"IAll": arrays["images"].transpose(1, 2, 3, 0)})
    scipy.io.savemat(folder / "YAll" / "mirflickr25k-yall.mat", {"YAll": arrays["tags"]})
    scipy.io.savemat(folder / "LAll" / "mirflickr25k-lall.mat", {"LAll": arrays["labels"]})
    cells = np.array([f"im{i}.jpg" for i in range(COUNT)], object)[:, None]
    scipy.io.savemat(folder / "FAll" / "mirflickr25k-fall.mat", {"FAll": cells})
    check(open_matrices(folder), arrays)
    check(open_matrices(sorted(folder.rglob("*.mat"))), arrays)
    rows = list(load_image_text(folder, split="train", streaming=True))
    assert [row["id"] for row in rows] == [str(row) for row in range(COUNT)]
    np.testing.assert_array_equal(np.asarray(rows[4]["image"]), arrays["images"][4])


def test_given_axes_override_detection(tmp_path, arrays):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"] = arrays["images"].transpose(0, 3, 2, 1)
        file["tags"] = arrays["tags"]
    matrices = open_matrices(tmp_path / "x.h5", axes={"images": "NCWH"})
    np.testing.assert_array_equal(matrices.images[:], arrays["images"])
    with pytest.raises(DataError, match="do not fit images"):
        open_matrices(tmp_path / "x.h5", axes={"images": "NCWW"})
    with pytest.raises(DataError, match=r"axes are given for labels, and present are images, tags"):
        open_matrices(tmp_path / "x.h5", axes={"labels": "ND"})


def test_gray_images_and_features(tmp_path, arrays):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"] = arrays["images"][:, :, :, 0]
        file["XAll"] = arrays["features"]
        file["tags"] = arrays["tags"]
    matrices = open_matrices(tmp_path / "x.h5")
    np.testing.assert_array_equal(matrices.images[:], arrays["images"][:, :, :, :1])
    np.testing.assert_array_equal(matrices.features[:], arrays["features"])
    row = next(iter(matrices.to_dataset()))
    assert row["image"].mode == "L"
    assert set(row) == {"id", "image", "text", "tags"}


@settings(max_examples=40)
@given(data=st.data())
def test_rows_of_any_layout_match_the_array(tmp_path_factory, data):
    """Blocks, slices and single rows through small blocks, of MATLAB 5 and of chunked HDF5, along either axis."""

    shape = data.draw(st.tuples(st.integers(2, 12), st.integers(13, 20)))
    values = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=shape)
    partner = np.ones((shape[0], 30))
    limit = data.draw(st.sampled_from([64, 500, 5000]))
    folder = tmp_path_factory.mktemp("any")
    stored = values.T if data.draw(st.booleans()) else values
    if data.draw(st.booleans()):
        path = folder / "x.mat"
        scipy.io.savemat(path, {"XAll": stored, "YAll": partner}, do_compression=data.draw(st.booleans()))
    else:
        path = folder / "x.h5"
        chunks = tuple(data.draw(st.integers(1, size)) for size in stored.shape)
        with h5py.File(path, "w") as file:
            file.create_dataset(
                "XAll", data=stored, chunks=chunks, shuffle=data.draw(st.booleans()), compression="gzip"
            )
            file["YAll"] = partner
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "BLOCK_BYTES", limit)
        patch.setattr(hdf5, "BLOCK_BYTES", limit)
        patch.setattr(hdf5, "_LARGEST_CHUNK", limit)
        patch.setattr("cmfah_hf.data.matrices.mat5._SMALL", 0)
        rows = open_matrices(path).features
        assert isinstance(rows, matrix_rows.DenseRows)
        start = data.draw(st.integers(0, shape[0]))
        stop = data.draw(st.integers(0, shape[0]))
        np.testing.assert_array_equal(rows[start:stop], values[start:stop])
        blocks = list(rows.blocks(min(start, stop), max(start, stop)))
        np.testing.assert_array_equal(
            np.concatenate(blocks) if blocks else values[:0], values[min(start, stop) : max(start, stop)]
        )
        for row in data.draw(st.lists(st.integers(-shape[0], shape[0] - 1), max_size=5)):
            np.testing.assert_array_equal(rows[row], values[row])
        np.testing.assert_array_equal(rows[::3], values[::3])


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("userblock", [0, 1024])
def test_one_large_chunk_is_decompressed_without_h5py(tmp_path, monkeypatch, shuffle, compression, userblock):

    values = np.random.default_rng(1).normal(size=(50, 3, 4, 5)).astype(np.float32)
    with h5py.File(tmp_path / "x.h5", "w", userblock_size=userblock) as file:
        options = {"compression": compression, "shuffle": shuffle and compression is not None}
        file.create_dataset("images", data=values, chunks=values.shape, **options)
        file["tags"] = np.ones((50, 2))
    monkeypatch.setattr(hdf5, "_LARGEST_CHUNK", 1000)
    monkeypatch.setattr(hdf5, "_SHUFFLE_BLOCK", 37)
    rows = open_matrices(tmp_path / "x.h5").images
    np.testing.assert_array_equal(rows[:], values.transpose(0, 2, 3, 1))
    assert not isinstance(rows._reader, hdf5._Chunked)


MEMORY = """
import sys
import numpy as np
from cmfah_hf.data import open_matrices
def peak():  # not ru_maxrss, which a new process inherits from its parent
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
matrices = open_matrices(sys.argv[1])
rows = total = 0
for block in matrices.images.blocks():
    rows += len(block)
    total += int(block[0, 0, 0, 0])
print(rows, total, matrices.tags[:].nnz, peak())
if len(sys.argv) > 2:
    stream = matrices.to_dataset(streaming=True)
    before, named = peak(), [row["id"] for row, _ in zip(stream, range(64))]
    print(len(named), peak() - before)
"""


def run_alone(environment, *arguments) -> list[list[float]]:
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    return [[float(word) for word in line.split()] for line in run.stdout.splitlines()]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
@pytest.mark.slow
def test_four_gigabytes_of_hdf5_take_a_fraction_of_the_memory(tmp_path, environment):
    """20,015 images of 256 x 256; the file stores one of them, and the rest is its fill value."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        images = file.create_dataset("IAll", (20015, 3, 256, 256), "u1", chunks=(64, 3, 256, 256), compression="gzip")
        images[0] = 7
        file["YAll"] = np.eye(20015, 12, dtype=np.uint8)
    ((rows, total, tags, peak), (streamed, more)) = run_alone(environment, tmp_path / "x.h5", "stream")
    assert (rows, total, tags) == (20015, 7, 12)
    assert 20015 * 3 * 256 * 256 / 2**20 > 3700
    assert peak < 300
    assert (streamed, more < 200) == (64, True)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_compressed_matlab_5_is_not_decompressed_into_memory(tmp_path, environment):
    count = 3500
    values = {"YAll": np.eye(count, 12), "LAll": np.ones((count, 2))}
    scipy.io.savemat(tmp_path / "rest.mat", values)
    # Written in pieces, since scipy would hold several copies of the matrix.
    write_compressed_zeros(tmp_path / "images.mat", "IAll", (224, 224, 3, count))
    run = run_alone(environment, tmp_path)
    rows, total, tags, peak = run[0]
    assert (rows, total, tags) == (count, 0, 12)
    assert count * 224 * 224 * 3 / 2**20 > 500
    assert peak < 300


def write_compressed_zeros(path: Path, name: str, shape: tuple[int, ...]) -> None:
    import struct
    import zlib

    size = int(np.prod(shape))
    body = struct.pack("<4I", 6, 8, 9, 0)
    body += struct.pack("<2I", 5, 4 * len(shape)) + struct.pack(f"<{len(shape)}i", *shape)
    body += struct.pack("<2H4s", 1, 4, name.encode()) + struct.pack("<2I", 2, size)
    packer = zlib.compressobj(1)
    packed = packer.compress(struct.pack("<2I", 14, len(body) + size) + body)
    for start in range(0, size, 1 << 20):
        packed += packer.compress(bytes(min(1 << 20, size - start)))
    packed += packer.flush()
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + struct.pack("<2I", 15, len(packed)) + packed)


@pytest.mark.skipif(not HAS_DCMH, reason="CMFAH_DATA names no folder with data/mirflickr25k-dcmh")
def test_the_real_matrices_of_dcmh_without_images():
    sizes = {"queries": "first", "num_queries": 2000, "num_train": 10000}
    parts = load_image_text(DCMH, streaming=True, tag_names=DCMH / "TagList.txt", **sizes)
    first = next(iter(parts["query"]))
    tags = scipy.io.loadmat(DCMH / "mirflickr25k-yall.mat")["YAll"]
    names = (DCMH / "TagList.txt").read_text().split()
    assert tags.shape == (20015, 1386)
    assert first["tags"] == [names[column] for column in np.flatnonzero(tags[0])]
    labels = scipy.io.loadmat(DCMH / "mirflickr25k-lall.mat")["LAll"]
    assert first["labels"] == [f"class{column:02d}" for column in np.flatnonzero(labels[0])]
    assert next(iter(parts["train"]))["id"] == "2000"
    assert open_matrices(DCMH).labels.shape == (20015, 24)
