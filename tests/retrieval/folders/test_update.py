"""Updates of the folders of an index, on real files with a small model."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cmfah_hf.errors import DataError, HashIndexError
from cmfah_hf.retrieval import HashIndex
from cmfah_hf.retrieval.folders import FolderRequest, reach, remove_items

FIELDS = ("added", "changed", "renamed", "removed", "unchanged")


def counts(changes):
    return tuple(getattr(changes, name) for name in FIELDS)


def codes_of(path):
    index = HashIndex.load(path)
    return dict(zip(index.ids.tolist(), map(bytes, index.codes), strict=True))


def test_only_what_is_new_is_encoded(update, photos, target, drawn):
    changes, encoded = update(photos)
    assert counts(changes) == (10, 0, 0, 0, 0)
    assert encoded == 10
    drawn(photos / "a" / "new.jpg", 20)
    drawn(photos / "a" / "1.jpg", 21)
    (photos / "a" / "2.jpg").unlink()
    (photos / "b").rename(photos / "c")
    changes, encoded = update(photos)
    assert counts(changes) == (1, 1, 5, 1, 3)
    assert encoded == 2
    fresh = target.with_name("fresh.index")
    update_again = codes_of(target)
    target.unlink()
    update(photos)
    target.rename(fresh)
    assert codes_of(fresh) == update_again


def test_without_changes_nothing_is_encoded_or_written(update, photos, target):
    update(photos)
    time.sleep(2.1)  # until the times of the files are certain
    update(photos)
    written = target.stat()
    changes, encoded = update(photos)
    assert counts(changes) == (0, 0, 0, 0, 10)
    assert encoded == 0
    assert (target.stat().st_mtime_ns, target.stat().st_ino) == (written.st_mtime_ns, written.st_ino)


def test_other_times_are_not_another_content(update, photos):
    update(photos)
    for path in (photos / "a").iterdir():
        os.utime(path, (1e9, 1e9))
    changes, encoded = update(photos)
    assert counts(changes) == (0, 0, 0, 0, 10)
    assert encoded == 0


def test_content_of_the_same_size_with_the_same_modification_time_is_found(update, photos, target):
    first, other = photos / "a" / "0.jpg", photos / "a" / "1.jpg"
    update(photos)
    content = bytearray(first.read_bytes())
    found = first.stat()
    content[-40] ^= 0x55
    first.write_bytes(bytes(content))
    os.utime(first, ns=(found.st_atime_ns, found.st_mtime_ns))
    changes, encoded = update(photos)
    assert changes.changed == 1
    assert encoded == 1
    assert other.exists()


def test_swapped_names_and_copies_are_not_encoded(update, photos, target):
    update(photos)
    before = codes_of(target)
    (photos / "a" / "0.jpg").rename(photos / "spare")
    (photos / "a" / "1.jpg").rename(photos / "a" / "0.jpg")
    (photos / "spare").rename(photos / "a" / "1.jpg")
    shutil.copy(photos / "a" / "2.jpg", photos / "copy.jpg")
    changes, encoded = update(photos)
    assert counts(changes) == (1, 2, 0, 0, 8)
    assert encoded == 0
    after = codes_of(target)
    assert after["a/0.jpg"] == before["a/1.jpg"]
    assert after["a/1.jpg"] == before["a/0.jpg"]
    assert after["copy.jpg"] == before["a/2.jpg"]


def test_several_folders_have_their_names_in_the_ids(update, photos, tmp_path, drawn, target):
    cam = tmp_path / "cam2023"
    drawn(cam / "IMG_0001.jpg", 50)
    update(photos)
    assert "a/0.jpg" in codes_of(target)
    changes, encoded = update(photos, cam)
    assert counts(changes) == (1, 0, 10, 0, 10)
    assert encoded == 1
    assert {"photos/a/0.jpg", "cam2023/IMG_0001.jpg"} <= codes_of(target).keys()
    moved = tmp_path / "elsewhere" / "disk"
    moved.parent.mkdir()
    cam.rename(moved)
    changes, encoded = update(FolderRequest(moved, "cam2023"))
    assert counts(changes) == (0, 0, 0, 0, 1)
    assert encoded == 0
    (photos / "a" / "0.jpg").rename(moved / "0.jpg")
    changes, encoded = update()
    assert (changes.renamed, encoded) == (1, 0)
    assert "cam2023/0.jpg" in codes_of(target)


def test_a_missing_folder_loses_nothing(update, photos, tmp_path, drawn, target):
    cam = tmp_path / "cam"
    drawn(cam / "1.jpg", 50)
    update(photos, cam)
    shutil.move(cam, tmp_path / "unplugged")
    changes, _ = update()
    assert changes.missing == [str(cam)]
    assert (changes.kept, changes.removed, len(codes_of(target))) == (1, 0, 11)
    with pytest.raises(HashIndexError, match="the folder cam is gone"):
        update(cam)
    cam.mkdir()  # where nothing is mounted
    with pytest.raises(HashIndexError, match="the folder cam holds no image now"):
        update(cam)
    changes, _ = update(prune_missing=True)
    assert changes.removed == 1
    assert len(codes_of(target)) == 10


@pytest.mark.parametrize("silent", ["realpath", "scandir"])
def test_a_drive_that_never_answers_loses_nothing(silent, update, photos, tmp_path, drawn, target, monkeypatch):
    """System calls on a hard-mounted network drive whose server is gone do not return."""
    cam = tmp_path / "cam"
    drawn(cam / "1.jpg", 50)
    update(photos, cam)
    owner = os.path if silent == "realpath" else os
    answers, call = threading.Event(), getattr(owner, silent)

    def wait(path, *args, **options):
        if str(path) == str(cam):
            answers.wait(60)
        return call(path, *args, **options)

    monkeypatch.setattr(owner, silent, wait)
    monkeypatch.setattr(reach, "_ANSWER_S", 0.2)
    try:
        drawn(photos / "new.jpg", 51)
        for prune in (False, True):  # a folder that may be there is not pruned
            changes, _ = update(prune_missing=prune)
            assert (changes.missing, changes.kept, changes.removed) == ([str(cam)], 1, 0)
        assert len(codes_of(target)) == 12
        with pytest.raises(DataError, match="cam: it does not answer within"):
            update(cam)
    finally:
        answers.set()
    monkeypatch.undo()
    for thread in reach._waiting.values():
        thread.join(10)
    changes, _ = update()
    assert (changes.missing, changes.unchanged) == ([], 12)


def test_what_cannot_be_reached_stays(update, photos, target, monkeypatch):
    update(photos)
    walk = os.walk

    def failing(folder, onerror=None):
        for parent, folders, names in walk(folder, onerror=onerror):
            if "b" in folders:
                folders.remove("b")
                onerror(OSError(110, "Connection timed out", str(photos / "b")))
            yield parent, folders, names

    monkeypatch.setattr(os, "walk", failing)
    changes, _ = update(photos)
    assert (changes.kept, changes.removed, changes.unchanged) == (5, 0, 5)
    assert changes.skipped["folders that cannot be read"] == 1
    assert len(codes_of(target)) == 10


def test_unreadable_images_are_counted_once_read(update, photos, target, monkeypatch):
    (photos / "broken.jpg").write_bytes(b"no image")
    (photos / "empty.jpg").touch()
    changes, encoded = update(photos)
    assert (changes.added, encoded, len(changes.unreadable)) == (10, 10, 2)
    time.sleep(2.1)
    update(photos)
    monkeypatch.setattr("cmfah_hf.retrieval.folders.filling.read_image_file", None)
    changes, _ = update(photos)
    assert [line.partition(": ")[0] for line in changes.unreadable] == [
        str(photos / "broken.jpg"), str(photos / "empty.jpg"),
    ]  # fmt: skip
    monkeypatch.undo()
    monkeypatch.setattr("cmfah_hf.retrieval.folders.update.readers", lambda: "a newer library")
    (photos / "a" / "0.jpg").write_bytes(b"cut")
    changes, encoded = update(photos)
    assert (len(changes.unreadable), changes.unchanged, encoded) == (3, 9, 0)
    assert "a/0.jpg" not in codes_of(target)


def test_a_file_that_is_being_written_is_tried_again(update, photos, monkeypatch):
    from cmfah_hf.retrieval.folders import reading

    original = reading.read_image_bytes
    monkeypatch.setattr(reading, "_PAUSE_S", 0)

    def growing(path, name):
        content = original(path, name)
        if name.endswith("3.jpg"):
            with Path(path).open("ab") as file:
                file.write(b"more")
        return content

    monkeypatch.setattr(reading, "read_image_bytes", growing)
    changes, _ = update(photos)
    assert changes.added == 9
    assert "changes while it is read" in changes.unreadable[0]
    monkeypatch.setattr(reading, "read_image_bytes", original)
    changes, encoded = update(photos)
    assert (changes.added, encoded, changes.unreadable) == (1, 1, [])


def test_a_clock_set_back_hides_no_change(update, photos, monkeypatch, target):
    """With times in the future, and times that repeat, the content decides."""
    path = photos / "a" / "0.jpg"
    update(photos)
    before = codes_of(target)
    found = path.stat()
    late = time.time_ns() + 3600 * 10**9
    from cmfah_hf.data import file_state

    monkeypatch.setattr(file_state, "changed_at", lambda _: late)
    monkeypatch.setattr("cmfah_hf.retrieval.folders.scan.changed_at", lambda _: late)
    update(photos)
    content = bytearray(path.read_bytes())
    content[200:300] = content[100:200]
    path.write_bytes(bytes(content))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    changes, _ = update(photos)
    assert changes.changed + len(changes.unreadable) == 1
    assert before.keys() >= codes_of(target).keys()


def test_metadata_of_changed_rows_is_updated(update, photos, target):
    rows = [{"file_name": f"a/{n}.jpg", "text": "x", "year": 2000 + n} for n in range(5)]

    def write(rows):
        (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def years():
        index = HashIndex.load(target)
        return dict(zip(index.ids.tolist(), index.metadata["year"].to_pylist(), strict=True))

    write(rows)
    request = FolderRequest(photos, keep=("year",))
    changes, encoded = update(request)
    assert (changes.added, encoded, changes.skipped["images without a row of metadata"]) == (5, 5, 5)
    rows[0]["year"] = 1999
    (photos / "a" / "1.jpg").rename(photos / "a" / "renamed.jpg")
    rows[1] = {"file_name": "a/renamed.jpg", "text": "x", "year": 2030}
    write(rows[:4])
    changes, encoded = update(request)
    assert counts(changes) == (0, 1, 1, 1, 2)
    assert encoded == 0
    assert years() == {"a/0.jpg": 1999, "a/renamed.jpg": 2030, "a/2.jpg": 2002, "a/3.jpg": 2003}
    # Columns that were asked for once stay, also where the folder moves; others take their place.
    changes, _ = update(FolderRequest(photos))
    assert (counts(changes), set(years().values())) == ((0, 0, 0, 0, 4), {1999, 2030, 2002, 2003})
    moved = photos.rename(photos.with_name("moved"))
    changes, _ = update(FolderRequest(moved, name=photos.name))
    assert (counts(changes), set(years().values())) == ((0, 0, 0, 0, 4), {1999, 2030, 2002, 2003})
    changes, encoded = update(FolderRequest(moved, keep=("text",)))
    assert (changes.changed, encoded, set(years().values())) == (4, 0, {None})


def test_what_was_removed_by_hand_stays_out(update, photos, target):
    update(photos)
    assert remove_items(target, ["a/0.jpg", "b/9.jpg"]) == 2
    (photos / "a" / "0.jpg").rename(photos / "a" / "private.jpg")
    changes, encoded = update(photos)
    assert (counts(changes), changes.left_out, encoded) == ((0, 0, 0, 0, 8), 2, 0)
    assert not {"a/0.jpg", "a/private.jpg", "b/9.jpg"} & codes_of(target).keys()
    changes, encoded = update(photos, restore=True)
    assert (changes.added, encoded, len(codes_of(target))) == (2, 2, 10)
    with pytest.raises(HashIndexError, match="no id 'nothing'"):
        remove_items(target, ["a/1.jpg", "nothing"])
    assert len(codes_of(target)) == 10


def test_an_interruption_keeps_what_was_encoded(update, photos, target, model, monkeypatch):
    original, calls = model.encode, []

    def interrupted(pixel_values):
        calls.append(len(pixel_values))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(pixel_values)

    model.encode = interrupted
    with pytest.raises(KeyboardInterrupt):
        update(photos, batch_size=2)
    assert len(codes_of(target)) == 4
    model.encode = original
    changes, encoded = update(photos, batch_size=2)
    assert (changes.added, changes.unchanged, encoded) == (6, 4, 6)


def test_portions_are_saved_on_the_way(update, photos, target, model, monkeypatch):
    from cmfah_hf.retrieval.folders import filling

    monkeypatch.setattr(filling, "_PORTION", 4)
    sizes, original = [], HashIndex.save
    monkeypatch.setattr(HashIndex, "save", lambda self, *rest: sizes.append(len(self)) or original(self, *rest))
    update(photos, batch_size=2)
    assert sizes == [4, 8, 10]


def test_a_dry_run_writes_nothing(update, photos, target, drawn):
    changes, encoded = update(photos, dry_run=True)
    assert (changes.added, encoded, target.exists()) == (10, 0, False)
    update(photos)
    written = target.read_bytes()
    (photos / "a" / "0.jpg").unlink()
    (photos / "a" / "1.jpg").rename(photos / "one.jpg")
    drawn(photos / "new.jpg", 77)
    changes, encoded = update(photos, dry_run=True)
    assert changes.steps == {
        "added": ["new.jpg"], "changed": [], "renamed": [("a/1.jpg", "one.jpg")], "removed": ["a/0.jpg"],
    }  # fmt: skip
    assert (counts(changes), encoded) == ((1, 0, 1, 1, 8), 0)
    assert target.read_bytes() == written


def test_refused_folders(update, photos, tmp_path, target, drawn):
    with pytest.raises(HashIndexError, match="inside"):
        update(photos, photos / "a")
    with pytest.raises(HashIndexError, match="named twice"):
        update(photos, photos)
    with pytest.raises(DataError, match="there is no such folder"):
        update(tmp_path / "absent")
    drawn(tmp_path / "other" / "photos" / "1.jpg", 3)
    update(photos)
    with pytest.raises(HashIndexError, match="--root photos="):
        update(tmp_path / "other" / "photos")
    with pytest.raises(HashIndexError, match="as photos; use that name"):
        update(FolderRequest(photos, "pictures"))
    with pytest.raises(HashIndexError, match="no name for a folder"):
        update(FolderRequest(photos, "a/b"))
    (photos / "loop").symlink_to(photos)
    changes, _ = update(photos)
    assert (changes.skipped["linked folders"], changes.unchanged) == (1, 10)


def test_an_index_without_records_needs_a_decision(update, photos, target):
    HashIndex(16).save(target)
    update(photos)
    HashIndex(16).save(target, overwrite=True)
    index = HashIndex(16)
    index.add(np.zeros((1, 2), np.uint8), ids=["elsewhere"])
    index.save(target, overwrite=True)
    with pytest.raises(HashIndexError, match="no record of folders"):
        update(photos)
    changes, _ = update(photos, add=True)
    assert (changes.added, len(codes_of(target))) == (10, 11)
    changes, _ = update(photos)
    assert counts(changes) == (0, 0, 0, 0, 10)
    changes, _ = update(photos, rebuild=True)
    assert (changes.added, len(codes_of(target))) == (10, 10)


def test_ids_from_elsewhere_are_not_replaced(update, photos, target):
    index = HashIndex(16)
    index.add(np.zeros((1, 2), np.uint8), ids=["a/0.jpg"])
    index.save(target)
    with pytest.raises(HashIndexError, match="from elsewhere"):
        update(photos, add=True)
    assert len(codes_of(target)) == 1


def test_an_item_that_was_removed_through_the_library_comes_back(update, photos, target):
    update(photos)
    index = HashIndex.load(target)
    index.remove(["a/0.jpg", "a/1.jpg"])
    index.save(target)
    (photos / "a" / "1.jpg").unlink()
    changes, encoded = update(photos)
    assert (counts(changes), encoded) == ((1, 0, 0, 0, 8), 1)
    assert len(codes_of(target)) == 9
