"""`cmfah data convert`: output, written files, and refused input."""

import datasets
import h5py
import numpy as np
import pytest
import scipy.io


@pytest.fixture
def files(tmp_path):
    """Images in one file, tags and labels in two others, and a list of tags."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 5, 4, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "small-iall.mat", "w") as file:
        file["IAll"] = images.transpose(0, 3, 2, 1)
    scipy.io.savemat(tmp_path / "small-yall.mat", {"YAll": np.eye(8, 3)})
    scipy.io.savemat(tmp_path / "small-lall.mat", {"L": np.ones((8, 2))})
    (tmp_path / "tags.txt").write_text("sky 30\nnight 20\nsea 9\n")
    return images, sorted(tmp_path.glob("*.mat"))


def test_convert(cmfah, files, tmp_path):
    images, paths = files
    options = ["--queries", "last", "--num-queries", 2, "--num-train", 3, "--tag-names", tmp_path / "tags.txt"]
    options += ["--axes", "images=NCWH", "--variable", "labels=L", "--out", tmp_path / "out"]
    outcome = cmfah("data", "convert", *paths, *options, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.document["splits"] == {"train": 3, "query": 2, "database": 6}
    assert outcome.document["queries"] == "last"
    loaded = datasets.load_dataset(str(tmp_path / "out"))
    np.testing.assert_array_equal(np.asarray(loaded["query"][1]["image"]), images[7])
    assert loaded["train"]["tags"][:] == [["sky"], ["night"], ["sea"]]
    assert loaded["train"].features["labels"].feature.names == ["class00", "class01"]

    outcome = cmfah("data", "convert", *paths, *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert "holds a data set already" in outcome.err
    outcome = cmfah("data", "convert", tmp_path, "--variable", "labels=L", "--out", tmp_path / "all", "--no-images")
    assert outcome.code == 0, outcome.err
    assert "read as N x D, of small-yall.mat" in outcome.out
    assert set(datasets.load_dataset(str(tmp_path / "all"), split="train").column_names) == {
        "id",
        "text",
        "tags",
        "labels",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--axes", "NCWH"], "--axes NCWH: write it as role=value"),
        (["--queries", "first"], "give num_queries and num_train"),
        (["--axes", "tags=NDD"], "the axes 'NDD' do not fit tags"),
    ],
)
def test_refused_input_of_convert(cmfah, files, tmp_path, options, message):
    outcome = cmfah("data", "convert", *files[1], "--out", tmp_path / "out", *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
