"""Several captions of an image: their column in every source, and the caption that a batch holds."""

from collections import Counter

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmfah_hf.data import inspect_pairs, load_image_text, write_imagefolder
from cmfah_hf.data.collator import CaptionDraw, PairCollator
from cmfah_hf.data.rows.columns import are_captions, captions_of, text_of
from cmfah_hf.errors import DataError

CAPTIONS = [
    ["a dog runs on the beach", "the brown dog runs fast"],
    ["a red car in the street"],
    [],
    ["two boats on the sea", None, "", "the sun over two boats"],
]
KEPT = [[caption for caption in captions if caption] for captions in CAPTIONS]
TAGS = [["golden gate", "bridge"], ["san francisco"], [], ["beach", "big sur", "sunset"]]


def rows_with(values, name):
    return [{"file_name": f"{number}.png", name: value} for number, value in enumerate(values)]


def as_parquet(folder, file):
    """The rows of a folder as a Parquet file with the images' bytes and the columns of the source."""
    loaded = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(file.parent / "c"))
    loaded.to_parquet(file)
    return file


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_lists_of_sentences_are_captions_in_every_source(make_folder, tmp_path, kind, streaming):
    source = make_folder(rows_with(CAPTIONS, "caption"))
    source = as_parquet(source, tmp_path / "pairs.parquet") if kind == "parquet" else source
    rows = list(load_image_text(source, split="train", streaming=streaming))
    assert [row["captions"] for row in rows] == KEPT
    assert [row["text"] for row in rows] == [" ".join(captions) for captions in KEPT]
    assert list(rows[0]) == ["id", "image", "text", "captions"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_tags_stay_one_text_unless_the_caller_says_otherwise(make_folder, tmp_path, kind, streaming):
    for name, values in (("text", TAGS), ("tags", CAPTIONS), ("text", ["one text of a row"] * 4)):
        source = make_folder(rows_with(values, name), folder=f"{name}-{len(str(values))}")
        source = as_parquet(source, source.with_suffix(".parquet")) if kind == "parquet" else source
        (columns,) = {tuple(row) for row in load_image_text(source, split="train", streaming=streaming)}
        assert columns == ("id", "image", "text")
        rows = list(load_image_text(source, split="train", streaming=streaming, captions="several"))
        assert [row["captions"] for row in rows] == [captions_of(value) for value in values]
        assert [row["text"] for row in rows] == [text_of(value) for value in values]
    source = make_folder(rows_with(CAPTIONS, "text"), folder="joined")
    assert "captions" not in load_image_text(source, split="train", captions="joined").column_names
    with pytest.raises(DataError, match="captions cannot be 'all'; give one of auto, several, joined"):
        load_image_text(source, captions="all")


@pytest.mark.parametrize("streaming", [False, True])
def test_written_data_sets_are_read_with_the_same_captions(make_folder, tmp_path, streaming):
    loaded = load_image_text(make_folder(rows_with(CAPTIONS, "sentences")), split="train")
    write_imagefolder(loaded, tmp_path / "written")
    loaded.to_parquet(tmp_path / "written.parquet")
    for name in ("written", "written.parquet"):
        again = load_image_text(tmp_path / name, split="train", streaming=streaming)
        assert [row["captions"] for row in again] == KEPT
        assert [row["text"] for row in again] == loaded["text"][:]
        joined = load_image_text(tmp_path / name, split="train", streaming=streaming, captions="joined")
        assert "captions" not in joined.column_names


@pytest.mark.parametrize("streaming", [False, True])
def test_lists_next_to_another_text_are_a_further_column(make_folder, streaming):
    rows = [{**row, "text": "a title"} for row in rows_with(CAPTIONS[:2], "captions")]
    found = list(load_image_text(make_folder(rows), split="train", streaming=streaming))
    assert [(row["text"], row["original_captions"]) for row in found] == [("a title", row["captions"]) for row in rows]


@given(st.lists(st.lists(st.text("ab ", max_size=12), max_size=4), max_size=4))
def test_captions_are_decided_by_most_elements(values):
    lengths = [len(element.split()) for value in values for element in value]
    most = sum(length > 2 for length in lengths) > len(lengths) / 2
    assert are_captions(values) == (most and any(len(value) > 1 for value in values))
    assert all(text_of(captions_of(value)) == text_of(value) for value in values)
    assert not are_captions([text_of(value) for value in values])


def test_inspection_counts_captions(make_folder):
    found = inspect_pairs(make_folder(rows_with(CAPTIONS, "text")))
    assert found.captions == {0: 1, 1: 1, 2: 2}
    assert found.words.most_frequent["dog"] == 1
    assert found.as_dict()["captions"] == {0: 1, 1: 1, 2: 2}
    assert inspect_pairs(make_folder(rows_with(TAGS, "text"), folder="tags")).captions == {}


class Recorder:
    """A processor that notes the texts it reads."""

    def __init__(self):
        self.texts = []

    def __call__(self, text, return_tensors):
        self.texts.append(list(text))
        return {}


def batch_of(count, captions):
    return [
        {
            "id": f"row-{number}",
            "text": " ".join(f"{number} {place}" for place in range(captions)),
            "captions": [f"{number} {place}" for place in range(captions)],
            "image_features": np.zeros(2),
        }
        for number in range(count)
    ]


def test_every_caption_is_drawn_once_in_as_many_epochs():
    rows = batch_of(200, 5)
    draw = CaptionDraw(seed=3)
    epochs = []
    for epoch in range(5):
        draw.set_epoch(epoch)
        epochs.append([draw(row) for row in rows])
    for number, drawn in enumerate(zip(*epochs, strict=True)):
        assert sorted(drawn) == [f"{number} {place}" for place in range(5)]
    first = Counter(text.split()[1] for text in epochs[0])
    assert min(first.values()) > 20  # rows begin with different captions
    again = CaptionDraw(seed=3)
    again.set_epoch(2)
    assert [again(row) for row in reversed(rows)] == epochs[2][::-1]
    assert [CaptionDraw(seed=4)(row) for row in rows] != epochs[0]


def test_the_model_reads_one_caption_and_similarity_all():
    rows = batch_of(3, 2)
    rows[1]["captions"] = None
    rows[2]["captions"] = []
    compared = []

    class Shouting:
        text_column = "text"

        def __call__(self, batch):
            return {"loud": [text.upper() + "!" for text in batch["text"]]}

    for row in rows:
        row["loud"] = f"all of {row['id']}"
    processor = Recorder()
    draw = CaptionDraw()
    collator = PairCollator(
        processor, None, "loud", lambda rows, texts: compared.append(texts) or np.zeros(3), Shouting(), draw
    )
    collator(rows)
    assert processor.texts == [[draw(rows[0]) + "!", "all of row-1", "all of row-2"]]
    assert compared == [["all of row-0", "all of row-1", "all of row-2"]]
    collator.draw = None
    collator(rows)
    assert processor.texts[-1][0] == "0 0!"
