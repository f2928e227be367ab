"""Matrices as data sets: columns, research splits, refused input, and Parquet readable by `datasets` alone."""

import json
import logging
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import h5py
import numpy as np
import pytest
import scipy.io

from cmfah_hf.data import convert_matrices, load_image_text, open_matrices
from cmfah_hf.data.matrices.images import is_on_its_side
from cmfah_hf.errors import DataError
from cmfah_hf.training.data.shards import count_rows

COUNT = 12


@pytest.fixture
def arrays():
    rng = np.random.default_rng(3)
    tags = (rng.random((COUNT, 6)) < 0.4).astype(np.uint8)
    tags[5] = 0  # a pair without text
    return {
        "images": rng.integers(0, 256, (COUNT, 5, 4, 3), dtype=np.uint8),
        "tags": tags,
        "labels": (rng.random((COUNT, 3)) < 0.5).astype(np.uint8),
    }


@pytest.fixture
def file(tmp_path, arrays) -> Path:
    path = tmp_path / "all.h5"
    with h5py.File(path, "w") as file:
        file.update({"images": arrays["images"], "tags": arrays["tags"], "labels": arrays["labels"]})
    return path


TAG_NAMES = ["sky", "night", "explore", "sea", "new york", "2007"]
CLASS_NAMES = ["animals", "plant_life", "sea"]


def expected(arrays, row: int) -> dict:
    tags = [name for name, has in zip(TAG_NAMES, arrays["tags"][row], strict=True) if has]
    labels = [name for name, has in zip(CLASS_NAMES, arrays["labels"][row], strict=True) if has]
    return {"id": str(row), "text": " ".join(tags), "tags": tags, "labels": labels}


def check_rows(found, arrays, rows):
    found = list(found)
    assert [int(row["id"]) for row in found] == list(rows)
    for row, number in zip(found, rows, strict=True):
        assert {name: value for name, value in row.items() if name != "image"} == expected(arrays, number)
        np.testing.assert_array_equal(np.asarray(row["image"]), arrays["images"][number])


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("queries", "query", "train", "database"),
    [
        ("first", range(2), range(2, 7), range(2, 12)),  # as in DCMH and AGAH
        ("last", range(10, 12), range(5), range(10)),  # as in DADH and UCCH
    ],
)
def test_research_split(file, arrays, streaming, queries, query, train, database):
    names = {"tag_names": TAG_NAMES, "label_names": CLASS_NAMES}
    split = {"queries": queries, "num_queries": 2, "num_train": 5}
    parts = open_matrices(file, **names).to_dataset(streaming=streaming, **split)
    assert list(parts) == ["train", "query", "database"]
    for name, rows in (("query", query), ("train", train), ("database", database)):
        check_rows(parts[name], arrays, rows)
    part = load_image_text(file, split="database", streaming=streaming, **names, **split)
    check_rows(part, arrays, database)
    assert part.features["labels"] == datasets.List(datasets.Value("string"))


def test_names_from_lists_and_files(file, arrays, tmp_path):
    row = next(iter(open_matrices(file).to_dataset()))
    numbers = np.flatnonzero(arrays["tags"][0])
    assert row["tags"] == [f"tag{number:02d}" for number in numbers]
    assert row["labels"] == [f"class{number:02d}" for number in np.flatnonzero(arrays["labels"][0])]
    (tmp_path / "common_tags.txt").write_text("".join(f"{name} {9 - i}\n" for i, name in enumerate(TAG_NAMES)))
    (tmp_path / "classes.txt").write_text("animals\nplant_life\nsea\n")
    matrices = open_matrices(file, tag_names=tmp_path / "common_tags.txt", label_names=tmp_path / "classes.txt")
    assert (matrices.tag_names, matrices.label_names) == (TAG_NAMES, CLASS_NAMES)
    (tmp_path / "classes.txt").write_text("animals\nsea\nsea\n")
    with pytest.raises(DataError, match=r"classes.txt: 'sea' is the name of both 2 and 3"):
        open_matrices(file, label_names=tmp_path / "classes.txt")
    with pytest.raises(DataError, match="there are 2 names for 3 columns of labels"):
        open_matrices(file, label_names=["a", "b"])


@pytest.mark.parametrize(("first", "column"), [(1, True), (0, False)])
def test_one_column_of_class_numbers(tmp_path, arrays, first, column):
    numbers = np.arange(COUNT) % 3 + first
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.update({"tags": arrays["tags"], "category": numbers[:, None] if column else numbers})
    matrices = open_matrices(tmp_path / "x.h5", label_names=CLASS_NAMES)
    assert [row["labels"] for row in matrices.to_dataset()] == [[CLASS_NAMES[i % 3]] for i in range(COUNT)]
    assert open_matrices(tmp_path / "x.h5").label_names == [f"class{i + first:02d}" for i in range(3)]


