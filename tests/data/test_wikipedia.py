"""The Wikipedia release: a small one of the same form, against the arrays it was written from, and the real one."""

import os
import zipfile
from pathlib import Path

import datasets
import h5py
import numpy as np
import pytest
import scipy.io

from cmfah_hf.cli import main
from cmfah_hf.data import encode_labels, load_image_text
from cmfah_hf.data.loading import is_data_set
from cmfah_hf.data.releases.wikipedia import WikipediaRelease, prepare_wikipedia
from cmfah_hf.data.sources import wikipedia
from cmfah_hf.errors import DataError

LISTS = {"train": "trainset_txt_img_cat.list", "query": "testset_txt_img_cat.list"}
VARIABLES = {"train": ("I_tr", "T_tr"), "query": ("I_te", "T_te")}
REAL = Path(os.environ.get("CMFAH_DATA", "")) / "data" / "wikipedia-rasiwasia"
HAS_REAL = bool(os.environ.get("CMFAH_DATA")) and REAL.is_dir()
COLUMNS = ["id", "text", "labels", "tags", "image_features", "text_features"]


@pytest.fixture
def small(replicas, tmp_path):
    return replicas.make_wikipedia(tmp_path / "release")


@pytest.mark.parametrize("streaming", [False, True])
def test_the_release_and_its_prepared_form_give_the_same_rows(small, tmp_path, streaming):
    report = prepare_wikipedia(small.root, tmp_path / "out", release=small.release)
    assert (report.rows, report.classes, report.label_ones) == ({"train": 12, "query": 5}, 3, 17)
    for source in (small.root, tmp_path / "out"):
        parts = load_image_text(source, streaming=streaming)
        assert list(parts) == ["train", "query"]
        for split, part in parts.items():
            assert list(part.features) == COLUMNS
            assert list(part) == small.expected(split)
        query = load_image_text(source, split="query", streaming=streaming)
        assert list(query) == small.expected("query")
        assert query.features["image_features"] == datasets.List(datasets.Value("float32"))
    assert is_data_set(small.root)


def test_datasets_alone_reads_the_prepared_form(small, tmp_path):
    prepare_wikipedia(small.root, tmp_path / "out", release=small.release)
    parts = datasets.load_dataset(str(tmp_path / "out"))
    assert list(parts) == ["train", "query"]
    assert parts["query"].features["labels"].feature.names == small.class_names
    assert parts["query"]["labels"][:] == [[int(line[2]) - 1] for line in small.lines["query"]]
    rows = parts["train"].with_format("numpy")
    np.testing.assert_array_equal(rows["text_features"][:], small.arrays["T_tr"].astype(np.float32))
    card = (tmp_path / "out" / "README.md").read_text()
    for line in (
        "Queries are searched in `train`",
        "6 features of each image, 4 topics",
        "prepare wikipedia --root",
    ):
        assert line in card
    assert str(tmp_path) not in card


def test_a_release_in_an_archive_and_of_another_matlab_version(small, tmp_path):
    files = sorted(small.root.iterdir())
    expected = prepare_wikipedia(small.root, None, release=small.release)
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "wikipedia_dataset.zip", "w") as archive:
        for file in files:
            archive.write(file, f"wikipedia_dataset/{file.name}")
    assert prepare_wikipedia(tmp_path / "zipped", None, release=small.release) == expected
    with h5py.File(small.root / "raw_features.mat", "w") as file:
        for name, value in small.arrays.items():
            file[name] = value.T  # MATLAB 7.3 stores the axes in reverse
            file[name].attrs["MATLAB_class"] = np.bytes_(b"double")
    assert prepare_wikipedia(small.root, None, release=small.release) == expected
    assert list(load_image_text(small.root, split="train", streaming=True)) == small.expected("train")


def test_a_changed_release_is_read_again(small):
    assert list(load_image_text(small.root, split="query")) == small.expected("query")
    stream = load_image_text(small.root, split="query", streaming=True)
    small.arrays["I_te"] = small.arrays["I_te"][::-1]
    small.write_arrays()
    assert list(load_image_text(small.root, split="query")) == small.expected("query")
    wikipedia._opened.cache_clear()  # another process
    with pytest.raises(DataError, match="was changed since it was loaded; load it again"):
        list(stream)


