"""Formats by extras: pixels, orientation, limits, and drawings that show nothing from outside their file."""

import base64
import io
from pathlib import Path

import imagecodecs
import numpy as np
import pillow_heif
import pytest
from image_files import SIZE, image, image_file, raw_file, svg_file
from PIL import Image

from cmfah_hf.data.images import decode_image
from cmfah_hf.data.images import formats as formats_module
from cmfah_hf.data.images.extras import EXTRAS, extra_of
from cmfah_hf.data.images.jpeg_xl import JPEGXLImageFile
from cmfah_hf.errors import ImageError
from cmfah_hf.models.image_modes import to_rgb


def sides(found: Image.Image) -> tuple[str, str]:
    """The colors of the left and the right side."""
    pixels = np.asarray(to_rgb(found).resize((4, 4), Image.Resampling.BOX)).astype(int)
    return tuple("red" if pixels[2, x, 0] > pixels[2, x, 2] + 40 else "blue" for x in (0, 3))


@pytest.mark.parametrize(
    ("ending", "size"),
    [("heic", SIZE), ("avif", SIZE), ("jxl", SIZE), ("dng", (24, 16)), ("svg", (1024, 683)), ("svgz", (1024, 683))],
)
def test_formats_are_decoded(ending, size, tmp_path):
    content = image_file(ending)
    found = decode_image(content, f"x.{ending}")
    assert (found.size, sides(found)) == (size, ("red", "blue"))
    if ending == "jxl":
        np.testing.assert_array_equal(np.asarray(found), np.asarray(image()))  # it was written without loss
    (tmp_path / f"x.{ending}").write_bytes(content)
    assert decode_image(tmp_path / f"x.{ending}").tobytes() == found.tobytes()
    for cut in (3, 20, len(content) // 2):
        with pytest.raises(ImageError) as caught:
            decode_image(content[:cut], "x")
        assert "\n" not in str(caught.value)


def test_orientation_is_applied_once():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = SIZE[::-1]
    jpeg = image_file("jpg", exif=exif)
    # `irot` in the file, as telephones write it.
    for content in (image_file("heic", exif=exif.tobytes()), image_file("avif", exif=exif), jpeg):
        assert decode_image(content, "x").size == turned
    assert decode_image(imagecodecs.jpegxl_encode_jpeg(jpeg), "x").size == turned
    assert decode_image(raw_file(orientation=6), "x.dng").size == (16, 24)


@pytest.mark.parametrize("shape", [(32, 48), (32, 48, 2), (32, 48, 4), (64, 3001, 3), (8, 8, 3), (7, 1000)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_jpeg_xl_has_its_size_in_the_header(shape, kind):
    values = np.random.default_rng(0).integers(0, 255, shape)
    values = values / 255 if kind is np.float32 else values * (257 if kind is np.uint16 else 1)
    content = imagecodecs.jpegxl_encode(values.astype(kind), lossless=True)
    found = decode_image(content, "x.jxl")
    assert JPEGXLImageFile(io.BytesIO(content)).size == found.size == shape[1::-1]
    expected = np.rint(values * 255) if kind is np.float32 else values // 257 if kind is np.uint16 else values
    if found.mode != "I;16":
        np.testing.assert_allclose(np.asarray(found), expected, atol=1)


@pytest.mark.parametrize("ending", ["heic", "avif", "jxl", "dng"])
def test_large_images_are_refused_before_they_are_decoded(ending, monkeypatch):
    content = image_file(ending)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIZE[0] * SIZE[1] // 2 - 1)
    for name in ("JPEGXLImageFile._decoded", "RawImageFile._decoded"):
        module = "jpeg_xl" if name.startswith("JPEG") else "raw"
        monkeypatch.setattr(f"cmfah_hf.data.images.{module}.{name}", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(ImageError, match="too large to be read safely"):
        decode_image(content, f"x.{ending}")


def drawn(more: str) -> tuple[int, int, int]:
    """The color of the middle of a drawing with these elements on it."""
    found = to_rgb(decode_image(svg_file(more).encode(), "x.svg"))
    return found.getpixel((found.width // 2 + 8, found.height // 2))


@pytest.fixture
def secret(tmp_path):
    Image.new("RGB", (4, 4), "lime").save(tmp_path / "secret.png")
    return tmp_path / "secret.png"


BLUE = (0, 0, 240)


def test_drawings_show_nothing_from_outside(secret, monkeypatch):
    monkeypatch.chdir(secret.parent)
    place = 'width="48" height="32"'
    inner = svg_file(f'<image {place} xlink:href="{secret}"/>').encode()
    links = [
        str(secret),
        secret.name,
        f"file://{secret}",
        f"./{secret.name}",
        " " + str(secret),
        "http://127.0.0.1/x.png",
    ]
    links.append("data:image/svg+xml;base64," + base64.b64encode(inner).decode())
    for link in links:
        own = f'<image {place} xlink:href="{link}"/><image {place} href="{link}"/>'
        own += f'<filter id="f"><feImage {place} href="{link}"/></filter><rect {place} filter="url(#f)"/>'
        assert drawn(own) == BLUE
    # An image within the drawing is shown.
    content = base64.b64encode(secret.read_bytes()).decode()
    assert drawn(f'<image {place} href="data:image/png;base64,{content}"/>') == (0, 255, 0)
    large = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(large, "PNG")
    content = base64.b64encode(large.getvalue()).decode()
    assert drawn(f'<image {place} href="data:image/png;base64,{content}"/>') == BLUE


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ('<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>', "defines the entity 'x'"),
        ('<!DOCTYPE svg [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]>', "defines the entity 'b'"),
        ("<g>", "is not valid XML"),
        (f"<svg xmlns='http://www.w3.org/2000/svg'>{'<g>' * 200}", "is nested more than 100 deep"),
    ],
)
def test_bad_drawings_are_refused(head, message):
    with pytest.raises(ImageError, match=message):
        decode_image((head + svg_file()).encode(), "x.svg")


def test_drawings_of_programs():
    plain = '<!DOCTYPE svg [<!ENTITY ns "http://www.w3.org/2000/svg">]><svg xmlns="&ns;" viewBox="0 0 10 20"/>'
    assert decode_image(plain.encode(), "x.svg").size == (512, 1024)
    for attributes, size in {
        'width="100%" height="100%"': (1024, 1024),
        'viewBox="0,0 1e9 5"': (1024, 1024),
        'width="10mm" height="1000mm"': (10, 1024),
        'width="1" height="1e300"': (1024, 1024),
        "": (1024, 1024),
    }.items():
        assert decode_image(svg_file("", attributes).encode(), "x.svg").size == size, attributes


def test_other_tiff_files_are_no_raw_images():
    found = decode_image(image_file("tif"), "x.tif")
    assert (found.format or "TIFF", found.size) == ("TIFF", SIZE)


def test_each_extra_is_declared_and_named():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    for extra in EXTRAS:
        assert f'\n{extra.name} = ["{extra.package}>=' in text
        assert all(extra_of(ending) is extra for ending in extra.endings)
    assert extra_of(".mp4") is None
    pillow_heif.register_heif_opener()
    formats_module.register_formats.cache_clear()
    formats_module.register_formats()  # a second time changes nothing
    assert Image.ID.count("RAW") == 1
