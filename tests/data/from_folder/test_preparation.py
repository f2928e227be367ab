"""Tables, layouts, held-out queries, and what is written."""

import json
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import image_file

from cmfah_hf.data import load_image_text, prepare_folder
from cmfah_hf.data.from_folder.held_out import hold_out
from cmfah_hf.data.from_folder.layout import find_layout
from cmfah_hf.data.from_folder.tables import TableRequest, read_table
from cmfah_hf.data.images import files as files_module
from cmfah_hf.errors import DataError

IMAGES = ["a.jpg", "sub/b.jpg", "sub/c.jpg", "other/c.jpg", "000123.png", "größe.jpg"]
TABLES = {
    "x.csv": "file;caption;label\na.jpg;a dog;dog|sea\nb.jpg;b;\n",
    "x.tsv": "image\ttext\na.jpg\ta dog\nsub\\b.jpg\tb\n",
    "comma.csv": '"filename", "comment"\n"./a.jpg", "a dog"\n"/data/images/sub/b.jpg", "b"\n',
    "bar.csv": "image_name|caption\na.jpg|a dog\na.jpg|one more\nsub/b.jpg|b\n",
    "x.json": json.dumps([{"name": "a", "text": "a dog"}, {"name": "sub/b.jpg", "text": "b"}]),
    "by-name.json": json.dumps({"a.jpg": "a dog", "b": {"text": "b"}}),
    "x.jsonl": '{"file_name": "a.jpg", "text": "a dog"}\n\n{"file_name": "b.jpg", "text": ["b"]}\n',
    "coco.json": json.dumps(
        {
            "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
            "annotations": [
                {"image_id": 7, "caption": "a dog"}, {"image_id": 8, "caption": "b"},
                {"image_id": 7, "category_id": 1},
            ],
            "categories": [{"id": 1, "name": "dog"}],
        }
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables(tmp_path, name):
    (tmp_path / name).write_text(TABLES[name], encoding="utf-8")
    text = "comment" if name == "comma.csv" else None
    found = read_table(TableRequest(tmp_path / name, text=text), IMAGES)
    captions = {image: own.captions for image, own in found.by_image.items()}
    assert captions == {"a.jpg": ("a dog", "one more") if name == "bar.csv" else ("a dog",), "sub/b.jpg": ("b",)}
    expected = {"x.csv": ("dog", "sea"), "coco.json": ("dog",)}.get(name, ())
    assert found.by_image["a.jpg"].labels == expected
    assert (found.without_image, found.ambiguous) == (0, 0)


def test_further_columns_of_a_table_are_kept(tmp_path, datasets_cache):
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(image_file("jpg", number))
    header = "ID,file,text,genre,year,price,code,big,place,category,"
    rows = [
        f"{number}x,{number}.jpg,a dog {number},sea,{1990 + number},{number}.5,00{number},{10**19 + number},Rome,art,u"
        for number in range(4)
    ]
    rows.append("4x,4.jpg,a dog 4,land,,2,004,5,,art,")
    rows.append("4y,4.jpg,the dog 4,land,2000,2,004,5,,art,")
    table = tmp_path / "t.csv"
    table.write_text("\n".join([header, *rows]))
    report = prepare_folder(tmp_path, table=TableRequest(table, labels="genre"), queries=0.3)
    names = ["original_ID", "year", "price", "code", "big", "place", "category", "column_8"]
    assert list(report.table_columns.values()) == names
    assert report.problems == {"table rows with other values for an image": 1}
    loaded = load_image_text(tmp_path)
    rows = {row["id"]: row for part in loaded.values() for row in part}
    kept = {name: rows["2.jpg"][name] for name in names}
    assert list(kept.values()) == ["2x", 1992, 2.5, "002", str(10**19 + 2), "Rome", "art", "u"]
    assert [rows["4.jpg"][name] for name in names] == ["4x", 2000, 2.0, "004", "5", None, "art", None]
    assert (rows["4.jpg"]["labels"], rows["4.jpg"]["captions"]) == (["land"], ["a dog 4", "the dog 4"])
    assert [rows["5.jpg"][name] for name in names] == [None] * 8
    assert prepare_folder(tmp_path).unchanged  # with the table of the first time

    table.write_text("file,text,id,original_id\n1.jpg,a,1,2\n")
    with pytest.raises(DataError, match=r"t\.csv: the columns 'id' and 'original_id' collide; rename one"):
        prepare_folder(tmp_path, table=TableRequest(table))
    documents = [{"file": "1.jpg", "text": "a", "n": 1, "boxes": [[1]], "is": True, "mixed": 3, "keywords": "own"}]
    documents.append({"file": "2.jpg", "text": "b", "n": 2.5, "is": False, "mixed": "x"})
    (tmp_path / "t.json").write_text(json.dumps(documents))
    (tmp_path / "1.json").write_text(json.dumps({"keywords": ["other"]}))
    report = prepare_folder(tmp_path, table=TableRequest(tmp_path / "t.json"), queries=0, overwrite=True)
    assert report.problems == {"table columns of lists or objects": 1}
    row = load_image_text(tmp_path, split="train")[1]
    assert [row[name] for name in ("n", "is", "mixed", "keywords")] == [1.0, True, "3", "own"]


def test_rows_that_fit_no_image_or_several_are_counted(tmp_path):
    rows = [
        "c.jpg,which",
        "other/c.jpg,this",
        "absent.jpg,none",
        "123,none",
        "000123,number",
        "gro\u0308\u00dfe.jpg,mac",
        ",",
    ]
    text = "\n".join(["file,text", *rows])
    (tmp_path / "x.csv").write_text(text, encoding="utf-8")
    found = read_table(TableRequest(tmp_path / "x.csv"), IMAGES)
    assert set(found.by_image) == {"other/c.jpg", "000123.png", "größe.jpg"}
    assert (found.without_image, found.ambiguous) == (3, 1)
    assert found.named[0].endswith("x.csv, row 1: the image 'c.jpg' fits 2 images.")


@pytest.mark.parametrize(
    ("name", "text", "request_", "message"),
    [
        ("x.csv", "Bild;Wort\na;b\n", {}, "like the image .* present are: Bild, Wort. Name it with --image-column"),
        ("x.csv", "Bild,Wort\na,b\n", {"image": "Bild"}, "no column looks like the text .* present are: Bild, Wort"),
        ("x.csv", "file,Wort\na,b\n", {"text": "Text"}, "no column 'Text' for the text; present are: file, Wort"),
        ("x.csv", "file,text\na,b\n", {"labels": "x"}, "no column 'x' for the label; present are: file, text"),
        ("x.csv", "", {}, "no column looks like the image .* present are: none"),
        ("x.csv", "file,text\na,b,c\n", {}, "line 2: more cells than the 2 columns"),
        ("x.csv", "file,file\na,b\n", {}, "two columns are named 'file'"),
        ("x.csv", 'file,text\na,"b\n', {}, "not valid CSV"),
        ("x.json", "3", {}, "is a int; write a list of objects"),
        ("x.json", "[3]", {}, "holds a int in the place of its rows"),
        ("x.json", "[null]", {}, "holds a NoneType in the place of its rows"),
        ("x.json", '{"images": [], "annotations": [3]}', {}, "holds a int in the place of its rows"),
        ("x.json", "{", {}, "is not valid JSON"),
        ("x.jsonl", "{}\n{\n", {}, "line 2 is not valid JSON"),
        ("x.xls", "x", {}, "is no table that is read"),
        ("absent.csv", None, {}, "does not exist"),
    ],
)  # fmt: skip
def test_bad_tables(tmp_path, name, text, request_, message):
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_table(TableRequest(tmp_path / name, **request_), IMAGES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "labels", "splits"),
    [
        (["dog/1", "dog/2", "cat/1", "cat/2"], ["dog", "dog", "cat", "cat"], ""),
        (["train/a/1", "train/b/1", "test/a/2", "Val/b/2"], ["a", "b", "a", "b"], "train train query validation"),
        (["train/1", "test/2"], "", "train query"),
        (["train/1", "train/2"], "", ""),  # one split is none
        (["train/1", "test/2", "3"], "", ""),
        (["2023/1", "2023/2", "2024/1", "2024/2"], "", ""),
        (["2023-05 Rome/1", "2023-05 Rome/2", "2024-01/1", "2024-01/2"], "", ""),
        (["100CANON/1", "100CANON/2", "DCIM/1", "dog/1"], "", ""),
        (["dog/1", "cat/2", "boat/3"], "", ""),  # one image each
        (["dog/1", "dog/2", "dog/3"], "", ""),  # one folder
        (["dog/1", "dog/2", "cat/1", "cat/2", "5"], "", ""),
        (["dog/a/1", "dog/a/2", "cat/1", "cat/2"], "", ""),
    ],
)  # fmt: skip
def test_layouts(names, labels, splits):
    found = find_layout(names)
    assert [label for name in names for label in found.labels.get(name, ())] == list(labels)
    assert " ".join(found.splits[name] for name in names if found.splits) == splits
    assert find_layout(names, "ignore").labels == {}
    nested = find_layout(["animals/dog/1", "2"], "classes").labels
    assert nested == {"animals/dog/1": ("animals", "dog")}


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 3), st.sampled_from([None, "x", "y"])), min_size=1, max_size=60
    ),
    st.floats(0, 0.99),
    st.integers(0, 5),
)
def test_held_out_images_have_no_copies_among_the_others(rows, share, seed):
    names = list(dict.fromkeys(f"{number}.{['jpg', 'png', 'dng', 'webp'][kind]}" for number, kind, _ in rows))
    copies = {name: copy for name, (_, _, copy) in zip(names, rows, strict=False) if copy}
    labels = {name: ("abc"[len(name) % 3],) for name in names}
    held_out = hold_out(names, labels, names, copies, share, seed)
    assert held_out == hold_out(names, labels, names, copies, share, seed)
    for name in held_out:
        assert all(other in held_out for other in names if other.split(".")[0] == name.split(".")[0])
        assert all(other in held_out for other in names if copies.get(other, name) == copies.get(name, other))
    assert len(held_out) < len(names)


