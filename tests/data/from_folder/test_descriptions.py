"""What sidecars and the metadata in images say about an image."""

import io
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import image, image_file
from PIL import Image, PngImagePlugin

from cmfah_hf.data.from_folder.description import as_date, is_of_camera, of_document
from cmfah_hf.data.from_folder.embedded import read_embedded
from cmfah_hf.data.from_folder.sidecars import Sidecars, read_sidecar
from cmfah_hf.data.from_folder.xmp import parse_xmp
from cmfah_hf.documents import parse_xml
from cmfah_hf.errors import CMFAHError, DataError, ImageError

XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:exif="http://ns.adobe.com/exif/1.0/"
 exif:DateTimeOriginal="2021-02-03T04:05:06.7+02:00">
<dc:title><rdf:Alt><rdf:li xml:lang="x-default">Title</rdf:li></rdf:Alt></dc:title>
<dc:description><rdf:Alt><rdf:li xml:lang="de">Ein Boot</rdf:li><rdf:li xml:lang="x-default">A boat &amp; a
 lake</rdf:li></rdf:Alt></dc:description>
<dc:subject><rdf:Bag><rdf:li>boat</rdf:li><rdf:li>lake</rdf:li><rdf:li>boat</rdf:li></rdf:Bag></dc:subject>
</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_xmp(encoding):
    padding = b"\0\0  " if encoding == "utf-8" else b""
    found = parse_xmp(XMP.encode(encoding) + padding, "x.xmp")
    assert found.captions == ("A boat & a lake", "Ein Boot")
    assert found.keywords == ("boat", "lake")
    assert found.date == "2021-02-03T04:05:06"


def test_xmp_in_other_forms():
    head = '<r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><r:Description '
    spaces = 'xmlns:p="http://ns.adobe.com/photoshop/1.0/" xmlns:l="http://ns.adobe.com/lightroom/1.0/" '
    text = f'{head}{spaces}p:Headline="A headline" p:DateCreated="1999-12-31"><l:hierarchicalSubject><r:Bag>'
    text += "<r:li>animals|dog</r:li><r:li>sea</r:li></r:Bag></l:hierarchicalSubject></r:Description></r:RDF>"
    found = parse_xmp(text, "x.xmp")
    assert (found.captions, found.keywords, found.date) == (("A headline",), ("dog", "sea"), "1999-12-31")
    assert parse_xmp("<other/>", "x.xmp").captions == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no xml", "x.xmp is not valid XML"),
        ("", "x.xmp is not valid XML"),
        (b"\xff\xfe\x00", "x.xmp is not valid XML"),
        (b'<?xml version="1.0" encoding="nowhere"?><a/>', "x.xmp is not valid XML"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>', "x.xmp defines the entity 'x'"),
        ('<!DOCTYPE a [<!ENTITY x "aa">]><a>&x;</a>', "x.xmp defines the entity 'x'"),
        ("<a>" * 101, "x.xmp is nested more than 100 deep"),
    ],
)
def test_xmp_that_is_no_xml(text, message):
    with pytest.raises(DataError, match=message) as caught:
        parse_xmp(text, "x.xmp")
    assert "\n" not in str(caught.value)


def test_entities_of_drawings():
    text = '<!DOCTYPE a [<!ENTITY x "http://x">]><a b="&x;">&x;</a>'
    root = parse_xml(text, "x", CMFAHError, allow_entities=True)
    assert (root.get("b"), root.text) == ("http://x", "http://x")
    long = '<!DOCTYPE a [<!ENTITY x "' + "y" * 201 + '">]><a/>'
    with pytest.raises(CMFAHError, match="defines the entity"):
        parse_xml(long, "x", CMFAHError, allow_entities=True)


def test_dates_and_texts_of_cameras():
    assert as_date("2023:02:29 10:00:00") is None
    assert as_date("2024:02:29 10:00") == "2024-02-29T10:00:00"
    assert as_date(None) is as_date("soon") is None
    assert is_of_camera("OLYMPUS DIGITAL CAMERA  ", "a.jpg")
    assert is_of_camera("IMG_1", "IMG_1.jpg")
    assert not is_of_camera("a digital camera on a table", "a.jpg")


