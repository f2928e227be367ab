"""What is made of uploaded files, and what is refused before it is decoded."""

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from cmfah_hf.errors import ImageError
from cmfah_hf.space.uploads import FORMATS, MAX_BYTES, MAX_PIXELS, read_upload


def encoded(image: Image.Image, kind: str, **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


@pytest.fixture
def upload(tmp_path):
    def read(content: bytes, name: str = "picture.png") -> Image.Image:
        path = tmp_path / name
        path.write_bytes(content)
        return read_upload(path)

    return read


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_read_whatever_its_name_says(upload, kind):
    colors = np.zeros((40, 60, 3), np.uint8)
    colors[:, :30] = (200, 30, 40)
    picture = upload(encoded(Image.fromarray(colors), kind), "picture.txt")
    assert (picture.mode, picture.size) == ("RGB", (60, 40))
    left, right = np.asarray(picture)[20, 10], np.asarray(picture)[20, 50]
    assert np.abs(left.astype(int) - (200, 30, 40)).max() < 12
    assert right.max() < 12


def test_a_photograph_is_turned_upright_and_made_small(upload):
    image = Image.new("RGB", (3000, 2000), "blue")
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture = upload(encoded(image, "JPEG", exif=exif))
    assert max(picture.size) <= 1024
    assert picture.height / picture.width == pytest.approx(1.5, abs=0.01)


def test_a_bomb_is_refused_by_its_header_alone(upload):
    side = 10_000  # 100 megapixels, of which a bit each: 12 kB as a file
    bomb = encoded(Image.new("1", (side, side)), "PNG")
    assert len(bomb) < 50_000
    tracemalloc.start()
    with pytest.raises(ImageError, match=r"10,000 x 10,000 pixels; send one of at most 25 megapixels"):
        upload(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    # Beyond twice Pillow's own limit it is Pillow that refuses to open it.
    with pytest.raises(ImageError, match=r"at most 25 megapixels"):
        upload(encoded(Image.new("1", (30_000, 10_000)), "PNG"))
    assert side * side > MAX_PIXELS


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no picture that can be read"),
        (b"nonsense", "no picture that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "no picture that can be read"),
        (encoded(Image.new("RGB", (8, 8)), "TIFF"), "no picture that can be read"),
        (encoded(Image.effect_noise((300, 300), 90), "PNG")[:9000], "damaged or cut short"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * (MAX_BYTES + 1), "larger than 8 MB"),
    ],
    ids=["empty", "text", "svg", "tiff", "cut", "long"],
)
def test_anything_else_is_refused_without_a_path(upload, content, reason, tmp_path):
    with pytest.raises(ImageError, match=reason) as refused:
        upload(content)
    assert str(tmp_path) not in str(refused.value)


def test_fuzzed_pictures_are_read_or_refused_and_nothing_else(upload):
    rng = np.random.default_rng(7)
    whole = {kind: encoded(Image.effect_noise((64, 48), 60).convert("RGB"), kind) for kind in FORMATS}
    refused = 0
    for number in range(150):
        content = bytearray(whole[FORMATS[number % len(FORMATS)]])
        for at in rng.integers(len(content), size=1 + number % 20):
            content[at] = rng.integers(256)
        try:
            assert upload(bytes(content)).mode == "RGB"
        except ImageError:  # and nothing else
            refused += 1
    assert 5 < refused < 150