def test_queries_are_stratified():
    names = [f"{number}.jpg" for number in range(300)]
    labels = {name: (("rare",) if number < 20 else ("sea", "all")) for number, name in enumerate(names)}
    held_out = hold_out(names, labels, names, {}, 0.1, 0)
    assert len(held_out) == 30
    assert sum(labels[name] == ("rare",) for name in held_out) == 2
    assert held_out != hold_out(names, labels, names, {}, 0.1, 1)
    # With more images, those that were divided before stay, and the share of all is drawn among the new ones.
    more = [f"new-{number}.jpg" for number in range(100)]
    former = {name: name in held_out for name in names}
    copies = {names[0]: "x", more[0]: "x", min(held_out): "y", more[1]: "y"}
    of_all = {**labels, **dict.fromkeys(more, ("sea",))}
    now = hold_out([*names, *more], of_all, [*names, *more], copies, 0.1, 0, former)
    assert now & set(names) == held_out
    assert more[1] in now
    assert (more[0] in now) == (names[0] in held_out)
    assert len(now) == 41  # and a copy of a query
    by_one: set[str] = set()
    for end in range(1, 101):
        by_one = hold_out(names[:end], {}, names[:end], {}, 0.1, 0, {name: name in by_one for name in names[: end - 1]})
    assert len(by_one) == 10
    assert hold_out(names, labels, names[:50], {}, 0.1, 0) < set(names[:50])  # only described ones
    assert hold_out(names, labels, names, {}, 0, 0) == set()
    with pytest.raises(DataError, match="share of queries"):
        hold_out(names, labels, names, {}, 1, 0)