def spoiled(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array[4, 1] = value
    return array


def spoil_line(split: str, row: int, line: list[str]):
    def change(small) -> None:
        small.lines[split][row] = line
        small.write_list(split, small.lines[split])

    return change


def cut_mat(small) -> None:
    file = small.root / "raw_features.mat"
    file.write_bytes(file.read_bytes()[:-200])


def damage_mat(small) -> None:
    file = small.root / "raw_features.mat"
    content = bytearray(file.read_bytes())
    content[300:330] = bytes(30)
    file.write_bytes(content)


DEFECTS = {
    "no features": (lambda s: (s.root / "raw_features.mat").unlink(), r"raw_features\.mat \(the features\) is missing"),
    "no training list": (
        lambda s: (s.root / LISTS["train"]).unlink(),
        r"trainset_txt_img_cat\.list \(the articles of train\) is missing.*present are: ",
    ),
    "no query list": (lambda s: (s.root / LISTS["query"]).unlink(), r"testset_txt_img_cat\.list .* is missing"),
    "no classes": (lambda s: (s.root / "categories.list").unlink(), r"categories\.list .* is missing"),
    "a repeated class": (
        lambda s: (s.root / "categories.list").write_text("art\nart\nsport\n"),
        r"categories\.list: a class occurs twice; fetch it again",
    ),
    "another number of rows": (
        lambda s: s.write_arrays(I_tr=s.arrays["I_tr"][:-1]),
        r"trainset_txt_img_cat\.list: 12 articles, and I_tr of .*raw_features\.mat has 11 rows; fetch both",
    ),
    "turned features": (
        lambda s: s.write_arrays(T_te=s.arrays["T_te"].T),
        r"testset_txt_img_cat\.list: 5 articles, and T_te of .*raw_features\.mat has 4 rows",
    ),
    "an empty list": (lambda s: s.write_list("query", []), r"testset_txt_img_cat\.list: holds no articles"),
    "a class too many": (
        spoil_line("train", 2, ["a", "b", "4"]),
        r"trainset_txt_img_cat\.list, line 3: '4' is not the number of a class \(1 to 3\); fetch the file again",
    ),
    "class zero": (
        spoil_line("query", 0, ["a", "b", "0"]),
        r"testset_txt_img_cat\.list, line 1: '0' is not the number",
    ),
    "no class": (spoil_line("query", 1, ["a", "b"]), r"testset_txt_img_cat\.list, line 2: 'a\\tb' is not the id of"),
    "a repeated article": (
        spoil_line("query", 1, ["train03-1.3", "b", "1"]),
        r"trainset_txt_img_cat\.list and .*testset_txt_img_cat\.list: the text 'train03-1\.3' occurs twice",
    ),
    "NaN": (
        lambda s: s.write_arrays(T_te=spoiled(s.arrays["T_te"], np.nan)),
        r"raw_features\.mat: T_te has NaN or infinite values in 1 rows, first in row 4 \(from 0\); fetch",
    ),
    "too large": (
        lambda s: s.write_arrays(I_tr=spoiled(s.arrays["I_tr"], 1e300)),
        r"raw_features\.mat: I_tr has NaN or infinite values",
    ),
    "a missing variable": (
        lambda s: s.write_arrays(T_tr=None),
        r"raw_features\.mat: holds no variable T_tr; present are: I_tr \(double, 12 x 6\)",
    ),
    "text in place of numbers": (
        lambda s: s.write_arrays(T_tr="topics"),
        r"raw_features\.mat: T_tr \(char, 1 x 6\) does not hold plain numbers",
    ),
    "different widths": (
        lambda s: s.write_arrays(I_te=s.arrays["I_te"][:, :5]),
        r"raw_features\.mat: I_tr and I_te have different widths; fetch the file again",
    ),
    "a file cut short": (cut_mat, r"raw_features\.mat: .*is cut short, fetch it again"),
    "a damaged file": (damage_mat, r"raw_features\.mat.*damaged.*fetch"),
    "no MATLAB file": (
        lambda s: (s.root / "raw_features.mat").write_text("<html>404"),
        r"raw_features\.mat: is neither a MATLAB 5 nor an HDF5 file",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_are_named(small, tmp_path, defect):
    change, message = DEFECTS[defect]
    change(small)
    for read in (
        lambda: prepare_wikipedia(small.root, tmp_path / "out", release=small.release),
        lambda: load_image_text(small.root),
        lambda: load_image_text(small.root, streaming=True),
    ):
        with pytest.raises(DataError, match=message) as caught:
            read()
        assert "\n" not in str(caught.value)
        assert str(small.root) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_other_counts_need_permission(small, tmp_path):
    with pytest.raises(DataError, match=r"categories\.list: 3 classes instead of 10; .*--allow-other-counts"):
        prepare_wikipedia(small.root, None)
    for changed, what in {"rows": "articles", "image_features": "features of an image"}.items():
        other = {"rows": (12, 6)} if changed == "rows" else {changed: 128}
        with pytest.raises(DataError, match=rf"\d {what} instead of (6|128)"):
            prepare_wikipedia(small.root, None, release=WikipediaRelease(**{**vars(small.release), **other}))
    report = prepare_wikipedia(small.root, tmp_path / "out", allow_other_counts=True)
    assert len(report.corrections) == 5
    assert "--allow-other-counts" in (tmp_path / "out" / "README.md").read_text()
    assert load_image_text(tmp_path / "out")["train"].num_rows == 12


def test_arguments_that_the_release_does_not_accept(small):
    with pytest.raises(DataError, match="this release has no columns to name"):
        load_image_text(small.root, text_column="tags")
    with pytest.raises(DataError, match=r"release: this release does not accept queries; leave it out"):
        load_image_text(small.root, queries="first")
    with pytest.raises(DataError, match="there is no split 'database'; present are: train, query"):
        load_image_text(small.root, split="database", streaming=True)


def test_the_command(small, tmp_path, capsys):
    def run(*arguments) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(["data", "prepare", "wikipedia", "--root", str(small.root), *map(str, arguments)])
        return (left.value.code or 0, *capsys.readouterr())

    code, out, _ = run("--out", tmp_path / "out", "--allow-other-counts")
    assert code == 0
    assert "3 classes, 17 labels, 51 tags, 0 empty texts" in out
    assert list(load_image_text(tmp_path / "out", split="train")) == small.expected("train")
    code, _, err = run("--out", tmp_path / "out", "--allow-other-counts")
    assert (code, "holds a data set already" in err) == (2, True)
    for options in (("--seed", 0), ("--split", "paper"), ("--queries", 5), ("--skip-missing",)):
        code, _, err = run("--check-only", *options)
        assert (code, f"{options[0]} is not for wikipedia" in err) == (2, True)
    assert run("--check-only")[0] == 2  # its counts are not those of the release


@pytest.mark.skipif(not HAS_REAL, reason="CMFAH_DATA names no folder with data/wikipedia-rasiwasia")
def test_the_real_release(tmp_path):
    report = prepare_wikipedia(REAL, tmp_path / "out")
    assert (report.rows, report.corrections) == ({"train": 2173, "query": 693}, [])
    parts = load_image_text(REAL)
    names = (REAL / "categories.list").read_text().split()
    counts = {
        "train": [138, 272, 244, 248, 202, 178, 186, 144, 214, 347],
        "query": [34, 88, 96, 85, 65, 58, 51, 41, 71, 104],
    }
    real = scipy.io.loadmat(REAL / "raw_features.mat")
    for split, part in parts.items():
        assert list(part) == list(load_image_text(tmp_path / "out", split=split))
        assert encode_labels(part["labels"], names, unknown="error").sum(0).tolist() == counts[split]
        rows = part.with_format("numpy")
        for column, variable in zip(("image_features", "text_features"), VARIABLES[split], strict=True):
            np.testing.assert_array_equal(rows[column][:], real[variable].astype(np.float32))
    first = parts["train"][0]
    assert (first["id"], first["labels"]) == ("b3150b0c281960b6a6d33407824fd40a-3", ["media"])
    assert first["image_features"][0] == pytest.approx(0.03732304)
    assert first["text_features"][3] == pytest.approx(0.0854894)
