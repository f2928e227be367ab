"""Images that are prepared in threads ahead of the model: order, codes, bounds, errors."""

import threading
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from cmfah_hf.data.images import decoding
from cmfah_hf.errors import ImageError, QueryError
from cmfah_hf.models import image_parts
from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex, ImageOptions, encoder
from cmfah_hf.retrieval.preparation import ImagePreparation
from cmfah_hf.retrieval.torch_encoder import TorchEncoder, TorchPixels

WAIT_S = 60


@pytest.fixture(scope="module")
def retriever(trained):
    return CrossMediaRetriever.from_pretrained(trained.folder, device="cpu")


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    """JPEGs of a size at which they can be decoded at a half, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("jpegs")
    found = []
    for number, path in enumerate(sorted((trained.scenes / "train").glob("*.png"))[:40]):
        found.append(folder / f"{number}.jpg")
        Image.open(path).convert("RGB").resize((400, 410)).save(found[-1])
    found[7].write_bytes(found[7].read_bytes()[:900])
    return found


def prepare(retriever, workers):
    return ImagePreparation(TorchPixels(retriever.processor, torch.device("cpu")), ImageOptions(workers)).prepared


def solid(number, least):
    return number, Image.new("RGB", (8, 8), (number, 0, 0))


def test_batches_keep_their_order_and_pixels(retriever):
    batches = [range(start, min(start + 37, 150)) for start in range(0, 150, 37)]
    found = {}
    for workers in (1, 5):
        with prepare(retriever, workers)(batches, solid) as prepared:
            found[workers] = list(prepared)
        assert [note for batch in found[workers] for note in batch.notes] == list(range(150))
    wanted = [retriever.processor(images=[solid(n, None)[1] for n in own], return_tensors="pt") for own in batches]
    for one, many, own in zip(found[1], found[5], wanted, strict=True):
        assert torch.equal(one.pixel_values, own["pixel_values"])
        assert torch.equal(many.pixel_values, own["pixel_values"])


@pytest.mark.parametrize("fast_decoding", [False, True])
def test_codes_do_not_depend_on_the_number_of_workers(retriever, files, fast_decoding):
    found = []
    for workers in (1, 4):
        retriever.image_options = ImageOptions(workers, fast_decoding)
        retriever.images = HashIndex(16)
        left_out = retriever.add_images(files, batch_size=16)
        found.append((retriever.images.codes.tolist(), retriever.images.ids.tolist(), left_out))
    retriever.image_options = ImageOptions()
    assert found[0] == found[1]
    assert len(found[0][1]) == 39
    assert len(found[0][2]) == 1
    assert "7.jpg: damaged or cut short" in found[0][2][0]


def test_images_are_read_while_the_model_encodes(retriever):
    """The later of two batches is read while the caller holds the first."""
    later = threading.Event()

    def read(number, least):
        if number >= 16:
            later.set()
        return solid(number, least)

    with prepare(retriever, 2)([range(16), range(16, 32)], read) as prepared:
        assert next(prepared).notes == list(range(16))
        assert later.wait(WAIT_S)
        assert next(prepared).notes == list(range(16, 32))


def test_memory_is_bounded(retriever):
    """While the caller holds a batch, only few further ones are taken from the source."""
    taken = []

    def source():
        for number in range(200):
            taken.append(number)
            yield [number % 256] * 16

    with prepare(retriever, 2)(source(), solid) as prepared:
        for number, _ in zip(range(50), prepared, strict=False):
            assert len(taken) <= number + 1 + 2 * 2 + 1
    assert len(taken) < 60


def test_few_large_images_are_decoded_at_a_time(retriever, monkeypatch):
    """A thread resizes what it has decoded once that has many pixels; what it makes of the images stays the same."""
    sizes, at_once = [], 3 * 64
    whole = TorchPixels(retriever.processor, torch.device("cpu"))
    monkeypatch.setattr(decoding, "_PIXELS_AT_ONCE", at_once)

    class Noted(TorchPixels):
        def pixels(self, images):
            sizes.append([image.width * image.height for image in images])
            return super().pixels(images)

    def read(number, least):  # every fifth is unreadable, the others are of 64 or 256 pixels
        side = 8 if number % 2 else 16
        return number, None if number % 5 == 4 else Image.new("RGB", (side, side), (number, 0, 0))

    noted = ImagePreparation(Noted(retriever.processor, torch.device("cpu")), ImageOptions(2)).prepared
    with noted([range(50), [4, 9]], read) as prepared:
        first, unreadable = list(prepared)
    assert first.notes == list(range(50))
    assert unreadable.pixel_values is None
    assert torch.equal(first.pixel_values, whole.pixels([read(n, None)[1] for n in range(50) if n % 5 != 4]))
    assert sum(map(len, sizes)) == 40
    assert all(sum(own[:-1]) < at_once for own in sizes)


def test_an_error_comes_in_its_turn_and_stops_the_threads(retriever):
    def read(number, least):
        if number == 40:
            raise ImageError("40: damaged")
        return solid(number, least)

    got = []

    def take_all():
        with prepare(retriever, 3)([range(start, start + 20) for start in range(0, 4000, 20)], read) as prepared:
            for batch in prepared:
                got.append(batch.notes[0])

    with pytest.raises(ImageError, match="40: damaged"):
        take_all()
    assert got == [0, 20]
    for thread in threading.enumerate():
        if thread.name.startswith("images"):
            thread.join(WAIT_S)
            assert not thread.is_alive()


def test_workers_compute_in_one_thread_and_change_no_setting(retriever):
    former, seen = torch.get_num_threads(), set()
    torch.set_num_threads(3)
    try:

        def read(number, least):
            seen.add(torch.get_num_threads())
            return solid(number, least)

        with prepare(retriever, 2)([range(40)], read) as prepared:
            list(prepared)
        assert (seen, torch.get_num_threads()) == ({1}, 3)
    finally:
        torch.set_num_threads(former)


def test_large_batches_are_encoded_in_parts_with_the_same_codes(retriever, monkeypatch):
    pixels = torch.rand(10, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    whole, former, used = retriever.encode_pixels(pixels), torch.get_num_threads(), []
    monkeypatch.setattr(image_parts, "PART", pixels[:3].numel())
    hashed = retriever.model.get_image_hash

    def noted(part):
        used.append((len(part), torch.get_num_threads(), torch.is_inference_mode_enabled()))
        return hashed(part)

    monkeypatch.setattr(retriever.model, "get_image_hash", noted)
    for threads, threads_each in [(1, 1), (2, 1), (7, 2)]:
        used.clear()
        torch.set_num_threads(threads)
        try:
            found = retriever.encode_pixels(pixels)
            assert torch.get_num_threads() == threads
            assert sorted(used) == [(size, threads_each, True) for size in (3, 3, 4)]
            retriever.encode_pixels(pixels[:5])  # too few for parts
            assert used.pop() == (5, threads, True)
        finally:
            torch.set_num_threads(former)
        np.testing.assert_allclose(found, whole, atol=1e-6)


@pytest.fixture(params=[1, 2, 9])
def threads(request):
    former = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(former)


def test_batches_are_encoded_at_the_same_time_in_their_order(retriever, threads, monkeypatch):
    """Up to four batches, which share the threads; nothing is encoded long before it is taken."""
    batches = [range(start, start + 8) for start in range(0, 160, 8)]
    numbers, begun, shown = set(), [], []
    original = TorchEncoder.encode_pixels

    def noted(self, pixel_values):
        numbers.add(torch.get_num_threads())
        begun.append(len(pixel_values))
        return original(self, pixel_values)

    class Bar(nullcontext):
        def __enter__(self):
            return self

        def update(self, count):
            shown.append(count)

    def solid_if_sound(number, least):
        return solid(number, least) if not 16 <= number < 24 else (number, None)

    monkeypatch.setattr(TorchEncoder, "encode_pixels", noted)
    monkeypatch.setattr(encoder, "progress_bar", lambda total, title, progress: Bar())
    taken, codes = [], []
    with retriever.encoding(batches, solid_if_sound, 160, True) as encoded:
        for number, (batch, codes_NK) in enumerate(encoded):
            assert len(shown) == number
            assert len(begun) <= number + 1 + 4
            taken += batch.notes
            codes.append(codes_NK)
    assert taken == list(range(160))
    assert codes[2] is None
    assert numbers == {max(threads // 4, 1)}
    assert sum(shown) == 160
    images = [solid(number, None)[1] for own in batches for number in own if not 16 <= number < 24]
    wanted = retriever.model.get_image_hash(retriever.processor(images=images, return_tensors="pt")["pixel_values"])
    np.testing.assert_allclose(np.concatenate([own for own in codes if own is not None]), wanted.detach(), atol=1e-6)


def test_an_error_of_the_model_comes_in_its_turn_and_stops_the_threads(retriever, threads, monkeypatch):
    original, calls, lock = TorchEncoder.encode_pixels, [], threading.Lock()

    def failing(self, pixel_values):
        red = int(pixel_values[0, 0].max() > 0.9)  # of the fourth batch
        with lock:
            calls.append(red)
        if red:
            raise KeyboardInterrupt
        return original(self, pixel_values)

    def read(number, least):
        return number, Image.new("RGB", (8, 8), (255 if number == 6 else 0, 0, 0))

    got = []

    def encode_all():
        with retriever.encoding([[n, n + 1] for n in range(0, 400, 2)], read) as encoded:
            for batch, _ in encoded:
                got.append(batch.notes[0])

    monkeypatch.setattr(TorchEncoder, "encode_pixels", failing)
    with pytest.raises(KeyboardInterrupt):
        encode_all()
    assert got == [0, 2, 4]
    assert len(calls) <= 4 + 4
    for thread in threading.enumerate():
        if thread.name.startswith("batches"):
            thread.join(WAIT_S)
            assert not thread.is_alive()


def test_options_are_checked(retriever):
    with pytest.raises(QueryError, match="workers is 0; give 1 or more"):
        prepare(retriever, 0)


def test_half_precision_keeps_nearly_all_bits(retriever, files):
    sound = [path for path in files if path.stem != "7"]
    full = retriever.encode_images(sound)
    retriever.image_options = ImageOptions(half=True)
    half = retriever.encode_images(sound)
    retriever.image_options = ImageOptions()
    assert half.dtype == full.dtype
    assert 0 < abs(half - full).max() < 0.1
    assert ((half >= 0) == (full >= 0)).mean() > 0.9
