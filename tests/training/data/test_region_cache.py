"""Cached regions against direct calls of the backbone, and the changes that cause recomputation."""

import hashlib
import io
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from cmfah_hf.data.images import decoding
from cmfah_hf.errors import DataError
from cmfah_hf.models import CMFAHImageModel, CMFAHProcessor, image_parts
from cmfah_hf.training import keep_regions
from cmfah_hf.training.data.region_cache import RegionExtractor


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 44, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def image_pairs(contents: list[bytes]) -> datasets.Dataset:
    features = {"id": datasets.Value("string"), "image": datasets.Image(), "text": datasets.Value("string")}
    rows = {
        "id": [f"im{i}" for i in range(len(contents))],
        "image": [{"path": None, "bytes": content} for content in contents],
        "text": ["boat"] * len(contents),
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


@pytest.fixture
def tower(make_config):
    torch.manual_seed(0)
    model = CMFAHImageModel(make_config())
    # Fresh batch norms are the identity; give these real statistics.
    for name, buffer in model.named_buffers():
        if "running_mean" in name:
            buffer.uniform_(-0.2, 0.2)
        if "running_var" in name:
            buffer.uniform_(0.1, 0.5)
    return model


@pytest.fixture
def count_calls(monkeypatch):
    """Counts the batches that the extractor has processed."""
    calls, extract = [], RegionExtractor.__call__

    def counted(self, batch):
        calls.append(len(batch["image"]))
        return extract(self, batch)

    monkeypatch.setattr(RegionExtractor, "__call__", counted)
    return calls


def test_large_images_are_prepared_one_by_one(tower, processor, monkeypatch, caplog):
    contents = [png(0), b"no image", png(1), png(2)]
    batch = {"image": [{"path": None, "bytes": content} for content in contents], "id": list("abcd")}
    extractor, prepared = RegionExtractor(tower, processor), []
    whole, prepare = extractor(batch), type(processor).__call__

    def noted(self, images=None, **kwargs):
        prepared.append(len(images))
        return prepare(self, images=images, **kwargs)

    monkeypatch.setattr(type(processor), "__call__", noted)
    monkeypatch.setattr(decoding, "_PIXELS_AT_ONCE", 1)
    found = extractor(batch)
    assert prepared == [1, 1, 1]
    assert found["readable"] == whole["readable"] == [True, False, True, True]
    np.testing.assert_array_equal(found["region_features"], whole["region_features"])
    only_damaged = extractor({name: values[1:2] for name, values in batch.items()})
    assert only_damaged["readable"] == [False]
    assert "b: " in caplog.text


def test_regions_match_the_backbone(tower, processor):
    contents = [png(i) for i in range(5)]
    tower.train()
    kept = keep_regions(image_pairs(contents), tower, processor, mirrored=True, batch_size=2)
    assert kept["id"][:] == [f"im{i}" for i in range(5)]
    assert kept.features["region_features"] == datasets.Array2D((16, 16), "float16")

    images = [Image.open(io.BytesIO(content)) for content in contents]
    pixel_values = processor(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        backbone = tower.embeddings.backbone.eval()
        for column, values in (("region_features", pixel_values), ("region_features_mirrored", pixel_values.flip(-1))):
            maps = backbone(values).feature_maps[-1]
            expected = maps.permute(0, 2, 3, 1).reshape(5, -1, 16).numpy()
            found = np.stack([kept[row][column] for row in range(5)])
            assert not (found.astype(np.float16) - found).any()  # the cache holds half precision
            np.testing.assert_allclose(found, expected, rtol=2**-10, atol=1e-6)
            assert np.ptp(expected) > 1
    # The image column decodes as before, and a batch of regions comes as one array.
    assert kept[0]["image"].tobytes() == images[0].tobytes()
    assert kept[:3]["region_features"].shape == (3, 16, 16)


def test_cached_regions_give_the_same_encodings_as_images(tower, processor):
    contents = [png(i) for i in range(3)]
    kept = keep_regions(image_pairs(contents), tower, processor)
    pixel_values = processor(images=[Image.open(io.BytesIO(c)) for c in contents], return_tensors="pt")["pixel_values"]
    tower.eval()
    with torch.no_grad():
        direct = tower(pixel_values=pixel_values).hash_values
        from_kept = tower(region_features=torch.from_numpy(kept[:]["region_features"])).hash_values
    torch.testing.assert_close(from_kept, direct, rtol=0, atol=2e-3)


def test_a_batch_is_computed_in_parts_by_threads(tower, processor, monkeypatch):
    extractor, pixels = RegionExtractor(tower, processor), torch.rand(7, 3, *processor.image_shape)
    whole, former, sizes = extractor.regions(pixels), torch.get_num_threads(), []
    extract = tower.embeddings.extract_regions

    def noted(part):
        sizes.append(len(part))
        return extract(part)

    monkeypatch.setattr(image_parts, "PART", pixels[:2].numel())
    monkeypatch.setattr(tower.embeddings, "extract_regions", noted)
    torch.set_num_threads(2)
    try:
        found = extractor.regions(pixels)
    finally:
        torch.set_num_threads(former)
    assert sorted(sizes) == [2, 2, 3]
    np.testing.assert_allclose(found, whole, rtol=2**-9, atol=1e-6)


def test_values_beyond_float16_are_clipped(tower, processor):
    with torch.no_grad():
        last = tower.embeddings.backbone.encoder.stages[-1].layers[-1]
        for module in last.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.fill_(1e6)
    kept = keep_regions(image_pairs([png(0)]), tower, processor)[0]["region_features"]
    assert np.isfinite(kept).all()
    assert kept.max() == np.float16(65504)


def test_cache_is_reused_for_the_same_backbone_and_images(tower, processor, make_config, count_calls):
    pairs = image_pairs([png(10), png(11), png(12)])
    first = keep_regions(pairs, tower, processor)
    assert count_calls == [3]
    # The regions do not depend on the tower's head, the words or the mode.
    torch.manual_seed(1)
    other = CMFAHImageModel(make_config(hash_bits=32))
    other.embeddings.backbone.load_state_dict(tower.embeddings.backbone.state_dict())
    words = CMFAHProcessor.from_vocabulary(make_config(), ["entirely", "other", "words"])
    again = keep_regions(pairs, other.train(), words, batch_size=1)
    assert count_calls == [3]
    np.testing.assert_array_equal(again[:]["region_features"], first[:]["region_features"])


def changed_weight(tower, processor, pairs):
    with torch.no_grad():
        next(tower.embeddings.backbone.parameters()).view(-1)[0] += 1e-3
    return pairs, tower, processor


def changed_statistics(tower, processor, pairs):
    next(b for n, b in tower.named_buffers() if n.endswith("running_mean"))[0] += 1e-3
    return pairs, tower, processor


def changed_mean(tower, processor, pairs):
    processor.image_processor.image_mean = [0.5, 0.4, 0.3]
    return pairs, tower, processor


def changed_std(tower, processor, pairs):
    processor.image_processor.image_std = [0.5, 0.4, 0.3]
    return pairs, tower, processor


def changed_image(tower, processor, pairs):
    return image_pairs([png(20), png(21), png(23)]), tower, processor


@pytest.mark.parametrize("change", [changed_weight, changed_statistics, changed_mean, changed_std, changed_image])
def test_cache_is_recomputed_after_a_change(tower, make_config, count_calls, change):
    processor = CMFAHProcessor.from_vocabulary(make_config(), ["boat"])
    # Unique to this test, so that no other test has cached it.
    pairs = image_pairs([png(20), png(21), hashlib.sha256(change.__name__.encode()).digest(), png(22)])
    before = keep_regions(pairs, tower, processor)[:]["region_features"]
    assert count_calls == [4]
    after = keep_regions(*change(tower, processor, pairs))[:]["region_features"]
    assert len(count_calls) == 2
    assert not np.array_equal(before, after)


def test_mirrored_and_plain_regions_are_cached_separately(tower, processor, count_calls):
    pairs = image_pairs([png(30), png(31)])
    plain = keep_regions(pairs, tower, processor)
    both = keep_regions(pairs, tower, processor, mirrored=True)
    assert count_calls == [2, 2]
    assert "region_features_mirrored" not in plain.column_names
    np.testing.assert_array_equal(plain[:]["region_features"], both[:]["region_features"])
    assert not np.array_equal(both[:]["region_features_mirrored"], both[:]["region_features"])


def test_unreadable_images_are_skipped_and_named(tower, processor, caplog):
    whole = png(40)
    kept = keep_regions(image_pairs([b"not an image", whole, whole[:500], png(41)]), tower, processor)
    assert kept["id"][:] == ["im1", "im3"]
    single = keep_regions(image_pairs([whole]), tower, processor)
    # Within float16 rounding: the convolution of one image may sum in another order than that of four.
    np.testing.assert_allclose(kept[0]["region_features"], single[0]["region_features"], rtol=2e-3, atol=1e-3)
    assert "im0: not an image in a format that Pillow knows" in caplog.text
    assert "im2: damaged or cut short" in caplog.text
    assert "Left out 2 of 4 images" in caplog.text


def test_no_readable_image_is_an_error(tower, processor):
    with pytest.raises(DataError, match=r"^None of the 2 images can be read"):
        keep_regions(image_pairs([b"no", b"neither"]), tower, processor)


PROGRAM = """
import json, sys
import datasets, numpy as np
from cmfah_hf.models import CMFAHImageModel, CMFAHProcessor
from cmfah_hf.training.data.region_cache import RegionExtractor, keep_regions

def fail(self, batch):
    raise RuntimeError("the regions are computed again")
RegionExtractor.__call__ = fail
tower, processor = CMFAHImageModel.from_pretrained(sys.argv[1]), CMFAHProcessor.from_pretrained(sys.argv[1])
kept = keep_regions(datasets.Dataset.from_parquet(sys.argv[2]), tower, processor)
np.save(sys.argv[3], kept[:]["region_features"])
"""


@pytest.mark.slow
def test_cache_is_reused_in_a_new_process(tower, processor, tmp_path, environment, datasets_cache):
    tower.save_pretrained(tmp_path / "tower")
    processor.save_pretrained(tmp_path / "tower")
    image_pairs([png(50), png(51)]).to_parquet(tmp_path / "pairs.parquet")
    kept = keep_regions(datasets.Dataset.from_parquet(str(tmp_path / "pairs.parquet")), tower, processor)
    arguments = [str(tmp_path / name) for name in ("tower", "pairs.parquet", "found.npy")]
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**environment, "HF_DATASETS_CACHE": str(datasets_cache)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), kept[:]["region_features"])


