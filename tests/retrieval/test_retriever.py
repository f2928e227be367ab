"""`CrossMediaRetriever` against its parts called directly (towers, processor, expander) and a brute-force ranking."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from cmfah_hf.data import load_image_text
from cmfah_hf.errors import DataError, HashIndexError, ImageError, QueryError
from cmfah_hf.expansion import GraphExpander
from cmfah_hf.models import CMFAHModel, CMFAHProcessor
from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex
from cmfah_hf.training.evaluate import evaluate_pairs


@pytest.fixture(scope="module")
def loaded(trained):
    return CrossMediaRetriever.from_pretrained(trained.folder)


@pytest.fixture
def retriever(loaded):
    """The trained retriever with empty indexes."""
    loaded.images, loaded.texts = HashIndex(16), HashIndex(16)
    return loaded


@pytest.fixture(scope="module")
def parts(trained):
    model = CMFAHModel.from_pretrained(trained.folder).eval()
    return model, CMFAHProcessor.from_pretrained(trained.folder), GraphExpander.load(trained.folder)


@pytest.fixture(scope="module")
def image_paths(trained):
    return sorted((trained.scenes / "train").glob("*.png"))[:12]


@pytest.fixture(scope="module")
def image_hash(parts, image_paths):
    model, processor, _ = parts
    with torch.no_grad():
        inputs = processor(images=[Image.open(path) for path in image_paths], return_tensors="pt")
        return model.get_image_hash(inputs["pixel_values"]).numpy()


def text_hash(parts, texts):
    """Continuous codes of texts expanded one at a time."""
    model, processor, expander = parts
    rows = []
    for text in texts:
        inputs = processor(text=[" ".join(expander.expand(text))], return_tensors="pt")
        with torch.no_grad():
            rows.append(model.get_text_hash(inputs["input_ids"], inputs["attention_mask"])[0].numpy())
    return np.stack(rows)


def ranking(query, database, ids):
    """Ids by descending `<z_q, B_x>`, ties in insertion order, with their scores."""
    codes = np.where(database >= 0, 1, -1)
    scores = codes @ (np.rint(query.astype(np.float64) * 2**14) / 2**14)
    order = np.argsort(-scores, kind="stable")
    return [ids[i] for i in order], scores[order]


def test_images_are_encoded_without_texts(retriever, image_paths, image_hash):
    np.testing.assert_allclose(retriever.encode_images(image_paths, batch_size=5), image_hash, atol=1e-6)
    forms = [
        image_paths[0].read_bytes(),
        io.BytesIO(image_paths[1].read_bytes()),
        Image.open(image_paths[2]),
        str(image_paths[3]),
    ]
    np.testing.assert_allclose(retriever.encode_images(forms), image_hash[:4], atol=1e-6)
    assert retriever.encode_images([]).shape == (0, 16)


def test_texts_are_expanded_and_encoded_without_images(retriever, parts):
    texts = ["boat sun", "", "A red CAR, beside the tree!", "xyzzy", "house"]
    expected = text_hash(parts, texts)
    np.testing.assert_allclose(retriever.encode_texts(texts, batch_size=2), expected, atol=1e-6)
    # Expansion matters, and unknown words are ignored.
    model, processor, expander = parts
    plain = processor(text=["boat sun"], return_tensors="pt")
    with torch.no_grad():
        unexpanded = model.get_text_hash(plain["input_ids"], plain["attention_mask"]).numpy()[0]
    assert np.abs(unexpanded - expected[0]).max() > 1e-3
    np.testing.assert_allclose(expected[3], expected[1], atol=1e-6)
    assert retriever.expand(["boat sun"]) == [" ".join(expander.expand("boat sun"))]
    assert retriever.encode_texts([]).shape == (0, 16)


def test_a_text_query_finds_images(retriever, parts, image_paths, image_hash):
    assert retriever.add_images(image_paths, batch_size=5) == []
    results = retriever.search(text="boat sun", k=4)
    ids, scores = ranking(text_hash(parts, ["boat sun"])[0], image_hash, [str(path) for path in image_paths])
    assert results.ids.tolist() == [ids[:4]]
    np.testing.assert_allclose(results.scores[0], scores[:4], atol=1e-3)


def test_an_image_query_finds_images_and_itself_first_by_hamming(retriever, image_paths, image_hash):
    retriever.add_images(image_paths)
    results = retriever.search(image=image_paths[3], k=12)
    ids, scores = ranking(image_hash[3], image_hash, [str(path) for path in image_paths])
    assert results.ids.tolist() == [ids]
    np.testing.assert_allclose(results.scores[0], scores, atol=1e-3)
    by_bits = retriever.search(image=str(image_paths[3]), k=12, metric="hamming")
    distances = np.count_nonzero((image_hash[3] >= 0) != (image_hash >= 0), axis=1)
    assert by_bits.scores[0].tolist() == sorted(distances)
    assert by_bits.scores[0][0] == 0


def test_texts_are_searched_on_request_or_if_there_are_no_images(retriever, parts, image_paths):
    texts = ["boat sea", "red car", "cat on a sofa", "tree house"]
    retriever.add_texts(texts)
    expected, _ = ranking(text_hash(parts, ["boat"])[0], text_hash(parts, texts), [0, 1, 2, 3])
    assert retriever.search(text="boat", k=4).ids.tolist() == [expected]  # there are no images, so texts are searched
    retriever.add_images(image_paths[:2])
    assert retriever.search(text="boat", k=4, target="texts").ids.tolist() == [expected]
    assert retriever.search(text="boat", k=1).ids.tolist()[0][0] in [str(path) for path in image_paths[:2]]
    assert retriever.search(image=image_paths[0], k=4, target="texts").ids.shape == (1, 4)


def test_a_query_of_an_image_and_a_text(retriever, parts, image_paths, image_hash):
    """The continuous codes are mixed by their weights; at the end points only one of them counts."""
    retriever.add_images(image_paths)
    names = [str(path) for path in image_paths]
    words = text_hash(parts, ["boat sun", "red car"])
    for weight in (0.0, 0.3, 0.5, 1.0):
        mixed = (1 - weight) * words[0] + weight * image_hash[4]
        for metric in ("aqd", "hamming"):
            ids, _ = ranking(mixed if metric == "aqd" else np.where(mixed >= 0, 1, -1), image_hash, names)
            found = retriever.search(text="boat sun", image=image_paths[4], k=12, metric=metric, image_weight=weight)
            assert found.ids[0].tolist() == ids
    pairs = retriever.search(text=["boat sun", "red car"], image=image_paths[4:6], k=3)
    one_text = retriever.search(text="boat sun", image=image_paths[4:6], k=3)
    for row, mixed in enumerate((words + image_hash[4:6]) / 2):
        assert pairs.ids[row].tolist() == ranking(mixed, image_hash, names)[0][:3]
        assert one_text.ids[row].tolist() == ranking((words[0] + image_hash[4 + row]) / 2, image_hash, names)[0][:3]


def test_columns_of_a_data_set_are_returned_with_the_results(retriever, trained, caplog):
    pairs = load_image_text(trained.scenes, split="query")
    rows = {row["id"]: row for row in pairs.remove_columns("image")}
    broken = pairs.select(range(5)).map(lambda row: {"place": None if row["id"] == pairs[1]["id"] else "here"})
    streamed = load_image_text(trained.scenes, split="query", streaming=True)
    for source, what in ((pairs, "images"), (pairs, "texts"), (streamed, "images")):
        retriever.images, retriever.texts = HashIndex(16), HashIndex(16)
        add = retriever.add_images if what == "images" else retriever.add_texts
        add(source, batch_size=5, metadata=["text", "labels"])
        found = retriever.search(text="boat", k=4, target=what)
        for hit in found.hits():
            assert hit["metadata"] == {"text": rows[hit["id"]]["text"], "labels": rows[hit["id"]]["labels"]}
    retriever.images = HashIndex(16)
    retriever.add_images(broken, batch_size=1, metadata=["place"])  # a batch of only nulls is not another type
    assert retriever.images.metadata["place"].to_pylist() == ["here", None, "here", "here", "here"]
    assert len(retriever.search(text="boat", k=9, where={"place": "here"}).ids[0]) == 4
    with pytest.raises(DataError, match="no column 'year'; it has "):
        retriever.add_images(pairs, metadata=["year"])


def test_any_column_is_indexed_in_one_call(retriever, trained, image_paths):
    import datasets

    words = ["boat sun", "red car", "tree"]
    data = datasets.Dataset.from_dict(
        {"photo": [str(path) for path in image_paths[:3]], "tags": [text.split() for text in words], "n": [7, 8, 9]}
    ).cast_column("photo", datasets.Image())
    retriever.add_images(data, column="photo", metadata=["n"])
    assert retriever.images.ids.tolist() == [0, 1, 2]
    assert retriever.images.metadata["n"].to_pylist() == [7, 8, 9]
    retriever.add_texts(data, column="tags", ids=["a", "b", "c"])
    expected = np.packbits(retriever.encode_texts(words) >= 0, axis=1, bitorder="little")
    np.testing.assert_array_equal(retriever.texts.codes, expected)
    assert retriever.texts.ids.tolist() == ["a", "b", "c"]
    retriever.add_images(image_paths[3:5], metadata={"n": [1, 2]}, ids=[10, 11])
    assert retriever.search(image=image_paths[4], k=1, where={"n": 2}, metric="hamming").hits() == [
        {"id": 11, "score": 0, "metadata": {"n": 2}}
    ]


def test_an_additional_column_with_a_skipped_image(retriever, image_paths):
    retriever.add_images([image_paths[0], b"no image", image_paths[1]], ids=["a", "b", "c"], metadata={"n": [1, 2, 3]})
    assert retriever.images.ids.tolist() == ["a", "c"]
    assert retriever.images.metadata["n"].to_pylist() == [1, 3]


def test_several_queries_match_single_ones(retriever, image_paths):
    retriever.add_images(image_paths)
    texts = ["boat sun", "car", "tree house"]
    many = retriever.search(text=texts, k=5)
    assert many.ids.shape == many.scores.shape == (3, 5)
    for row, text in enumerate(texts):
        single = retriever.search(text=text, k=5)
        np.testing.assert_allclose(many.scores[row], single.scores[0], atol=2e-3)
    images = retriever.search(image=[image_paths[5], Image.open(image_paths[7])], k=3)
    assert images.ids.shape == (2, 3)
    assert images.ids[1].tolist() == retriever.search(image=image_paths[7], k=3).ids[0].tolist()


def test_ids_come_from_the_data_set_the_paths_or_row_numbers(retriever, trained, image_paths):
    pairs = load_image_text(trained.scenes, split="query").select(range(3))
    retriever.add_images(pairs)
    assert retriever.images.ids.tolist() == pairs["id"][:]
    retriever.add_images(pairs, ids=["x", "y", "z"])
    assert retriever.images.ids.tolist()[3:] == ["x", "y", "z"]

    retriever.images = HashIndex(16)
    retriever.add_images(path for path in image_paths[:2])
    assert retriever.images.ids.tolist() == [str(path) for path in image_paths[:2]]

    retriever.images = HashIndex(16)
    retriever.add_images([Image.open(path) for path in image_paths[:2]])
    retriever.add_images([path.read_bytes() for path in image_paths[2:4]])
    retriever.add_images(image_paths[4:6], ids=[70, 71])
    assert retriever.images.ids.tolist() == [0, 1, 2, 3, 70, 71]


def test_a_stream_of_images(retriever, trained):
    pairs = load_image_text(trained.scenes, split="query")
    retriever.add_images(pairs)
    expected = retriever.images.codes.copy()
    retriever.images = HashIndex(16)
    retriever.add_images(load_image_text(trained.scenes, split="query", streaming=True), batch_size=5)
    assert retriever.images.ids.tolist() == pairs["id"][:]
    np.testing.assert_array_equal(retriever.images.codes, expected)


def test_unreadable_images_are_named_and_skipped(retriever, image_paths, image_hash, tmp_path, caplog):
    broken = tmp_path / "broken.png"
    broken.write_bytes(image_paths[0].read_bytes()[:300])
    given = [image_paths[0], broken, image_paths[1], tmp_path / "absent.png", image_paths[2]]
    unreadable = retriever.add_images(given, batch_size=2)
    assert retriever.images.ids.tolist() == [str(path) for path in image_paths[:3]]
    expected = np.packbits(image_hash[:3] >= 0, axis=1, bitorder="little")
    np.testing.assert_array_equal(retriever.images.codes, expected)
    assert len(unreadable) == 2
    assert unreadable[0].startswith(f"{broken}: damaged or cut short")
    assert unreadable[1].startswith(f"{tmp_path / 'absent.png'}: there is no such file")
    assert all(f"Left out: {reason}" in caplog.text for reason in unreadable)


def test_row_numbers_stay_with_their_images_when_one_is_skipped(retriever, image_paths, image_hash):
    given = [image_paths[0].read_bytes(), b"no image", image_paths[1].read_bytes()]
    assert len(retriever.add_images(given)) == 1
    assert retriever.images.ids.tolist() == [0, 2]
    assert retriever.search(image=image_paths[1], k=1, metric="hamming").scores.tolist() == [[0]]
    retriever.add_images([image_paths[2].read_bytes()])
    assert retriever.images.ids.tolist() == [0, 2, 3]


def test_no_readable_image_leaves_the_index_empty(retriever):
    assert len(retriever.add_images([b"no", b"neither"])) == 2
    assert len(retriever.images) == 0


@pytest.mark.parametrize("ids", [[1, 2], [1, 2, 3, 4], ["a"]])
def test_every_image_needs_its_id(retriever, image_paths, ids):
    with pytest.raises(HashIndexError, match=rf"3 images came with {len(ids)} ids; give one id for each image\."):
        retriever.add_images(image_paths[:3], ids=ids)
    assert len(retriever.images) == 0


def test_image_queries_of_every_mode(retriever, image_paths, tmp_path):
    """A query may be gray, transparent, CMYK, 16-bit or animated; a gray image equals its RGB copy."""
    retriever.add_images(image_paths)
    image = Image.open(image_paths[0])
    for mode, ending in (("L", "png"), ("P", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("I;16", "png"), ("1", "png")):
        wide = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257) if mode == "I;16" else None
        (wide or image.convert(mode)).save(tmp_path / f"query.{ending}")
        found = retriever.search(image=tmp_path / f"query.{ending}", k=3)
        assert np.isfinite(found.scores).all()
        if mode in ("L", "I;16"):
            expected = retriever.search(image=image.convert("L").convert("RGB"), k=3)
            np.testing.assert_allclose(found.scores, expected.scores, atol=2e-3)
    frames = [image, image.rotate(180)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    first = retriever.encode_images([tmp_path / "moving.gif"])
    frames[0].save(tmp_path / "still.gif")
    np.testing.assert_allclose(first, retriever.encode_images([tmp_path / "still.gif"]), atol=1e-6)


def test_queries_that_cannot_be_answered(retriever, image_paths, tmp_path):
    with pytest.raises(HashIndexError, match="The index is empty"):
        retriever.search(text="boat")
    retriever.add_images(image_paths[:3])
    with pytest.raises(QueryError, match="Give a text or an image to search with, or both"):
        retriever.search()
    with pytest.raises(QueryError, match=r"image_weight is 1\.5; give a share"):
        retriever.search(text="boat", image=image_paths[0], image_weight=1.5)
    with pytest.raises(QueryError, match="3 texts and 2 images does not pair up"):
        retriever.search(text=["boat", "car", "sun"], image=image_paths[:2])
    for text in ("xyzzy plugh", "", "?!"):
        with pytest.raises(QueryError) as caught:
            retriever.search(text=text)
        assert str(caught.value).startswith(f"No word of {text!r} is known to the model")
    with pytest.raises(QueryError, match="No word of 'xyzzy'"):
        retriever.search(text=["boat", "xyzzy"])
    assert retriever.search(text="boat xyzzy", k=1).ids.shape == (1, 1)  # one known word is enough
    with pytest.raises(QueryError, match="target is 'videos'; choose 'images' or 'texts'"):
        retriever.search(text="boat", target="videos")
    with pytest.raises(QueryError, match="k must be a whole number of at least 1, not 0"):
        retriever.search(text="boat", k=0)
    with pytest.raises(QueryError, match="There is no ranking 'cosine'"):
        retriever.search(text="boat", metric="cosine")
    with pytest.raises(ImageError, match=r"absent\.jpg: there is no such file"):
        retriever.search(image=tmp_path / "absent.jpg")


def test_k_above_the_number_of_items_returns_all(retriever, image_paths, caplog):
    retriever.add_images(image_paths[:3])
    assert sorted(retriever.search(text="boat", k=10).ids[0]) == sorted(str(path) for path in image_paths[:3])
    assert "k = 10 exceeds the 3 items of the index" in caplog.text


def test_an_index_of_another_length_is_refused(retriever, tmp_path):
    other = HashIndex(32)
    other.add(np.ones((2, 32)))
    other.save(tmp_path / "other.index")
    with pytest.raises(HashIndexError, match=r"other\.index holds codes of 32 bits, where 16 were expected"):
        HashIndex.load(tmp_path / "other.index", bits=retriever.model.config.hash_bits)
    retriever.images = HashIndex.load(tmp_path / "other.index")
    with pytest.raises(HashIndexError, match="have 16 bits, the index has 32"):
        retriever.search(text="boat")


def test_encoded_pairs_use_their_partner_only_in_the_paired_protocol(
    retriever, trained, image_paths, parts, monkeypatch
):
    model, processor, expander = parts
    texts = ["boat sun", "red car", "tree"]
    image_values, text_values = retriever.encode_pairs(image_paths[:3], texts, batch_size=2)
    inputs = processor(
        images=[Image.open(path) for path in image_paths[:3]],
        text=[" ".join(expander.expand(text)) for text in texts],
        return_tensors="pt",
    )
    with torch.no_grad():
        outputs = model(**inputs)
    np.testing.assert_allclose(image_values, outputs.image_hash.numpy(), atol=1e-6)
    np.testing.assert_allclose(text_values, outputs.text_hash.numpy(), atol=1e-6)
    assert np.abs(image_values - retriever.encode_images(image_paths[:3])).max() > 1e-3
    assert np.abs(text_values - retriever.encode_texts(texts)).max() > 1e-3
    # Another partner changes the code: this is the leak.
    swapped, _ = retriever.encode_pairs(image_paths[:3], texts[::-1])
    assert np.abs(swapped[0] - image_values[0]).max() > 1e-4
    assert [values.shape for values in retriever.encode_pairs([], [])] == [(0, 16), (0, 16)]
    with pytest.raises(ValueError, match="zip"):
        retriever.encode_pairs(image_paths[:3], texts[:2])

    pairs = load_image_text(trained.scenes, split="query")
    figures = {name: evaluate_pairs(model, processor, pairs, pairs, protocol=name) for name in ("single", "paired")}
    assert figures["single"]["aqd/i2t/map"] != figures["paired"]["aqd/i2t/map"]
    calls = []
    monkeypatch.setattr(model, "forward", lambda **inputs: calls.append(inputs))
    evaluate_pairs(model, processor, pairs, pairs)  # by default the towers never see a pair
    retriever.add_images(image_paths[:2])
    retriever.search(text="boat", k=1)
    assert calls == []
    with pytest.raises(QueryError, match="There is no protocol 'both'"):
        evaluate_pairs(model, processor, pairs, pairs, protocol="both")


def test_sources_are_data_sets_or_image_folders(retriever, trained, tmp_path):
    pairs = load_image_text(trained.scenes)
    assert retriever.add_source(trained.scenes, split="query") == []
    assert retriever.images.ids.tolist() == pairs["query"]["id"][:]

    retriever.images = HashIndex(16)
    retriever.add_source(str(trained.scenes), batch_size=7)
    expected = [f"{name}/{item}" for name in ("train", "query") for item in pairs[name]["id"]]
    assert retriever.images.ids.tolist() == expected

    retriever.add_source(trained.scenes, split="query", what="texts")
    np.testing.assert_array_equal(
        retriever.texts.codes,
        np.packbits(retriever.encode_texts(pairs["query"]["text"][:]) >= 0, axis=1, bitorder="little"),
    )

    bare = tmp_path / "bare"
    for number, name in enumerate(("b.png", "a/c.JPG", "a/d.webp")):
        (bare / name).parent.mkdir(parents=True, exist_ok=True)
        pairs["train"][number]["image"].save(bare / name)
    (bare / "notes.txt").write_text("no image")
    (bare / "broken.png").write_bytes(b"\x89PNG")
    retriever.images = HashIndex(16)
    unreadable = retriever.add_source(bare)
    assert retriever.images.ids.tolist() == ["a/c.JPG", "a/d.webp", "b.png"]
    assert [reason.partition(":")[0] for reason in unreadable] == [str(bare / "broken.png")]


def test_the_example_of_the_class_runs(trained, monkeypatch, image_paths):
    retriever = CrossMediaRetriever.from_pretrained(str(trained.folder), device="cpu")
    retriever.add_images([str(image_paths[0]), str(image_paths[1])])
    results = retriever.search(text="a boat on the beach", k=1)
    assert results.ids[0][0] in [str(image_paths[0]), str(image_paths[1])]
    assert results.scores.shape == (1, 1)


def test_keyword_arguments_reach_the_model(trained, image_paths, image_hash):
    retriever = CrossMediaRetriever.from_pretrained(trained.folder, dtype=torch.float64)
    assert retriever.model.dtype == torch.float64
    values = retriever.encode_images(image_paths)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, image_hash, atol=1e-4)