@given(st.text())
def test_any_text_is_a_date_or_none(text):
    found = as_date(text)
    assert found is None or as_date(found) == found


def test_documents():
    takeout = {"title": "a.jpg", "description": "", "photoTakenTime": {"timestamp": "1580000000"}}
    assert of_document(takeout, "a.jpg") == of_document(takeout | {"description": "IMG"}, "IMG.jpg")
    assert of_document(takeout, "a.jpg").date == "2020-01-26T00:53:20"
    found = of_document({"Caption": ["one", "two"], "tags": "dog; sea,", "class": 3, "date": "2020-01-01"}, "a.jpg")
    assert (found.captions, found.keywords, found.labels, found.date) == (
        ("one", "two"), ("dog", "sea"), ("3",), "2020-01-01",
    )  # fmt: skip
    for odd in ({"timestamp": "1e99"}, {"timestamp": 10**30}, {}, None, "x"):
        assert of_document({"photoTakenTime": odd}, "a.jpg").date is None
    with pytest.raises(DataError, match="keywords must be a list"):
        of_document({"tags": {"a": 1}}, "a.jpg")


SIDECARS = {
    "a.jpg": ["a.txt"],
    "B.JPG": ["b.jpg.TXT", "B.Json"],
    "c.png": ["c.caption", "c.png.xmp"],
    "IMG(1).jpg": ["IMG.jpg(1).json"],
    "IMG(2).jpg": ["IMG.jpg.supplemental-metadata(2).json"],
    "long.jpeg": ["long.jpeg.supplemental-me.json"],
    "d-edited.jpg": ["d.jpg.json"],
    "d.jpg": ["d.jpg.json"],
    "alone.jpg": [],
    "other.jpg.small.json": [],
}


def test_sidecars_are_found_by_their_names(tmp_path):
    for names in SIDECARS.values():
        for name in names:
            (tmp_path / name).touch()
    (tmp_path / "nobody.txt").touch()
    sidecars = Sidecars()
    for name, expected in SIDECARS.items():
        assert [own.path.name for own in sidecars.of(tmp_path / name)] == expected, name
    assert sidecars.used == {".txt": 2, ".json": 5, ".caption": 1, ".xmp": 1}


@pytest.mark.parametrize(
    ("name", "content", "captions"),
    [
        ("a.txt", "  a dog\n\nthe beach \n".encode("utf-8-sig"), ("a dog", "the beach")),
        ("a.txt", "ein Hund, größer".encode("utf-16"), ("ein Hund, größer",)),
        ("a.txt", "größer".encode("cp1252"), ("größer",)),
        ("a.txt", b"", ()),
        ("a.json", b'"a dog"', ("a dog",)),
        ("a.json", b'["a dog", "the beach"]', ("a dog", "the beach")),
        ("a.txt", b"0 0.5 0.5 0.1 0.2\n", "has numbers only"),
        ("a.txt", b"a\0b", "is not text"),
        ("a.txt", b"a" * (2**20 + 1), "has more than 1,048,576 bytes"),
        ("a.json", b"3", "is a int; write an object"),
        ("a.json", b'{"text": {}}', "a.json: a text must be a string"),
        ("a.json", b"{", "is not valid JSON"),
        ("a.xmp", b"{", "is not valid XML"),
    ],
)
def test_sidecars_are_read(tmp_path, name, content, captions):
    (tmp_path / name).write_bytes(content)
    (sidecar,) = Sidecars().of(tmp_path / "a.jpg")
    if isinstance(captions, tuple):
        assert read_sidecar(sidecar, tmp_path / "a.jpg").captions == captions
        return
    with pytest.raises(DataError, match=captions) as caught:
        read_sidecar(sidecar, tmp_path / "a.jpg")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def iptc(**values: str | list[str]) -> bytes:
    """IPTC's data sets of a title, keywords, a date or a caption."""
    numbers = {"title": 5, "keywords": 25, "date": 55, "caption": 120}
    content = b"\x1c\x01\x5a" + struct.pack(">H", 3) + b"\x1b%G"
    for name, given_values in values.items():
        for value in [given_values] if isinstance(given_values, str) else given_values:
            text = value.encode()
            content += b"\x1c\x02" + bytes([numbers[name]]) + struct.pack(">H", len(text)) + text
    return content


