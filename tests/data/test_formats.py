"""Formats by extras: pixels, orientation, limits, and drawings that show nothing from outside their file."""

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pillow_heif
import pytest
from image_files import SIZE, image, image_file, raw_file, svg_file
from PIL import Image
from shards import write_shard

from cmfah_hf.data.images import decode_image
from cmfah_hf.data.images import formats as formats_module
from cmfah_hf.data.images.extras import EXTRAS, extra_of
from cmfah_hf.data.images.formats import extra_of_content
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


@pytest.mark.parametrize(
    ("ending", "extra"),
    [("heic", "heic"), ("avif", "avif"), ("jxl", "jxl"), ("svg", "svg"), ("jpg", None), ("tif", None)],
)
def test_the_first_bytes_tell_the_extra(ending, extra):
    found = extra_of_content(image_file(ending)[:4096])
    assert (found.name if found else None) == extra
    for prefix, name in (
        (b"FUJIFILMCCD-RAW", "raw"),
        (b"\0\0\0\x18ftypcrx ", "raw"),
        (b"", None),
        (b"\0\0\0\x18ftyp", None),
    ):
        found = extra_of_content(prefix)
        assert (found.name if found else None) == name


WITHOUT_HEIC = """
import json, logging, sys
from pathlib import Path
from cmfah_hf.data import decode_image, load_image_text, prepare_folder
logging.basicConfig()
folder = Path(sys.argv[1])
def message(function, *arguments, **options):
    try:
        return str(function(*arguments, **options))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
content = (folder / "heic" / "q.heic").read_bytes()
print(json.dumps({
    "images": prepare_folder(folder / "jpg").images,
    "size": decode_image(folder / "jpg" / "0.jpg").size,
    "path": message(decode_image, folder / "heic" / "q.heic"),
    "bytes": message(decode_image, content, "the query"),
    "ending": message(decode_image, b"no image", "row 3 (a/b.HEIC)"),
    "other": message(decode_image, b"no image", "x.jpg"),
    "folder": message(prepare_folder, folder / "heic"),
    "file": message(load_image_text, folder / "heic" / "q.heic"),
    "shard": message(load_image_text, folder / "heic.tar"),
    "mixed": len(load_image_text(folder / "mixed.tar", split="train")),
}))
"""


def test_an_extra_that_is_missing_is_named_and_a_broken_one_is_no_bug(tmp_path):
    broken = tmp_path / "libraries" / "pillow_heif"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libheif.so.1: cannot open shared object file')")
    for name in ("jpg", "heic"):
        (tmp_path / name).mkdir()
    for number in range(3):
        (tmp_path / "jpg" / f"{number}.jpg").write_bytes(image_file("jpg", number))
    heic = image_file("heic")
    (tmp_path / "heic" / "q.heic").write_bytes(heic)
    write_shard(tmp_path / "heic.tar", {"1": {"heic": heic, "txt": "a"}})
    write_shard(tmp_path / "mixed.tar", {"1": {"jpg": image_file("jpg"), "txt": "a"}, "2": {"heic": heic, "txt": "b"}})
    path = os.pathsep.join([str(broken.parent), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HEIC, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path, "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["images"], found["size"], found["mixed"]) == (3, [*SIZE], 1)
    assert done.stderr.count("pillow_heif is installed, but cannot be imported (libheif.so.1: cannot open") == 1
    command = 'pip install "cmfah-hf[heic]"'
    for name in ("path", "bytes", "ending"):
        assert "ImageError: " in found[name]
        assert f"not an image in a format that Pillow knows; to read it, run {command}." in found[name]
    assert found["other"].endswith("replace or remove it.")
    assert f"no image below this folder (.heic 1 ({command}) there)" in found["folder"]
    assert f"an image in a format of an extra; to read it, run {command}." in found["file"]
    assert f"no image in the first samples (their files: heic ({command}), txt)" in found["shard"]
    assert f"left out 1 samples without an image that can be read: heic ({command})." in done.stderr
