"""Encoding in Ray processes against the retriever in this process."""

import datasets
import numpy as np
import pytest

pytest.importorskip("ray")

from cmfah_hf.errors import CheckpointError, DataError, HashIndexError, QueryError
from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex, ShardedHashIndex, encode_with_ray

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def retriever(trained):
    return CrossMediaRetriever.from_pretrained(trained.folder, device="cpu")


@pytest.fixture(scope="module")
def pairs(trained):
    """24 images with ids, texts and years; two are unreadable, one has no bytes."""
    paths = sorted((trained.scenes / "train").glob("*.png"))[:24]
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    images[3]["bytes"] = b"no image"
    images[17] = {"bytes": images[17]["bytes"][:200], "path": None}
    images[20] = {"bytes": None, "path": None}
    rows = {
        "id": [f"é/{path.stem}" for path in paths],
        "image": images,
        "text": ["boat sun", "red car", "", "xyzzy"] * 6,
        "year": list(range(24)),
    }
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def own(retriever, pairs, ids):
    """The index that the retriever itself builds from the images, and the reasons for skipped images."""
    retriever.images = HashIndex(retriever.model.config.hash_bits)
    left_out = retriever.add_images(pairs if ids else pairs.remove_columns("id"), batch_size=5)
    return retriever.images, left_out


def test_images_and_metadata_of_a_data_set_into_shards(ray_cluster, trained, retriever, pairs, tmp_path, caplog):
    expected, left_out = own(retriever, pairs, ids=True)
    with ShardedHashIndex(16, 2, folder=tmp_path / "index", num_cpus=0.5) as index:
        found = encode_with_ray(
            pairs,
            trained.folder,
            index,
            metadata=["year"],
            batch_size=5,
            add_size=9,
            concurrency=2,
        )
        assert found == left_out
        assert len(found) == 3
        assert all(reason in caplog.text for reason in found)
        assert len(index) == len(expected) == 21
        assert index.model == retriever.fingerprint
        index.save()
    with ShardedHashIndex.load(tmp_path / "index", num_cpus=0.5) as index:
        assert index.model == retriever.fingerprint
        retriever.images = index
        index.model = "0" * 32
        with pytest.raises(HashIndexError, match="codes of another model"):
            retriever.search(text="boat")
        queries = np.random.default_rng(0).normal(size=(4, 16)) / 16
        for metric in ("hamming", "aqd"):
            here, there = index.search(queries, 21, metric), expected.search(queries, 21, metric)
            assert here.ids.tolist() == there.ids.tolist()
            assert here.scores.tobytes() == there.scores.tobytes()
        years = dict(zip(pairs["id"], pairs["year"], strict=True))
        assert here.metadata["year"].to_pylist() == [years[item] for item in here.ids.ravel()]


def test_numbered_images_and_texts_of_parquet_files(ray_cluster, trained, retriever, pairs, tmp_path):
    for part in range(3):
        pairs.select(range(8 * part, 8 * part + 8)).remove_columns("id").to_parquet(tmp_path / f"part-{part}.parquet")
    expected, left_out = own(retriever, pairs, ids=False)
    index = HashIndex(16)
    assert encode_with_ray(tmp_path, trained.folder, index, batch_size=3, add_size=4) == left_out
    assert left_out[0].startswith("3: ")
    assert index.ids.tolist() == expected.ids.tolist() == [row for row in range(24) if row not in (3, 17, 20)]
    np.testing.assert_array_equal(index.codes, expected.codes)

    retriever.texts = HashIndex(16)
    retriever.add_texts(pairs["text"][8:])
    index = HashIndex(16)
    files = [tmp_path / "part-1.parquet", str(tmp_path / "part-2.parquet")]
    assert encode_with_ray(files, trained.folder, index, "texts", batch_size=7) == []
    assert index.ids.tolist() == list(range(16))
    np.testing.assert_array_equal(index.codes, retriever.texts.codes)


def test_unencodable_input_is_named(ray_cluster, trained, pairs, tmp_path):
    index = HashIndex(16)
    for error, message, act in (
        (DataError, "no column 'photo'; it has id, image", lambda: encode(pairs, column="photo")),
        (DataError, "no column 'place'", lambda: encode(pairs, metadata=["place"])),
        (DataError, "no such file", lambda: encode(tmp_path / "none.parquet")),
        (DataError, "A DatasetDict cannot .* one split", lambda: encode(datasets.DatasetDict(train=pairs))),
        (QueryError, "batch_size is 0", lambda: encode(pairs, batch_size=0)),
        (QueryError, "what is 'sounds'", lambda: encode(pairs, what="sounds")),
        (CheckpointError, "a folder without a config", lambda: encode(pairs, model=tmp_path)),
        (HashIndexError, "16 bits, the index has 64", lambda: encode(pairs.select([0]), index=HashIndex(64))),
    ):

        def encode(source, model=trained.folder, index=index, **kwargs):
            return encode_with_ray(source, model, index, **kwargs)

        with pytest.raises(error, match=message):
            act()
    assert len(index) == 0


def test_codes_of_another_model_are_refused(ray_cluster, trained, retriever, pairs):
    index = HashIndex(16, model="0" * 32)
    index.add(np.ones((1, 16)), ids=["theirs"])
    with pytest.raises(HashIndexError, match="The index holds codes of another model"):
        encode_with_ray(pairs, trained.folder, index)
    assert index.ids.tolist() == ["theirs"]
    encode_with_ray(pairs, trained.folder, index, any_model=True)
    assert (len(index), index.model) == (22, "0" * 32)
    index = HashIndex(16)  # encoded by hand
    index.add(np.ones((1, 16)), ids=["by hand"])
    encode_with_ray(pairs, trained.folder, index)
    assert (len(index), index.model) == (22, None)