@pytest.fixture
def photos(tmp_path):
    """Twelve images of two classes with captions, a copy of one, and a raw image of another."""
    root = tmp_path / "photos"
    for number in range(12):
        name = root / ("dog" if number % 2 else "cat") / f"{number}.jpg"
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(image_file("jpg", number))
        name.with_suffix(".txt").write_text(f"image {number} of an animal")
    shutil.copy(root / "dog" / "1.jpg", root / "dog" / "copy.jpg")
    (root / "dog" / "3.dng").write_bytes(image_file("dng", 3))
    return root


def test_in_place(photos, datasets_cache):
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    report = prepare_folder(photos, queries=0.3)
    assert (report.images, sum(report.splits.values()), report.unchanged) == (14, 14, False)
    assert report.text_from == {"txt": 13}  # the raw image has the name of a JPEG
    assert (report.without_text, report.labels_from, report.classes) == (1, {"folders": 14}, 2)
    assert report.identical_files == 2
    assert report.skipped == {}
    loaded = load_image_text(photos)
    assert {name: len(part) for name, part in loaded.items()} == report.splits
    assert set(loaded["query"]["labels"][0]) < {"dog", "cat"}
    assert loaded["train"].column_names == ["id", "image", "text", "labels"]
    # No other file was touched, and a second run changes nothing.
    again = prepare_folder(photos, queries=0.3)
    assert again.unchanged
    written = {photos / "metadata.jsonl", photos / "metadata.query.jsonl", photos / ".from-folder.json"}
    assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file() and path not in written} == before
    edited = (photos / "metadata.jsonl").read_text() + "\n"
    (photos / "metadata.jsonl").write_text(edited)
    with pytest.raises(DataError, match=r"metadata\.jsonl: is there already, with other rows.*pass --overwrite"):
        prepare_folder(photos, queries=0.3)
    assert (photos / "metadata.jsonl").read_text() == edited
    assert prepare_folder(photos, queries=0, overwrite=True).splits == {"train": 14}
    assert not (photos / "metadata.query.jsonl").exists()
    shutil.copy(photos / "metadata.jsonl", photos / "dog" / "metadata.jsonl")
    (photos / "metadata.jsonl").unlink()
    with pytest.raises(DataError, match="describes these images already"):
        prepare_folder(photos)