def with_iptc(jpeg: bytes, content: bytes) -> bytes:
    """A JPEG with this IPTC in a block of Photoshop."""
    block = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(content)) + content + b"\0" * (len(content) % 2)
    segment = b"Photoshop 3.0\0" + block
    return jpeg[:2] + b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def read(tmp_path, content: bytes, name: str = "a.jpg"):
    (tmp_path / name).write_bytes(content)
    return read_embedded(tmp_path / name)


def test_iptc(tmp_path):
    content = iptc(caption="Café am Meer", keywords=["Hund", "Strand"], date="20230102")
    found = read(tmp_path, with_iptc(image_file("jpg"), content)).descriptions["iptc"]
    assert found.captions == ("Café am Meer",)
    assert (found.keywords, found.date) == (("Hund", "Strand"), "2023-01-02")
    assert read(tmp_path, with_iptc(image_file("jpg"), iptc(title="T"))).descriptions["iptc"].captions == ("T",)
    damaged = read(tmp_path, with_iptc(image_file("jpg"), b"\x1c\x02\x78\x83\xff\xff\xff" + b"x" * 20))
    assert len(damaged.problems) <= 1


def exif() -> Image.Exif:
    own = Image.Exif()
    own[0x010E] = "Größe".encode()
    own[0x9C9E] = "Hund;Meer\0".encode("utf-16-le")
    own.get_ifd(0x8769)[0x9003] = "2019:07:08 09:10:11"
    return own


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "avif", "heic"])
def test_exif_and_xmp_in_all_formats(tmp_path, ending):
    options = {"exif": exif().tobytes() if ending == "tif" else exif()}
    if ending in ("jpg", "webp", "avif", "heic"):
        options["xmp"] = XMP.encode()
    if ending == "png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP)
    found = read(tmp_path, image_file(ending, **options), f"a.{ending}")
    assert found.problems == []
    if ending != "tif":  # Pillow writes ASCII into it
        assert found.descriptions["exif"].captions == ("Größe",)
    assert found.descriptions["exif"].keywords == ("Hund", "Meer")
    assert found.descriptions["exif"].date == "2019-07-08T09:10:11"
    if ending != "tif":
        assert found.descriptions["xmp"].keywords == ("boat", "lake")


@pytest.mark.parametrize(
    ("comment", "text"),
    [
        (b"ASCII\0\0\0a dog", "a dog"),
        (b"UNICODE\0" + "größer".encode("utf-16-le"), "größer"),
        (b"UNICODE\0" + "größer".encode("utf-16-be"), "größer"),
        (b"\0" * 8 + b"plain\0\0", "plain"),
        (b"JIS\0\0\0\0\0xx", None),
        (b"", None),
    ],
)
def test_comments_of_exif(tmp_path, comment, text):
    own = Image.Exif()
    own[0x010E] = b"SONY DSC"
    own.get_ifd(0x8769)[0x9286] = comment
    found = read(tmp_path, image_file("jpg", exif=own)).descriptions["exif"]
    assert found.captions == ((text,) if text else ())


def test_texts_of_png(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "a title")
    info.add_itxt("Description", "größer")
    assert read(tmp_path, image_file("png", pnginfo=info), "a.png").descriptions["png"].captions == ("größer",)


def test_damaged_metadata_is_a_problem_and_a_damaged_image_an_error(tmp_path):
    found = read(tmp_path, image_file("jpg", xmp=b"<not xml"))
    assert len(found.problems) == 1
    assert "its XMP is not valid XML" in found.problems[0]
    content = io.BytesIO()
    image().resize((600, 400)).save(content, "JPEG")
    with pytest.raises(ImageError, match="damaged or cut short"):
        read(tmp_path, content.getvalue()[:3000])
    (tmp_path / "b.jpg").write_bytes(content.getvalue()[:3000])
    assert read_embedded(tmp_path / "b.jpg", verify=False).problems == []
    assert json.dumps(found.problems)
