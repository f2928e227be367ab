"""Image files below a folder, and the counts of skipped files."""

import os

import pytest
from PIL import Image

from cmfah_hf.data.images import decoding, describe_skipped, find_image_files
from cmfah_hf.data.images import files as files_module
from cmfah_hf.data.images.extras import EXTRAS
from cmfah_hf.errors import DataError
from cmfah_hf.retrieval.items import values_of_source


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    names = [
        "a.jpg", "b.JPEG", "deep/c.png", "deep/d.webp", "one.heic", "two.HEIC", "draw.svg", "raw.CR2", "film.mp4",
        "deep/film.MP4", "README", "notes.txt", "scan.pdf", "matrix.h5", ".hidden.jpg", "._a.jpg", ".thumbnails/t.jpg",
        "@eaDir/a.jpg/thumb.jpg", "__MACOSX/._b.jpg", "Thumbs.db", "deep/desktop.ini",
    ]  # fmt: skip
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.lower().endswith((".jpg", ".jpeg", ".png", ".webp")):
            Image.new("RGB", (8, 8)).save(root / name)
        else:
            (root / name).write_bytes(b"something")
    return root


@pytest.fixture
def without_extras(monkeypatch):
    """The formats that Pillow reads alone."""
    extra = {ending for own in EXTRAS for ending in own.endings}
    plain = frozenset(decoding.image_endings() - extra)
    monkeypatch.setattr(files_module, "image_endings", lambda: plain)


def names_of(found, root):
    return [path.relative_to(root).as_posix() for path in found.files]


def test_images_are_found_and_other_files_counted(folder, without_extras):
    found = find_image_files(folder)
    assert names_of(found, folder) == ["a.jpg", "b.JPEG", "deep/c.png", "deep/d.webp"]
    assert found.skipped == {
        "hidden": 7, ".heic": 2, ".mp4": 2, ".cr2": 1, ".h5": 1, ".pdf": 1, ".svg": 1, ".txt": 1, "no ending": 1,
    }  # fmt: skip
    assert next(iter(found.skipped)) == "hidden"  # most frequent first
    description = describe_skipped(found.skipped)
    assert ".heic 2" in description
    assert '.heic 2 (pip install "cmfah-hf[heic]")' in description
    assert '.svg 1 (pip install "cmfah-hf[svg]")' in description
    assert describe_skipped({".mp4": 3}) == ".mp4 3"


def test_hidden_files_on_request(folder):
    found = find_image_files(folder, hidden=True)
    assert {".hidden.jpg", "._a.jpg", ".thumbnails/t.jpg", "@eaDir/a.jpg/thumb.jpg", "__MACOSX/._b.jpg"} < set(
        names_of(found, folder)
    )
    assert found.skipped[".db"] == 1
    # A hidden folder is read if it is named explicitly.
    assert names_of(find_image_files(folder / ".thumbnails"), folder) == [".thumbnails/t.jpg"]


def test_links_and_special_files(folder, tmp_path, without_extras):
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (8, 8)).save(outside / "private.png")
    (folder / "linked").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    (folder / "out.png").symlink_to(outside / "private.png")
    (folder / "in.png").symlink_to(folder / "deep" / "c.png")
    (folder / "nowhere.png").symlink_to(folder / "absent.png")
    os.mkfifo(folder / "pipe.png")
    found = find_image_files(folder)
    assert names_of(found, folder) == ["a.jpg", "b.JPEG", "deep/c.png", "deep/d.webp", "in.png"]
    assert found.skipped["linked folders"] == 2
    assert found.skipped["links that leave the folder"] == 1
    assert found.skipped["special files"] == 2  # the pipe and the dangling link


def test_a_folder_without_images_reports_its_content(folder, tmp_path, without_extras):
    (tmp_path / "apple").mkdir()
    for number in range(3):
        (tmp_path / "apple" / f"{number}.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no image below this folder \(\.heic 3 \(pip install"):
        find_image_files(tmp_path / "apple")


def test_formats_of_installed_extras_are_found(folder):
    decoding.image_endings.cache_clear()
    assert {"one.heic", "two.HEIC", "draw.svg", "raw.CR2"} < set(names_of(find_image_files(folder), folder))


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 300 + ".png", "a\0b.png", "two\nlines.png", "/dev/zero"])
def test_impossible_paths_are_refused_in_one_line(name):
    with pytest.raises(DataError) as caught:
        list(values_of_source(name, None, "images", (), "", False, None))
    assert len(str(caught.value).splitlines()) == 1