def splits_of(folder):
    """The split of each image by the metadata files of a folder."""
    files = {"train": folder / "metadata.jsonl", "query": folder / "metadata.query.jsonl"}
    rows = {split: file.read_text(encoding="utf-8").splitlines() for split, file in files.items()}
    return {json.loads(row)["file_name"]: split for split, own in rows.items() for row in own if row}


def test_a_second_call_keeps_the_splits_of_a_folder_that_grows_and_shrinks(photos, datasets_cache):
    prepare_folder(photos, queries=0.3, seed=3, hidden=True)
    before = splits_of(photos)
    for number in range(20, 40):
        (photos / "cat" / f"{number}.jpg").write_bytes(image_file("jpg", number))
    (photos / "extra.jpg").write_bytes(image_file("jpg", 40))
    (photos / ".hidden.jpg").write_bytes(image_file("jpg", 41))
    query = min(name for name, split in before.items() if split == "query")
    train = min(name for name, split in before.items() if split == "train" and name.endswith("jpg"))
    copy = f"{query[:-4]}-copy.jpg"
    shutil.copy(photos / query, photos / copy)
    content = (photos / train).read_bytes()
    (photos / train).unlink()
    report = prepare_folder(photos)
    assert (report.new, report.as_before, report.gone, report.unchanged) == (23, len(before) - 1, 1, False)
    after = splits_of(photos)
    assert {name: split for name, split in after.items() if name in before} == {
        name: split for name, split in before.items() if name != train
    }
    assert after[copy] == "query"
    drawn = [name for name, split in after.items() if split == "query" and name not in before and name != copy]
    assert 5 <= len(drawn) <= 8  # the share of the first call
    assert {".hidden.jpg", "extra.jpg"} < set(after)
    assert load_image_text(photos, split="train")["labels"][-1] == []  # the other folders remain classes
    assert prepare_folder(photos).unchanged
    (photos / train).write_bytes(content)  # it comes back
    assert prepare_folder(photos).new == 1
    assert splits_of(photos)[train] == "train"
    with pytest.raises(DataError, match=r"drawn with --queries 0\.3 and --seed 3; leave these out"):
        prepare_folder(photos, queries=0.5)
    # An interrupted writing, and metadata edited by hand.
    former = (photos / "metadata.query.jsonl").read_bytes()
    (photos / "dog" / "50.jpg").write_bytes(image_file("jpg", 50))
    (photos / "dog" / "50.txt").write_text("one more")
    prepare_folder(photos)
    (photos / "metadata.query.jsonl").write_bytes(former)
    assert prepare_folder(photos).new == 0
    edited = (photos / "metadata.query.jsonl").read_text() + "\n"
    (photos / "metadata.query.jsonl").write_text(edited)
    with pytest.raises(DataError, match="pass --overwrite"):
        prepare_folder(photos)
    kept = splits_of(photos)
    assert prepare_folder(photos, overwrite=True).as_before == len(kept)
    assert splits_of(photos) == kept
    (photos / ".from-folder.json").write_text("{}")
    with pytest.raises(DataError, match=r"from-folder\.json: is no record .* delete it"):
        prepare_folder(photos)


def test_metadata_of_others_is_refused_when_the_folder_grows(photos):
    rows = "".join(json.dumps({"file_name": f"cat/{n}.jpg", "text": "mine"}) + "\n" for n in (0, 2))
    (photos / "metadata.jsonl").write_text(rows)
    with pytest.raises(DataError, match="is there already, with other rows"):
        prepare_folder(photos)
    assert (photos / "metadata.jsonl").read_text() == rows
    assert not (photos / ".from-folder.json").exists()