def stream_of(contents: list[bytes], shards: int) -> datasets.IterableDataset:
    return image_pairs(contents).to_iterable_dataset(shards)


def test_regions_of_a_stream_match_the_data_set(tower, processor, count_calls, caplog):
    contents = [png(i) for i in range(60, 67)]
    contents[3] = contents[3][:500]
    expected = keep_regions(image_pairs(contents), tower, processor, mirrored=True)
    count_calls.clear()
    kept = keep_regions(stream_of(contents, 3), tower, processor, mirrored=True, batch_size=2)
    assert isinstance(kept, datasets.IterableDataset)
    assert kept.features["region_features"] == datasets.Array2D((16, 16), "float16")
    assert kept.column_names == ["id", "text", "region_features", "region_features_mirrored"]
    assert "Left out 1 of 7 images" in caplog.text
    rows = list(kept.with_format("numpy"))
    assert [row["id"] for row in rows] == expected["id"][:]
    for name in ("region_features", "region_features_mirrored"):
        found = np.stack([row[name] for row in rows])
        # With another batch size a convolution may round differently.
        np.testing.assert_allclose(found, expected[:][name], rtol=2e-3, atol=1e-5)
    calls = len(count_calls)
    again = keep_regions(stream_of(contents, 3), tower, processor, mirrored=True)
    assert len(count_calls) == calls > 0
    np.testing.assert_array_equal(next(iter(again.with_format("numpy")))["region_features"], rows[0]["region_features"])


