"""Metadata files: errors of one line before any image is opened; and writing of folders."""

import json

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cmfah_hf.data import load_image_text, make_scenes, write_imagefolder
from cmfah_hf.errors import DataError, ImageError

PAIR = {"file_name": "a.png", "text": "a dog", "labels": ["dog"]}


def lines(*rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


BAD_JSON_LINES = {
    "malformed": (lines(PAIR, '{"file_name": "b.png", "text": "x"'), "line 2 is not valid JSON"),
    "not an object": (lines(PAIR, "[1, 2]"), "line 2 is a list; write one JSON object per line"),
    "no file name": (lines(PAIR, "", {"text": "x"}), "line 3: there is no 'file_name'"),
    "file name of another kind": (lines({"file_name": 7, "text": "x"}), "line 1: 'file_name' is 7"),
    "missing image": (lines(PAIR, {"file_name": "gone.png"}), r"line 2: the image .*gone\.png does not exist"),
    "missing folder": (lines(PAIR, {"file_name": "x/y.png"}), r"line 2: the image .*x/y\.png does not exist"),
    "outside": (lines({"file_name": "../a.png"}), r"line 1: 'file_name' '\.\./a\.png' leads outside"),
    "absolute": (lines({"file_name": "/etc/passwd"}), "line 1: 'file_name' '/etc/passwd' leads outside"),
    "address": (lines({"file_name": "file:///etc/passwd"}), "line 1: .* leads outside"),
    "same image twice": (lines(PAIR, {"file_name": "b.png"}, PAIR), r"lines 1 and 3 have the same id 'a\.png'"),
    "same id twice": (
        lines(PAIR | {"id": 4}, {"file_name": "b.png", "id": "4"}),
        "lines 1 and 2 have the same id '4'; make the column 'id' unique",
    ),
    "text of no use": (lines(PAIR, {"file_name": "b.png", "text": {"en": "x"}}), "line 2: a text must be a string"),
    "labels of no use": (lines(PAIR, {"file_name": "b.png", "labels": [["x"]]}), "line 2: labels must be names"),
    "mixed column": (lines(PAIR | {"n": 1}, {"file_name": "b.png", "n": "x"}), "column 'n' mixes kinds of values"),
    "no text": (lines({"file_name": "a.png", "words": "x"}), "no column looks like the text.*: file_name, words"),
    "empty": ("\n", "holds no rows"),
}


@pytest.mark.parametrize("case", BAD_JSON_LINES)
@pytest.mark.parametrize("streaming", [False, True])
def test_bad_json_lines(case, streaming, make_folder, monkeypatch):
    content, message = BAD_JSON_LINES[case]
    folder = make_folder(content, images=["a.png", "b.png"])
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: pytest.fail("opened an image"))
    with pytest.raises(DataError, match=message) as caught:
        load_image_text(folder, streaming=streaming)
    assert str(caught.value).startswith(str(folder / "metadata.jsonl"))
    assert "\n" not in str(caught.value)


def test_all_missing_images_are_counted(make_folder):
    folder = make_folder(lines(PAIR, {"file_name": "x.png"}, {"file_name": "y.png"}), images=["a.png"])
    with pytest.raises(DataError, match=r"line 2: .*x\.png does not exist.*\(1 more lines name missing files\)"):
        load_image_text(folder)