def test_folders_that_are_splits_remain_so(tmp_path):
    for number in range(8):
        name = tmp_path / ("train" if number < 5 else "test") / "ab"[number % 2] / f"{number}.jpg"
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(image_file("jpg", number))
    assert prepare_folder(tmp_path).splits == {"train": 5, "query": 3}
    (tmp_path / "extra.jpg").write_bytes(image_file("jpg", 9))
    (tmp_path / "test" / "a" / "10.jpg").write_bytes(image_file("jpg", 10))
    report = prepare_folder(tmp_path)
    assert (report.splits, report.classes, report.new) == ({"train": 6, "query": 4}, 2, 2)


def test_output(photos, tmp_path, datasets_cache, monkeypatch):
    out = tmp_path / "out"
    report = prepare_folder(photos, out, queries=0.3)
    assert (report.linked, report.copied) == (14, 0)
    assert (out / "train" / "dog" / "copy.jpg").samefile(photos / "dog" / "copy.jpg")
    assert not list(photos.glob("metadata*"))
    assert set(load_image_text(out)) == {"train", "query"}
    assert prepare_folder(photos, out, queries=0.3).unchanged
    with pytest.raises(DataError, match="holds something else already"):
        prepare_folder(photos, out, queries=0)
    copied = prepare_folder(photos, out, queries=0.3, copy=True, overwrite=True)
    assert (copied.linked, copied.copied, copied.unchanged) == (0, 14, False)
    assert prepare_folder(photos, out, queries=0.3, copy=True).unchanged
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "another disk")))
    assert prepare_folder(photos, tmp_path / "other", queries=0).copied == 14
    (out / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"notes\.txt: is no part of a data set"):
        prepare_folder(photos, out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    for bad in (photos / "below", photos, tmp_path):
        with pytest.raises(DataError, match="the output must be outside"):
            prepare_folder(photos, bad)


def test_a_place_without_permission_is_counted(photos, monkeypatch):
    walk = os.walk

    def closed(folder, onerror):
        for parent, folders, names in walk(folder):
            if parent.endswith("cat"):
                error = PermissionError(13, "Permission denied")
                error.filename = parent
                onerror(error)
                continue
            yield parent, folders, names

    monkeypatch.setattr(files_module.os, "walk", closed)
    report = prepare_folder(photos)
    assert report.images == 8
    assert report.problems == {"no permission": 1}
    assert report.named == [f"{photos / 'cat'}: cannot be read (Permission denied); change its permissions."]
    assert report.skipped["folders that cannot be read"] == 1


def test_names_that_metadata_cannot_hold_are_counted(photos):
    for name in (b"a\xff.jpg", b"a\\b.jpg"):
        (photos / "dog" / os.fsdecode(name)).write_bytes(image_file("jpg"))
    report = prepare_folder(photos)
    assert (report.images, report.problems) == (14, {"names": 2})
    assert all(line.isprintable() for line in report.named)


def test_dates_keywords_and_several_captions(tmp_path, datasets_cache):
    for number, text in enumerate(["one dog runs\nthe dog is fast", "a boat sails", ""]):
        (tmp_path / f"{number}.jpg").write_bytes(image_file("jpg", number))
        (tmp_path / f"{number}.txt").write_text(text)
    document = {"tags": ["sea", "sun"], "date": "2020-05-06 07:08:09"}
    (tmp_path / "2.jpg.json").write_text(json.dumps(document))
    report = prepare_folder(tmp_path, queries=0)
    assert report.text_from == {"txt": 2, "keywords": 1}
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert rows[0] == {
        "file_name": "0.jpg", "text": ["one dog runs", "the dog is fast"], "keywords": [], "date": None, "year": None
    }  # fmt: skip
    assert rows[2] == {
        "file_name": "2.jpg", "text": "sea sun", "keywords": ["sea", "sun"], "date": "2020-05-06T07:08:09", "year": 2020
    }  # fmt: skip
    assert load_image_text(tmp_path, split="train")[0]["captions"] == ["one dog runs", "the dog is fast"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"folder": "absent"}, "there is no such folder"),
        ({"folder": "empty"}, "no image below this folder"),
        ({"folder": "text"}, r"none of its 1 images can be read \(.*x\.jpg: not an image"),
        ({"folder": "photos", "folders": "all"}, "folders cannot be 'all'"),
    ],
)
def test_refused_folders(tmp_path, arguments, message):
    for name in ("empty", "text", "photos"):
        (tmp_path / name).mkdir()
    (tmp_path / "text" / "x.jpg").write_text("no image")
    with pytest.raises(DataError, match=message) as caught:
        prepare_folder(**arguments | {"folder": tmp_path / arguments["folder"]})
    assert "\n" not in str(caught.value)