def test_a_stream_is_split_among_workers_and_read_without_images(file, arrays):
    from torch.utils.data import DataLoader

    stream = load_image_text(file, split="train", streaming=True, images=False)
    assert "image" not in stream.column_names
    assert stream.num_shards == COUNT
    assert count_rows(stream) == [1] * COUNT
    loaded = [row["id"] for batch in DataLoader(stream, batch_size=2, num_workers=2, collate_fn=list) for row in batch]
    assert sorted(map(int, loaded)) == list(range(COUNT))


@pytest.mark.parametrize(("dtype", "scale"), [("f4", 1), ("f8", 1 / 255), ("i2", 1)])
def test_images_of_other_types(tmp_path, arrays, dtype, scale):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.update({"images": (arrays["images"] * scale).astype(dtype), "tags": arrays["tags"]})
    for row, image in zip(open_matrices(tmp_path / "x.h5").to_dataset(), arrays["images"], strict=True):
        np.testing.assert_array_equal(np.asarray(row["image"]), image)


def test_values_that_are_not_images(tmp_path, arrays):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.update({"images": arrays["images"].astype("f4") - 120, "tags": arrays["tags"]})
    with pytest.raises(DataError, match=r"images, row 0: values from -\d+ to \d+ are outside the range of images"):
        list(open_matrices(tmp_path / "x.h5").to_dataset())


def test_transposed_images_give_a_warning(tmp_path, caplog):
    """Light at the top, dark at the bottom, noise everywhere: 140 images, stored transposed."""
    rng = np.random.default_rng(0)
    images = np.linspace(200, 80, 16)[None, :, None, None] + rng.normal(0, 30, (140, 16, 16, 3))
    upright = images.clip(0, 255).astype(np.uint8)
    assert not is_on_its_side(upright.mean(axis=(0, 3)))
    assert is_on_its_side(upright.mean(axis=(0, 3)).T)
    assert not is_on_its_side(rng.normal(120, 30, (16, 16)))
    for name, stored in (("good", upright), ("turned", upright.transpose(0, 2, 1, 3))):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.update({"images": stored, "tags": np.ones((140, 3))})
    with caplog.at_level(logging.WARNING):
        next(iter(open_matrices(tmp_path / "good.h5").to_dataset()))
        assert not caplog.records
        next(iter(open_matrices(tmp_path / "turned.h5").to_dataset()))
        assert 'seem to lie on their side; if they do, give axes={"images": "NWHC"}' in caplog.text
        caplog.clear()
        row = next(iter(open_matrices(tmp_path / "turned.h5", axes={"images": "NWHC"}).to_dataset()))
    assert not caplog.records
    np.testing.assert_array_equal(np.asarray(row["image"]), upright[0])


ALONE = """
import json, sys
import datasets
loaded = datasets.load_dataset(sys.argv[1])
assert not any(name.startswith("cmfah") for name in sys.modules)
rows = {name: [row["id"] for row in part] for name, part in loaded.items()}
features = {name: type(feature).__name__ for name, feature in loaded["query"].features.items()}
first = loaded["query"][0]
names = loaded["query"].features["labels"].feature.names
print(json.dumps([rows, features, first["tags"], [names[i] for i in first["labels"]], first["image"].size]))
"""


