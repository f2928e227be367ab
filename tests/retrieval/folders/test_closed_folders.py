"""Updates of folders with places that the system does not let this process read."""

import json
import shutil

import pytest
from closed_folders import close

from cmfah_hf.data.images.files import CLOSED, CLOSED_FILES
from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval import HashIndex


@pytest.mark.parametrize("is_listed", [False, True])
def test_a_closed_folder_below_the_root_keeps_its_images(is_listed, update, photos, target, drawn, monkeypatch):
    drawn(photos / "System Volume Information" / "1.jpg", 50)
    with monkeypatch.context() as patch:
        close(patch, photos / "System Volume Information", is_listed)
        changes, _ = update(photos)
        assert (changes.added, changes.skipped) == (10, {CLOSED_FILES if is_listed else CLOSED: 1})
    assert update(photos)[0].added == 1
    close(monkeypatch, photos / "a", is_listed)
    (photos / "b" / "5.jpg").unlink()
    for options in ({"prune_missing": True, "dry_run": True}, {}, {"prune_missing": True}):
        changes, _ = update(photos, **options)
        assert (changes.kept, changes.missing, changes.unreadable) == (5, [], [])
        assert changes.removed == (1 if options.get("dry_run") or not options else 0)
    shutil.rmtree(photos / "b")
    shutil.rmtree(photos / "System Volume Information")
    changes, _ = update(photos)  # the root is there, although no image is found
    assert (changes.kept, changes.removed, len(HashIndex.load(target))) == (5, 5, 5)


def test_a_closed_root_is_neither_gone_nor_pruned(update, photos, target, monkeypatch):
    update(photos)
    close(monkeypatch, photos)
    for prune in (False, True):
        with pytest.raises(HashIndexError, match=r"photos cannot be read \(Permission denied\).* permissions\.$"):
            update(photos, prune_missing=prune)
    assert len(HashIndex.load(target)) == 10


def test_a_closed_split_keeps_its_images(update, photos, target, monkeypatch):
    """Also where the names of the images do not begin with the split, and where the metadata is closed with them."""
    row = json.dumps({"file_name": "0.jpg", "text": "x"})
    (photos / "a" / "metadata.jsonl").write_text(row, encoding="utf-8")
    update(photos)
    assert HashIndex.load(target).ids.tolist() == ["0.jpg"]
    shutil.rmtree(photos / "b")
    close(monkeypatch, photos / "a")
    changes, _ = update(photos, prune_missing=True)
    assert (changes.kept, changes.removed, len(HashIndex.load(target))) == (1, 0, 1)
