"""Damaged and malicious files of folders: sidecars, tables, metadata in images, shards, drawings, raw images."""

import io
import json
import tarfile
import warnings

import datasets
import pytest
from image_files import image_file, svg_file
from PIL import Image

from cmfah_hf.data import decode_image, load_image_text, prepare_folder
from cmfah_hf.data.from_folder.embedded import read_embedded
from cmfah_hf.data.from_folder.sidecars import Sidecars, read_sidecar
from cmfah_hf.data.from_folder.tables import TableRequest, read_table
from cmfah_hf.data.images import decoding_off
from cmfah_hf.models.image_modes import to_rgb
from fuzz.harness import ODD_VALUES, mutated, mutated_json

XMP = """<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><!DOCTYPE x [<!ENTITY e "text">]>
<x xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><r:Description xmlns:d="http://purl.org/dc/elements/1.1/">
<d:description><r:Alt><r:li xml:lang="x-default">A boat</r:li><r:li xml:lang="de">Boot</r:li></r:Alt></d:description>
<d:subject><r:Bag><r:li>boat</r:li></r:Bag></d:subject></r:Description></x>"""
TAKEOUT = {"title": "a.jpg", "description": "a dog", "photoTakenTime": {"timestamp": "1580000000"}, "tags": ["x", "y"]}


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_sidecars(fuzzer, tmp_path, canary):
    place = canary.names()[2]
    outside = XMP.replace('"text"', f'SYSTEM "{place}"').replace("A boat", "&e;")
    plain = XMP.replace('<!DOCTYPE x [<!ENTITY e "text">]>', "")
    odd = (*ODD_VALUES, *canary.names(), "\ud800")

    def attempt(rng):
        kind = rng.choice(("xmp", "json", "txt"))
        content = rng.choice((plain, plain, outside, XMP)).encode(rng.choice(("utf-8", "utf-16")))
        if kind == "json":
            content = json.dumps(mutated_json(rng, TAKEOUT, odd) if rng.random() < 0.6 else TAKEOUT).encode()
        if kind == "txt":
            content = rng.choice((b"a dog\nthe beach\n", "größer".encode("utf-16")))
        file = tmp_path / f"a.jpg.{kind}"
        file.write_bytes(mutated(rng, content))
        (sidecar,) = Sidecars().of(tmp_path / "a.jpg")
        try:
            found = read_sidecar(sidecar, tmp_path / "a.jpg")
            assert all(isinstance(text, str) and "\n" not in text for text in (*found.captions, *found.keywords))
        finally:
            file.unlink()

    fuzzer(share=0.04, limit_s=2).run(attempt)


def test_tables(fuzzer, tmp_path):
    coco = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "caption": "a dog"}, {"image_id": 1, "category_id": 2}],
        "categories": [{"id": 2, "name": "dog"}],
    }
    rows = [{"file_name": "a.jpg", "text": "a dog", "labels": ["dog"]}, {"file_name": "b", "text": ["x", "y"]}]
    csv = b'file;text;labels\na.jpg;"a dog; running";dog|sea\nb;"""cat""";\n'

    def attempt(rng):
        kind = rng.choice(("csv", "tsv", "json", "jsonl"))
        content = csv
        if kind == "json":
            content = json.dumps(mutated_json(rng, rng.choice((coco, rows)))).encode()
        if kind == "jsonl":
            content = "\n".join(json.dumps(mutated_json(rng, row)) for row in rows).encode()
        (tmp_path / f"t.{kind}").write_bytes(mutated(rng, content) if rng.random() < 0.7 else content)
        read_table(TableRequest(tmp_path / f"t.{kind}"), ["a.jpg", "sub/b.png"])

    fuzzer(share=0.03, limit_s=2).run(attempt)


def test_metadata_in_images(fuzzer, tmp_path, with_all_metadata):
    names = list(with_all_metadata)

    def attempt(rng):
        name = rng.choice(names)
        file = tmp_path / f"im.{name}"
        file.write_bytes(mutated(rng, with_all_metadata[name]))
        found = read_embedded(file, verify=rng.random() < 0.5)
        assert all("\n" not in problem for problem in found.problems)

    fuzzer(share=0.05).run(attempt)