BAD_CSV = {
    "no column": ("name,text\na.png,x\n", r"no column 'file_name' \(present are: name, text\)"),
    "no file name": ("file_name,text\na.png,x\n,y\n", "line 3: there is no 'file_name'"),
    "unquoted comma": ("file_name,text\na.png,x, y\n", "line 2: more cells than the 2 columns"),
    "open quote": ('file_name,text\na.png,"x\n', "line 2: not valid CSV"),
    "missing image": ('file_name,text\na.png,"two\nlines"\ngone.png,y\n', r"line 4: the image .*gone\.png"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv(case, make_folder):
    content, message = BAD_CSV[case]
    folder = make_folder(content, name="metadata.csv", images=["a.png"])
    with pytest.raises(DataError, match=message) as caught:
        load_image_text(folder)
    assert str(caught.value).startswith(str(folder / "metadata.csv"))


def test_metadata_that_is_not_utf8(make_folder):
    folder = make_folder([PAIR])
    (folder / "metadata.jsonl").write_bytes('{"file_name": "a.png", "text": "caf\xe9"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"metadata\.jsonl: is not UTF-8"):
        load_image_text(folder)


def test_ambiguous_folders_are_refused(make_folder, tmp_path):
    make_folder([PAIR], "two")
    make_folder("file_name,text\n", "two", "metadata.csv", [])
    with pytest.raises(DataError, match=r"holds both metadata\.jsonl and metadata\.csv"):
        load_image_text(tmp_path / "two")
    make_folder([PAIR], "nested")
    make_folder([PAIR], "nested/train")
    with pytest.raises(DataError, match="metadata of its own and in train/"):
        load_image_text(tmp_path / "nested")
    make_folder([PAIR], "half/train")
    (tmp_path / "half" / "query").mkdir()
    with pytest.raises(DataError, match=r"query: this split has no metadata; write a metadata\.jsonl"):
        load_image_text(tmp_path / "half")
    make_folder([PAIR], "odd/my-split")
    with pytest.raises(DataError, match="odd: 'my-split' cannot be a split's name"):
        load_image_text(tmp_path / "odd")


def test_rows_without_labels_texts_or_boxes(make_folder):
    rows = [
        {"file_name": "a.png", "text": "x", "labels": []},
        {"file_name": "b.png"},
        {"file_name": "c.png", "text": "", "labels": None, "boxes": [{"label": "x", "box": [1, 2]}]},
        {"file_name": "d.png", "text": [], "labels": ["x", "x", " y ", ""], "boxes": [{"label": "y"}]},
    ]
    loaded = load_image_text(make_folder(rows), split="train")
    assert loaded["text"][:] == ["x", "", "", ""]
    assert loaded["labels"][:] == [[], [], [], ["x", "y"]]
    assert loaded["boxes"][:] == [None, None, [{"label": "x", "box": [1, 2]}], [{"label": "y", "box": None}]]


def test_types_are_inferred_from_the_whole_file(make_folder, monkeypatch):
    monkeypatch.setattr("cmfah_hf.data.sources.metadata._PIECE", 2)
    numbers = [None, None, 1, 2, 2.5, None, None]
    rows = [{"file_name": f"{i}.png", "text": "x", "n": n, "many": [] if i < 5 else [i]} for i, n in enumerate(numbers)]
    loaded = load_image_text(make_folder(rows), split="train")
    assert loaded["n"][:] == numbers
    assert loaded["many"][:] == [[]] * 5 + [[5], [6]]


def test_backslashes_and_dots_in_file_names(make_folder):
    folder = make_folder(
        lines({"file_name": "sub\\a.png", "text": "x"}, {"file_name": "./b.png"}), images=["sub/a.png", "b.png"]
    )
    loaded = load_image_text(folder, split="train")
    assert loaded["id"][:] == ["sub/a.png", "b.png"]
    assert loaded[1]["image"].size == (6, 4)


@pytest.mark.parametrize("streaming", [False, True])
def test_scenes_written_and_read_back_are_equal(streaming, tmp_path, rows_of):
    scenes = datasets.DatasetDict(train=make_scenes(5, image_size=40), query=make_scenes(3, image_size=40, start=50))
    write_imagefolder(scenes, tmp_path / "out")
    assert (tmp_path / "out" / "query" / "scene-000050.png").is_file()
    loaded = load_image_text(tmp_path / "out", streaming=streaming)
    assert list(loaded) == ["train", "query"]
    for name, part in scenes.items():
        assert loaded[name].features == part.features
        assert rows_of(loaded[name]) == rows_of(part)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.text(max_size=12), st.text(max_size=30), st.lists(st.text(min_size=1, max_size=8), max_size=3)),
        min_size=1,
        max_size=5,
        unique_by=lambda row: row[0],
    )
)
def test_any_ids_texts_and_labels_survive_writing(tmp_path_factory, rows):
    """Ids may contain slashes, differ only by case or have characters invalid in file names; texts may be any."""
    rows = [
        (f"x{name}", text, list(dict.fromkeys(s.strip() for s in labels if s.strip()))) for name, text, labels in rows
    ]
    rows = [row for row in rows if not any("\ud800" <= c <= "\udfff" for c in repr(row))]
    columns = {
        "id": [row[0] for row in rows],
        "image": [Image.new("RGB", (2, 2), (i, 0, 0)) for i in range(len(rows))],
        "text": [row[1] for row in rows],
        "labels": [row[2] for row in rows],
    }
    text = datasets.Value("string")
    features = datasets.Features({"id": text, "image": datasets.Image(), "text": text, "labels": datasets.List(text)})
    folder = tmp_path_factory.mktemp("any")
    write_imagefolder(datasets.Dataset.from_dict(columns, features=features), folder)
    loaded = list(load_image_text(folder, split="train", streaming=True))
    assert [(row["id"], row["text"], row["labels"]) for row in loaded] == rows
    assert [row["image"].getpixel((0, 0))[0] for row in loaded] == list(range(len(rows)))


def test_writing_keeps_pixels_of_every_mode(tmp_path):
    modes = ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"]
    images = [
        Image.new("L", (4, 4), 77).convert(mode) if mode != "I;16" else Image.new(mode, (4, 4), 30000) for mode in modes
    ]
    paths = []
    for i, image in enumerate(images):
        paths.append(str(tmp_path / f"{i}.tif"))
        image.save(paths[-1])
    data = datasets.Dataset.from_dict({"id": modes, "image": paths, "text": modes}).cast_column(
        "image", datasets.Image()
    )
    write_imagefolder(data, tmp_path / "out")
    loaded = load_image_text(tmp_path / "out", split="train")
    for before, after in zip(images[:-1], loaded, strict=False):
        assert after["image"].tobytes() == before.tobytes(), after["id"]
    assert loaded[-1]["image"].mode == "RGB"


def test_a_failed_or_repeated_write_leaves_no_wrong_metadata(tmp_path):
    data = datasets.Dataset.from_dict({"id": ["a"], "image": [str(tmp_path / "gone.png")], "text": ["x"]})
    data = data.cast_column("image", datasets.Image())
    with pytest.raises(ImageError, match=r"row 0 \(a\).*no such file"):
        write_imagefolder(data, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    write_imagefolder(make_scenes(1, image_size=32), tmp_path / "out")
    with pytest.raises(DataError, match="exists already"):
        write_imagefolder(make_scenes(2, image_size=32), tmp_path / "out")
    assert len(load_image_text(tmp_path / "out", split="train")) == 1
