"""Texts are the same from any source; invalid texts are named in errors."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Image, IterableDataset, List, Value

from cmfah_hf.errors import DataError
from cmfah_hf.expansion.corpus import is_one_row, iterate_files, iterate_words, words_of

TEXTS = ["A dog, a DOG", "", None, "New-York's café"]
WORDS = [["a", "dog", "a", "dog"], [], [], ["new", "york's", "café"]]


def test_words_of_tags_match_the_joined_tags():
    assert words_of(["New York", None, "sunset!"]) == ["new", "york", "sunset"]
    assert words_of(np.array(["b", "a"], dtype=object)) == ["b", "a"]


def test_lone_surrogates_in_a_text():
    assert words_of("dog \ud800 cat") == ["dog", "cat"]
    assert words_of("\ud83d\ude00 dog") == ["\U0001f600", "dog"]


@pytest.mark.parametrize("value", [5, 1.5, {"text": {"a": 1}}, [["a"]], [1]])
def test_values_that_are_not_texts_are_named(value):
    with pytest.raises(DataError, match=r"Row 1, column 'text', holds .*a text is a string or a list of tags"):
        list(iterate_words(["a", value]))


def _sources():
    rows = [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)]
    dataset = Dataset.from_list(rows)
    yield "texts", TEXTS
    yield "generator", (text for text in TEXTS)
    yield "rows", rows
    yield "one batch", {"text": TEXTS, "id": list("0123")}
    yield "dataset", dataset
    yield "numpy format", dataset.with_format("numpy")
    yield "arrow format", dataset.with_format("arrow")
    yield "transform", dataset.with_transform(lambda batch: {"text": batch["text"]})
    yield "column", dataset["text"]
    yield "stream", dataset.to_iterable_dataset(num_shards=2)
    yield "arrow stream", dataset.to_iterable_dataset().with_format("arrow")
    yield "stream of unknown columns", IterableDataset.from_generator(lambda: iter(rows))


@pytest.mark.parametrize(
    ("name", "source"), list(_sources()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_source_gives_the_same_words(name, source):
    assert list(iterate_words(source)) == WORDS


def test_tag_lists_as_texts():
    dataset = Dataset.from_dict({"tags": [["dog", "New York"], []]}, features=Features({"tags": List(Value("string"))}))
    for source in (dataset, dataset.to_iterable_dataset(), [["dog", "New York"], []]):
        assert list(iterate_words(source, "tags")) == [["dog", "new", "york"], []]


@pytest.mark.parametrize("streaming", [False, True])
def test_images_are_not_decoded(streaming):
    features = Features({"image": Image(), "text": Value("string")})
    dataset = Dataset.from_dict({"image": [{"bytes": b"no image", "path": None}], "text": ["dog"]}, features=features)
    with pytest.raises(Exception, match="cannot identify image"):
        dataset[0]
    assert list(iterate_words(dataset.to_iterable_dataset() if streaming else dataset)) == [["dog"]]


@pytest.mark.parametrize("build", [Dataset.from_list, lambda rows: Dataset.from_list(rows).to_iterable_dataset(), list])
def test_a_missing_column_is_named_with_the_existing_ones(build):
    with pytest.raises(DataError, match=r"no column 'caption', only 'id', 'text'"):
        list(iterate_words(build([{"id": "1", "text": "a"}]), "caption"))


@pytest.mark.parametrize("source", ["a dog", b"a dog", 5, DatasetDict(train=Dataset.from_dict({"text": ["a"]}))])
def test_objects_that_are_no_data_set_are_refused(source):
    with pytest.raises(DataError):
        list(iterate_words(source))


def test_a_list_of_strings_is_a_batch_unless_another_column_is_named():
    assert not is_one_row({"text": ["dog", "beach"]}, "text")
    assert not is_one_row({"text": ["dog", "beach"], "id": ["1", "2"]}, "text")
    assert not is_one_row({"text": [["dog"], ["beach"]], "id": "1"}, "text")
    assert is_one_row({"text": ["dog", "beach"], "id": "ab"}, "text")
    assert is_one_row({"text": ["dog", "beach"], "image": {"bytes": b"", "path": None}}, "text")
    assert is_one_row({"text": "dog"}, "text")
    assert is_one_row({"text": None}, "text")


def _write(path, rows):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".txt":
        path.write_text("".join(f"{row['text']}\n" for row in rows if row["text"]), encoding="utf-8")
    else:
        path.write_text(lines + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz", "c.v1.parquet", "c.TXT", "c.ndjson"])
def test_corpus_files(tmp_path, name):
    path = tmp_path / name.lower()
    _write(path, [{"title": "x", "text": text} for text in TEXTS])
    assert [words for words in iterate_files(path) if words] == [words for words in WORDS if words]
    assert len(list(iterate_files([path, str(path)]))) == 2 * len(list(iterate_files(path)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "there is no such file"),
        ("c.csv", b"text\na\n", "a corpus is a"),
        ("c", b"a\n", "a corpus is a"),
        ("c.jsonl", b'{"text": "a"}\n{"text": \n', "line 2, is not JSON"),
        ("c.jsonl", b"[1]\n", "line 1, holds"),
        ("c.jsonl", b'{"title": "a"}\n', "line 1 has no column 'text', only 'title'"),
        ("c.jsonl", b'{"text": 5}\n', "line 1, holds 5"),
        ("c.txt", b"caf\xe9\n", "UTF-8"),
        ("c.jsonl.gz", b"not zipped", "UTF-8"),
        ("c.parquet", b"PAR1 not really", "cannot be read as Parquet"),
    ],
)
def test_a_bad_corpus_file_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        list(iterate_files(path))
    assert str(path) in str(error.value)


def test_a_parquet_file_without_the_column_is_named(tmp_path):
    pq.write_table(pa.table({"title": ["a"]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"c\.parquet has no column 'text', only 'title'"):
        list(iterate_files(tmp_path / "c.parquet"))