@pytest.fixture(scope="module")
def with_all_metadata() -> dict[str, bytes]:
    """Images with EXIF, XMP and, in a JPEG, IPTC."""
    exif = Image.Exif()
    exif[0x010E], exif[0x9C9E] = b"a dog", "dog;sea\0".encode("utf-16-le")
    inner = exif.get_ifd(0x8769)
    inner[0x9003], inner[0x9286] = "2019:07:08 09:10:11", b"UNICODE\0" + "a dog".encode("utf-16-le")
    plain = XMP.replace('<!DOCTYPE x [<!ENTITY e "text">]>', "").encode()
    files = {end: image_file(end, exif=exif, xmp=plain) for end in ("jpg", "webp", "avif", "heic")}
    files["png"], files["tif"] = image_file("png", exif=exif), image_file("tif", exif=exif.tobytes())
    sets = b"\x1c\x01\x5a\0\x03\x1b%G\x1c\x02\x19\0\x04Hund\x1c\x02\x19\0\x05Meer!\x1c\x02\x78\0\x05a dog"
    block = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + len(sets).to_bytes(4, "big") + sets + b"\0" * (len(sets) % 2)
    jpeg = files["jpg"]
    files["jpg"] = jpeg[:2] + b"\xff\xed" + (len(block) + 2).to_bytes(2, "big") + block + jpeg[2:]
    return files


def test_formats_of_extras(fuzzer, canary):
    drawing = svg_file(f'<image href="{canary.path}" width="9" height="9"/><text>a</text><use href="#x"/>')
    bases = {end: image_file(end) for end in ("jxl", "dng", "heic", "svgz")} | {"svg": drawing.encode()}
    names = canary.names()

    def attempt(rng):
        ending = rng.choice(list(bases))
        content = bases[ending]
        if ending == "svg" and rng.random() < 0.3:
            content = content.replace(str(canary.path).encode(), rng.choice(names).encode())
        to_rgb(decode_image(mutated(rng, content), f"im.{ending}"))

    fuzzer(share=0.05).run(attempt)


def shard() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(3):
            files = {
                "png": image_file("png"),
                "txt": b"a dog",
                "json": json.dumps(TAKEOUT | {"labels": ["x"]}).encode(),
            }
            for ending, own in files.items():
                member = tarfile.TarInfo(f"größe/{number}.{ending}")
                member.size = len(own)
                tar.addfile(member, io.BytesIO(own))
    return content.getvalue()


def test_shards(fuzzer, tmp_path):
    base = shard()

    def attempt(rng):
        content = mutated(rng, base)
        if rng.random() < 0.3:  # the headers are a small part
            at = 512 * rng.randrange(len(base) // 512)
            content = base[:at] + mutated(rng, base[at : at + 512]) + base[at + 512 :]
        (tmp_path / "x.tar").write_bytes(content)
        for row in decoding_off(load_image_text(tmp_path / "x.tar", split="train", streaming=True)):
            decode_image(row["image"])

    fuzzer(share=0.03).run(attempt)


def test_whole_folders(fuzzer, tmp_path, with_all_metadata, canary):
    def attempt(rng):
        folder = tmp_path / str(rng.random())
        folder.mkdir()
        for ending in ("jpg", "png", "svg"):
            content = with_all_metadata.get(ending) or svg_file().encode()
            (folder / f"a.{ending}").write_bytes(mutated(rng, content) if rng.random() < 0.3 else content)
        (folder / "a.xmp").write_bytes(mutated(rng, XMP.encode()))
        (folder / "a.jpg.json").write_text(json.dumps(mutated_json(rng, TAKEOUT, (*ODD_VALUES, *canary.names()))))
        report = prepare_folder(folder, queries=0.3)
        json.dumps(report.as_dict())
        rows = sum(len(list(decoding_off(part))) for part in load_image_text(folder, streaming=True).values())
        assert rows == report.images

    fuzzer(share=0.01).run(attempt)
