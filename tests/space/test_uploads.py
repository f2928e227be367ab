"""Uploads: storage, thumbnails, and files refused before decoding."""

import io
import os
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from image_files import SIZE, image_file
from PIL import Image

from cmfah_hf.errors import ImageError
from cmfah_hf.space.uploads import (
    KEPT_SECONDS,
    MAX_BYTES,
    MAX_PIXELS,
    Uploads,
    open_upload,
    read_upload,
    upload_formats,
)

FORMATS = upload_formats()


def encoded(image: Image.Image, kind: str, **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


@pytest.fixture
def uploads(tmp_path) -> Uploads:
    return Uploads(tmp_path / "uploads")


@pytest.fixture
def upload(uploads):
    def read(content: bytes) -> Image.Image:
        return read_upload(uploads.read(uploads.path_of(uploads.keep(content))))

    return read


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_are_detected_by_content(upload, kind):
    colors = np.zeros((40, 60, 3), np.uint8)
    colors[:, :30] = (200, 30, 40)
    image = upload(encoded(Image.fromarray(colors), kind))
    assert (image.mode, image.size) == ("RGB", (60, 40))
    left, right = np.asarray(image)[20, 10], np.asarray(image)[20, 50]
    assert np.abs(left.astype(int) - (200, 30, 40)).max() < 12
    assert right.max() < 12


def test_a_photograph_is_rotated_upright_and_reduced(upload):
    image = Image.new("RGB", (3000, 2000), "blue")
    exif = image.getexif()
    exif[0x0112] = 6  # EXIF: rotate by 90 degrees
    image = upload(encoded(image, "JPEG", exif=exif))
    assert max(image.size) <= 1024
    assert image.height / image.width == pytest.approx(1.5, abs=0.01)


def test_images_of_phones_are_read_within_the_same_limits():
    assert FORMATS[-2:] == ("HEIF", "AVIF")  # the tests have their libraries
    for ending in ("heic", "avif"):
        content = image_file(ending)
        assert read_upload(content).size == SIZE
        with pytest.raises(ImageError, match=r"48 x 32 pixels; send one of at most 0\.001 megapixels"):
            open_upload(content, max_pixels=1000)


def test_a_bomb_is_refused_by_its_header(upload):
    side = 10_000  # 100 megapixels of one bit each: 12 kB as a file
    bomb = encoded(Image.new("1", (side, side)), "PNG")
    assert len(bomb) < 50_000
    tracemalloc.start()
    with pytest.raises(ImageError, match=r"10,000 x 10,000 pixels; send one of at most 25 megapixels"):
        upload(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    # Beyond twice Pillow's own limit, Pillow itself refuses to open it.
    with pytest.raises(ImageError, match=r"at most 25 megapixels"):
        upload(encoded(Image.new("1", (30_000, 10_000)), "PNG"))
    assert side * side > MAX_PIXELS


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a readable image"),
        (b"nonsense", "not a readable image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "not a readable image"),
        (
            encoded(Image.new("RGB", (8, 8)), "TIFF"),
            "send JPEG, PNG, WEBP, GIF, BMP, HEIF or AVIF",
        ),
        *((image_file(ending), "not a readable image") for ending in ("jxl", "svgz", "dng", "jp2")),
        (encoded(Image.effect_noise((300, 300), 90), "PNG")[:9000], "damaged or cut short"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * MAX_BYTES, "larger than 8 MB"),
    ],
    ids=["empty", "text", "svg", "tiff", "jxl", "svgz", "dng", "jp2", "cut", "long"],
)
def test_other_contents_are_refused_without_a_path(upload, content, reason, tmp_path):
    with pytest.raises(ImageError, match=reason) as refused:
        upload(content)
    assert str(tmp_path) not in str(refused.value)


def test_fuzzed_images_are_read_or_refused(upload):
    rng = np.random.default_rng(7)
    whole = {kind: encoded(Image.effect_noise((64, 48), 60).convert("RGB"), kind) for kind in FORMATS}
    refused = 0
    for number in range(150):
        content = bytearray(whole[FORMATS[number % len(FORMATS)]])
        for at in rng.integers(len(content), size=1 + number % 20):
            content[at] = rng.integers(256)
        try:
            assert upload(bytes(content)).mode == "RGB"
        except ImageError:  # no other exception
            refused += 1
    assert 5 < refused < 150


def planted(uploads: Uploads, kind: str, outside) -> str:
    """Something other than an upload, under a name of the form of uploads."""
    path = uploads.folder / ("cd" * 32)
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    return path.name


@pytest.mark.parametrize("kind", ["missing", "link", "link to a device", "pipe", "folder"])
def test_only_regular_files_are_opened_with_one_message_for_all_refusals(uploads, tmp_path, kind):
    outside = tmp_path / "private.png"
    outside.write_bytes(encoded(Image.new("RGB", (8, 8)), "PNG"))
    uploads.keep(b"x")
    begin = time.monotonic()
    with pytest.raises(ImageError) as refused:
        uploads.read(uploads.path_of(planted(uploads, kind, outside)))
    assert time.monotonic() - begin < 1
    with pytest.raises(ImageError) as foreign:
        uploads.read(outside)
    with pytest.raises(ImageError) as missing:
        uploads.read(tmp_path / "no-such-file.png")
    assert str(refused.value) == str(foreign.value) == str(missing.value)
    uploads.discard(outside)
    assert outside.exists()


def test_a_folder_replaced_by_a_link_is_not_followed(uploads, tmp_path):
    name = uploads.keep(b"x")
    uploads.folder.rename(tmp_path / "moved")
    uploads.folder.symlink_to(tmp_path / "moved")
    with pytest.raises(ImageError, match="not an image that was uploaded here"):
        uploads.read(uploads.path_of(name))


def test_names_are_random_and_paths_are_refused(uploads):
    assert uploads.keep(b"x") != uploads.keep(b"x")
    for name in ("/etc/passwd", "../x", "", None, 3, ["a"], "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n"):
        assert uploads.path_of(name) == uploads.path_of("0" * 64)


def test_total_size_is_bounded_and_the_oldest_uploads_are_deleted_first(tmp_path):
    uploads = Uploads(tmp_path / "uploads", max_total_bytes=1000, max_files=5)
    names = []
    for number in range(12):
        names.append(uploads.keep(b"x" * 300))
        os.utime(uploads.path_of(names[-1]), ns=(number, time.time_ns() + number))
    assert {path.name for path in uploads.folder.iterdir()} == set(names[-3:])
    names = [uploads.keep(b"") for _ in range(20)]
    assert {path.name for path in uploads.folder.iterdir()} <= set(names)
    assert len(list(uploads.folder.iterdir())) == 5
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(uploads.keep, [b"x" * 300] * 40))
    assert sum(path.stat().st_size for path in uploads.folder.iterdir()) <= 1000


def test_uploads_expire_and_other_files_are_kept(uploads):
    old, new = uploads.keep(b"x"), uploads.keep(b"y")
    (uploads.folder / "notes.txt").write_text("mine")
    before = time.time() - KEPT_SECONDS - 1
    for name in (old, "notes.txt"):
        os.utime(uploads.folder / name, (before, before))
    uploads.trim()
    assert {path.name for path in uploads.folder.iterdir()} == {new, "notes.txt"}


def test_a_full_disk_leaves_no_partial_upload(uploads, monkeypatch):
    real = type(uploads.folder).open
    monkeypatch.setattr(type(uploads.folder), "open", lambda path, mode: _Full(real(path, mode)))
    with pytest.raises(OSError, match="No space left"):
        uploads.keep(b"x")
    assert list(uploads.folder.iterdir()) == []


class _Full:
    """A file on a full disk."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, _):
        raise OSError(28, "No space left on device")