def test_regions_of_a_stream_resume_after_an_interruption(tower, processor, monkeypatch, count_calls):
    from cmfah_hf.training.data import region_cache

    monkeypatch.setattr(region_cache, "_PIECE", 4)
    contents = [png(i) for i in range(70, 90)]
    extract, seen = RegionExtractor.__call__, []

    def breaking(self, batch):
        if "im15" in batch["id"] and "broken" not in seen:
            seen.append("broken")
            raise KeyboardInterrupt
        seen.extend(batch["id"])
        return extract(self, batch)

    monkeypatch.setattr(RegionExtractor, "__call__", breaking)
    with pytest.raises(KeyboardInterrupt):
        keep_regions(stream_of(contents, 2), tower, processor, batch_size=2)
    before = seen.index("broken")
    kept = keep_regions(stream_of(contents, 2), tower, processor, batch_size=2)
    # Two shards of 10 rows, in pieces of 4, 4 and 2: one piece of the second shard was complete.
    assert seen[before + 1] == "im14"
    expected = keep_regions(image_pairs(contents), tower, processor, batch_size=2)
    rows = list(kept.with_format("numpy"))
    assert [row["id"] for row in rows] == [f"im{i}" for i in range(20)]
    np.testing.assert_array_equal(np.stack([row["region_features"] for row in rows]), expected[:]["region_features"])


def test_processes_share_the_shards_of_a_stream(tower, processor, count_calls):
    import threading

    contents = [png(i) for i in range(90, 96)]
    kept = [None, None]

    def run(index):
        kept[index] = keep_regions(stream_of(contents, 3), tower, processor, num_processes=2, process_index=index)

    threads = [threading.Thread(target=run, args=[index]) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(count_calls) == 6
    for part in kept:
        assert [row["id"] for row in part] == [f"im{i}" for i in range(6)]


def test_stream_without_readable_images_is_an_error(tower, processor):
    with pytest.raises(DataError, match=r"^None of the 3 images can be read"):
        keep_regions(stream_of([b"no", b"neither", b"nor this"], 2), tower, processor)


def test_extractor_as_a_stage_of_a_stream(tower, processor):
    contents = [png(i) for i in range(3)]
    raw = stream_of(contents, 2).decode(False)
    rows = list(raw.map(RegionExtractor(tower, processor), batched=True, batch_size=3, remove_columns=["image"]))
    expected = keep_regions(image_pairs(contents), tower, processor)[:]["region_features"]
    np.testing.assert_array_equal(np.stack([row["region_features"] for row in rows]), expected)
    assert all(row["readable"] for row in rows)