def test_converted_matrices_open_without_this_package(file, arrays, tmp_path, environment):
    out = tmp_path / "out"
    done = convert_matrices(
        open_matrices(file, tag_names=TAG_NAMES, label_names=CLASS_NAMES), out, "last", 2, 5, rows_per_shard=2
    )
    assert done["splits"] == {"train": 5, "query": 2, "database": 10}
    files = sorted(path.name for path in (out / "data").iterdir())
    assert files == [
        "query-00000-of-00001.parquet",
        *(f"rest-{i:05d}-of-00003.parquet" for i in range(3)),
        *(f"train-{i:05d}-of-00003.parquet" for i in range(3)),
    ]
    environment.pop("PYTHONPATH")
    run = subprocess.run(
        [sys.executable, "-c", ALONE, str(out)],
        env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    rows, features, tags, labels, size = json.loads(run.stdout)
    assert rows == {"train": list("01234"), "query": ["10", "11"], "database": list("0123456789")}
    assert features == {"id": "Value", "image": "Image", "text": "Value", "tags": "List", "labels": "List"}
    assert (tags, labels) == (expected(arrays, 10)["tags"], expected(arrays, 10)["labels"])
    assert size == [4, 5]
    check_rows(load_image_text(out, split="query", streaming=True), arrays, [10, 11])
    with pytest.raises(DataError, match="holds a data set already"):
        convert_matrices(open_matrices(file), out)


def test_a_killed_conversion_resumes(file, arrays, tmp_path, environment):
    """Killed in the third shard: the first two are kept as they are, the third is rewritten."""
    out = tmp_path / "out"
    code = (
        "import sys, time\n"
        "from contextlib import contextmanager\n"
        "from cmfah_hf.data import convert_matrices, open_matrices\n"
        "from cmfah_hf.data.matrices import conversion\n"
        "begin = conversion.atomic_file\n"
        "@contextmanager\n"
        "def slow(path, error):\n"
        "    with begin(path, error) as temporary:\n"
        "        if path.name.startswith('train-00002'):\n"
        "            temporary.write_bytes(b'PAR1')\n"
        "            print('here', flush=True)\n"
        "            time.sleep(120)\n"
        "        yield temporary\n"
        "conversion.atomic_file = slow\n"
        "convert_matrices(open_matrices(sys.argv[1]), sys.argv[2], rows_per_shard=3)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(file), str(out)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert {path.suffix for path in (out / "data").glob(".*")} == {".tmp", ".lock"}
    kept = {path: path.stat().st_mtime_ns for path in (out / "data").glob("*.parquet")}
    assert len(kept) == 2
    assert not (out / "README.md").exists()
    with pytest.raises(DataError, match="unfinished conversion of other files or settings"):
        convert_matrices(open_matrices(file), out, rows_per_shard=4)
    reported = []
    convert_matrices(open_matrices(file), out, rows_per_shard=3, progress=reported.append)
    assert reported == [3, 3, 3, 3]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "data"]
    assert len(list((out / "data").iterdir())) == 4
    assert [row["id"] for row in load_image_text(out, split="train", streaming=True)] == [str(i) for i in range(COUNT)]


def write(tmp_path, values, name="x.h5", **options) -> Path:
    path = tmp_path / name
    if path.suffix == ".mat":
        scipy.io.savemat(path, values, **options)
    else:
        with h5py.File(path, "w") as file:
            file.update(values)
    return path


ONES = np.ones((4, 3))
TWO = np.ones((4, 2))
REFUSED = [
    ("x.mat", {"I_tr": ONES, "V": np.ones(2)}, r"holds no variable such as IAll.*I_tr \(double, 4 x 3\), V"),
    ("x.h5", {"I_tr": ONES}, r"x.h5: holds no variable .* present are: I_tr \(float64, 4 x 3\)"),
    ("x.mat", {"YAll": ONES, "LAll": np.ones((5, 2))}, r"rows do not agree: tags = YAll .* LAll .*5 x 2"),
    ("x.mat", {"YAll": np.ones((4, 4)), "LAll": TWO}, r'4 pairs fit ND and DN; name .* as axes=\{"tags": "ND"\}'),
    ("x.mat", {"YAll": ONES}, r"the number of pairs could be 3 or 4; name the axes"),
    (
        "x.mat",
        {"YAll": ONES, "LAll": np.array([["a"]], object)},
        r"LAll \(cell array, 1 x 1\) does not hold plain numbers",
    ),
    ("x.mat", {"YAll": "night", "LAll": TWO}, r"YAll \(char, 1 x 5\) does not hold plain numbers"),
    ("x.mat", {"YAll": ONES * 1j, "LAll": TWO}, r"YAll \(complex double, 4 x 3\)"),
    ("x.mat", {"YAll": np.ones((0, 3)), "LAll": TWO}, r"YAll \(double, 0 x 3\) is empty"),
    ("x.h5", {"YAll": ONES, "tags": ONES}, r"YAll of x.h5 and tags of x.h5 could both be the tags; name one"),
    (
        "x.h5",
        {"images": np.ones((4, 5, 5, 7)), "tags": ONES},
        r"no axis of 1 or 3 colors in any known layout",
    ),
    ("x.h5", {"tags": np.ones((4, 3, 2)), "labels": TWO}, r"tags \(float64, 4 x 3 x 2\) is no matrix"),
    ("x.h5", {"YAll/data": np.ones(3)}, r"YAll \(group\) does not hold plain numbers"),
]


@pytest.mark.parametrize(("name", "values", "message"), REFUSED)
def test_invalid_files_are_refused_when_opened(tmp_path, name, values, message):
    with pytest.raises(DataError, match=message) as error:
        open_matrices(write(tmp_path, values, name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("role", ["YAll", "LAll"])
@pytest.mark.parametrize("name", ["x.mat", "x.h5"])
def test_nan_in_tags_or_labels(tmp_path, value, role, name):
    values = {"YAll": np.ones((4, 3)), "LAll": np.ones((4, 2))}
    values[role][2, 1] = value
    matrices = open_matrices(write(tmp_path, values, name))
    with pytest.raises(DataError, match=f"{role}: holds NaN or infinite values"):
        list(matrices.to_dataset())


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_truncated_matlab_5(tmp_path, arrays, compressed, kept):
    values = {"YAll": arrays["tags"], "IAll": arrays["images"].transpose(1, 2, 3, 0)}
    content = write(tmp_path, values, "x.mat", do_compression=compressed).read_bytes()
    (tmp_path / "cut.mat").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataError, match=r"cut\.mat.*is cut short, fetch it again"):
        open_matrices(tmp_path / "cut.mat")


def test_damaged_compressed_values(tmp_path, arrays):
    values = {"YAll": arrays["tags"], "IAll": arrays["images"].transpose(1, 2, 3, 0)}
    path = write(tmp_path, values, "x.mat", do_compression=True)
    content = bytearray(path.read_bytes())
    content[-40:-20] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        list(open_matrices(path).to_dataset())


def test_files_that_are_not_matrices(tmp_path, file):
    content = file.read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: len(content) // 2])
    scipy.io.savemat(tmp_path / "four.mat", {"YAll": np.ones((3, 2))}, format="4")
    (tmp_path / "image.mat").write_bytes(b"\xff\xd8\xff\xe0 not one")
    (tmp_path / "empty.mat").write_bytes(b"")
    (tmp_path / "none").mkdir()
    for path, message in {
        "cut.h5": "not a readable HDF5 file .*truncated",
        "four.mat": "is a MATLAB 4 file; save it anew",
        "image.mat": "is neither a MATLAB 5 nor an HDF5 file",
        "empty.mat": "is neither a MATLAB 5 nor an HDF5 file",
        "gone.mat": "there is no such file",
        "none": "holds no .mat or .h5 or .hdf5 file",
    }.items():
        with pytest.raises(DataError, match=message) as error:
            open_matrices(tmp_path / path)
        assert str(tmp_path / path) in str(error.value)


def test_other_variable_names(tmp_path, arrays):
    values = {"I_all": arrays["images"], "T_all": arrays["tags"], "labels": arrays["labels"], "tags": np.ones((3, 3))}
    path = write(tmp_path, values)
    with pytest.raises(DataError, match="3 pairs fit ND and DN"):
        open_matrices(path)
    matrices = open_matrices(path, variables={"images": "I_all", "tags": "T_all"})
    np.testing.assert_array_equal(matrices.images[:], arrays["images"])
    np.testing.assert_array_equal(matrices.tags[:].toarray(), arrays["tags"])
    check = {
        "tags": ("nothing", "no variable is called 'nothing'; present are: I_all"),
        "words": ("tags", "the roles are"),
    }
    for role, (name, message) in check.items():
        with pytest.raises(DataError, match=message):
            open_matrices(path, variables={role: name})


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            {"queries": "middle", "num_queries": 1, "num_train": 1},
            "queries='middle' is not known",
        ),
        ({"queries": "first"}, "give num_queries and num_train"),
        ({"num_queries": 3}, "without the position of the queries"),
        (
            {"queries": "last", "num_queries": 8, "num_train": 5},
            "8 queries and 5 training pairs are more than the 12 rows",
        ),
    ],
)
def test_invalid_splits(file, split, message):
    with pytest.raises(DataError, match=message):
        load_image_text(file, streaming=True, **split)


def test_arguments_that_matrices_do_not_accept(file, tmp_path, arrays):
    with pytest.raises(DataError, match="matrices have no columns to name"):
        load_image_text(file, text_column="tags")
    with pytest.raises(DataError, match="matrices do not accept revision"):
        load_image_text(file, revision="main")
    with pytest.raises(DataError, match="there are no tags, so the pairs have no text"):
        open_matrices(write(tmp_path, {"images": arrays["images"], "labels": arrays["labels"]})).to_dataset()


def test_a_folder_of_matrices_is_recognized_and_an_image_folder_is_not(file, make_folder):
    from cmfah_hf.data.loading import is_data_set

    assert is_data_set(file.parent)
    images = make_folder([{"file_name": "a.png"}], "mere")
    (images / "metadata.jsonl").unlink()
    (images / "features.mat").write_bytes(file.read_bytes())
    assert not is_data_set(images)


def test_changing_the_working_folder_changes_nothing(file, arrays, monkeypatch):
    monkeypatch.chdir(file.parent)
    stream = load_image_text(file.name, split="train", streaming=True, tag_names=TAG_NAMES, label_names=CLASS_NAMES)
    monkeypatch.chdir("/")
    check_rows(stream, arrays, range(COUNT))
