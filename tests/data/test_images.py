"""Reading single images: every kind of source, and every kind of damaged file."""

import io
import logging
import random

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cmfah_hf.data import decode_image, drop_unreadable, make_scenes
from cmfah_hf.data.images.decoding import few_at_a_time
from cmfah_hf.errors import ImageError

LOSSLESS = ["PNG", "BMP", "TIFF", "GIF", "PPM"]
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


class Pipe(io.RawIOBase):
    """Binary input that cannot seek, like standard input."""

    def __init__(self, content):
        self.content = content

    def readable(self):
        return True

    def readinto(self, buffer):
        part, self.content = self.content[: len(buffer)], self.content[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def test_every_kind_of_source_gives_the_same_image(noise, tmp_path):
    content = encoded(noise, "PNG")
    path = tmp_path / "noise.png"
    path.write_bytes(content)
    sources = [
        {"path": str(path), "bytes": None},
        {"path": "not there", "bytes": content},
        str(path),
        path,
        path.as_uri(),
        content,
        bytearray(content),
        memoryview(content),
        io.BytesIO(content),
        io.BufferedReader(Pipe(content)),
        noise,
        Image.open(path),
    ]
    for source in sources:
        image = decode_image(source)
        assert image.mode == "RGB", source
        assert image.tobytes() == noise.tobytes(), source


@pytest.mark.parametrize("kind", [*LOSSLESS, "JPEG", "WEBP"])
def test_truncated_files(kind, noise, tmp_path):
    content = encoded(noise, kind)
    path = tmp_path / f"cut.{kind.lower()}"
    for part in (0.3, 0.6, 0.8):
        path.write_bytes(content[: int(part * len(content))])
        with pytest.raises(ImageError) as caught:
            decode_image(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_errors_name_files_that_are_no_images(tmp_path):
    (tmp_path / "text.jpg").write_text("this is not an image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    for name, reason in {
        "text.jpg": "not an image in a format that Pillow knows",
        "empty.jpg": r"empty \(0 bytes\)",
        "folder.jpg": "this is a folder",
        "absent.jpg": "there is no such file",
    }.items():
        with pytest.raises(ImageError, match=rf"{name}: .*{reason}"):
            decode_image({"path": str(tmp_path / name), "bytes": None})
    with pytest.raises(ImageError, match="the query: not an image"):
        decode_image(b"nothing", name="the query")
    with pytest.raises(ImageError, match="neither a path nor bytes"):
        decode_image({"path": None, "bytes": None})
    with pytest.raises(ImageError, match="neither a path nor bytes"):
        decode_image(None)
    with pytest.raises(ImageError, match="a int is not an image"):
        decode_image(7)
    with pytest.raises(ImageError, match="binary mode"):
        decode_image(io.StringIO("text"))


def test_random_damage_reads_or_raises_an_image_error(noise):
    """Pillow's parsers raise many exception types on damaged data; only one type reaches the caller."""
    chance = random.Random(0)
    outcomes = {True: 0, False: 0}
    for kind in [*LOSSLESS, "JPEG", "WEBP", "ICO", "TGA", "PCX", "SGI"]:
        content = encoded(noise, kind)
        for _ in range(25):
            damaged = bytearray(content)
            for _ in range(chance.randint(1, 8)):
                damaged[chance.randrange(min(len(damaged), 200))] = chance.randrange(256)
            try:
                decode_image(bytes(damaged), name="damaged").tobytes()
                outcomes[True] += 1
            except ImageError as error:
                assert str(error).startswith("damaged: ")  # noqa: PT017
                outcomes[False] += 1
    assert min(outcomes.values()) > 20


def test_a_decompression_bomb_is_refused(noise, monkeypatch):
    content = encoded(noise, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16 * 24 // 2 - 1)
    with pytest.raises(ImageError, match=r"bomb\.png: too large to be read safely"):
        decode_image(content, name="bomb.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation, tmp_path):
    upright = Image.new("RGB", (32, 16), "blue")
    upright.paste("red", (0, 0, 16, 8))
    # The pixels as a camera stores them for an image to be displayed as `upright`.
    stored = {
        1: lambda x: x,
        2: lambda x: x.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda x: x.transpose(Image.Transpose.ROTATE_180),
        4: lambda x: x.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda x: x.transpose(Image.Transpose.TRANSPOSE),
        6: lambda x: x.transpose(Image.Transpose.ROTATE_90),
        7: lambda x: x.transpose(Image.Transpose.TRANSVERSE),
        8: lambda x: x.transpose(Image.Transpose.ROTATE_270),
    }[orientation](upright)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "turned.png"
    stored.save(path, exif=exif)
    once = decode_image(path)
    assert once.tobytes() == upright.tobytes()
    assert decode_image(once).tobytes() == upright.tobytes()


DAMAGED_EXIF = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\xff\x01\x12"


def test_an_image_with_damaged_exif_is_read(noise):
    assert decode_image(encoded(noise, "PNG", exif=DAMAGED_EXIF)).tobytes() == noise.tobytes()
    assert decode_image(encoded(noise.resize((64, 64)), "JPEG", exif=DAMAGED_EXIF), None, (4, 4)).size == (16, 16)


@given(
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    least=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    orientation=st.integers(1, 8),
)
def test_a_jpeg_is_not_decoded_below_three_times_the_size_that_is_needed(size, least, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = encoded(Image.linear_gradient("L").resize(size), "JPEG", exif=exif)
    full, reduced = decode_image(content), decode_image(content, None, least)
    factor = max(
        each
        for each in (1, 2, 4, 8)
        if each == 1 or all(f // (3 * n) >= each for f, n in zip(full.size, least, strict=True))
    )
    assert reduced.size == tuple(-(-side // factor) for side in full.size)
    if factor == 1:
        assert reduced.tobytes() == full.tobytes()


def test_only_jpegs_that_are_decoded_here_are_reduced(noise, tmp_path):
    assert decode_image(encoded(noise, "PNG"), None, (1, 1)).size == noise.size
    noise.save(tmp_path / "x.jpg")
    with Image.open(tmp_path / "x.jpg") as opened:
        assert decode_image(opened, None, (1, 1)).size == noise.size


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("P", (4, 4), i) for i in range(3)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 250, 0, 0, 0, 250, 0])
    path = tmp_path / "moving.gif"
    frames[1].save(path, save_all=True, append_images=[frames[2], frames[0]])
    assert decode_image(path).convert("RGB").getpixel((0, 0)) == (250, 0, 0)
    opened = Image.open(path)
    opened.seek(2)
    assert decode_image(opened).convert("RGB").getpixel((0, 0)) == (250, 0, 0)
    image = decode_image(path)
    path.unlink()
    assert image.copy().size == (4, 4)  # no longer needs the file


@pytest.fixture
def partly_bad(tmp_path):
    """Six images: 1 is a text, 3 is truncated, and 4 is missing."""
    scenes = make_scenes(6, image_size=32)
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for scene, path in zip(scenes, paths, strict=True):
        scene["image"].save(path)
    paths[1].write_text("text")
    paths[3].write_bytes(paths[3].read_bytes()[:300])
    paths[4].unlink()
    data = datasets.Dataset.from_dict({"id": [f"p{i}" for i in range(6)], "image": [str(path) for path in paths]})
    return data.cast_column("image", datasets.Image()), scenes


@pytest.mark.parametrize("threads", [1, 3])
def test_drop_unreadable(partly_bad, threads, caplog):
    data, scenes = partly_bad
    with caplog.at_level(logging.WARNING):
        kept = drop_unreadable(data, num_threads=threads)
    assert kept["id"][:] == ["p0", "p2", "p5"]
    assert kept.features == data.features
    assert [row["image"].tobytes() for row in kept] == [scenes[i]["image"].tobytes() for i in (0, 2, 5)]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 4
    for message, row, reason in zip(
        messages, ("p1", "p3", "p4"), ("not an image", "cut short", "no such file"), strict=False
    ):
        assert repr(row) in message
        assert f"{row[1]}.png" in message
        assert reason in message
    assert "3 of 6 images" in messages[-1]


def test_drop_unreadable_from_streams(partly_bad, caplog):
    data, scenes = partly_bad
    stream = datasets.IterableDatasetDict(train=data.to_iterable_dataset(3))
    kept = drop_unreadable(stream)["train"]
    with caplog.at_level(logging.WARNING):
        rows = list(kept)
    assert [row["id"] for row in rows] == ["p0", "p2", "p5"]
    assert [row["image"].tobytes() for row in rows] == [scenes[i]["image"].tobytes() for i in (0, 2, 5)]
    assert kept.features == data.features
    assert kept.num_shards == 3
    messages = [record.getMessage() for record in caplog.records]
    assert [message.rsplit(". ", 1)[-1] for message in messages] == [f"{n} unreadable so far." for n in (1, 2, 3)]
    assert "p4" in messages[-1]
    # Users can still disable decoding, and further stages can follow.
    assert [row["image"].keys() for row in kept.decode(False)] == [{"bytes": None, "path": None}.keys()] * 3
    assert [row["size"] for row in kept.map(lambda row: {"size": row["image"].width})] == [32] * 3


def test_dropping_nothing_changes_nothing(caplog):
    scenes = make_scenes(3, image_size=32)
    with caplog.at_level(logging.WARNING):
        assert drop_unreadable(scenes) is scenes
    assert not caplog.records


def test_few_large_images_are_decoded_at_a_time():
    """Lists of ten million pixels or one image, each complete before the next image is taken."""
    sides, taken = [2000, 2000, 2000, 4000, 10, 10], []

    def images():
        for side in sides:
            taken.append(side)
            yield Image.new("1", (side, side))

    found = []
    for few in few_at_a_time(images()):
        found.append([image.width for image in few])
        assert taken == [side for own in found for side in own]
    assert found == [[2000, 2000, 2000], [4000], [10, 10]]
    assert list(few_at_a_time([])) == []
