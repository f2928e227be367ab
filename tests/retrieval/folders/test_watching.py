"""The loop of `--watch`, with scripted events instead of those of the system."""

import sys
from types import SimpleNamespace

import pytest

from cmfah_hf.errors import CMFAHError, HashIndexError
from cmfah_hf.retrieval.folders import watching


@pytest.fixture
def scripted(monkeypatch):
    """A function that replaces watchfiles by one that yields these rounds of events, then is interrupted."""
    calls = []

    def replace(*rounds):
        waiting = list(rounds)

        def watch(*folders, **options):
            calls.append((folders, options["watch_filter"]))
            while waiting:
                step = waiting.pop(0)
                if callable(step):
                    step()
                    step = set()
                yield step
            raise KeyboardInterrupt

        monkeypatch.setitem(sys.modules, "watchfiles", SimpleNamespace(watch=watch))
        return calls

    return replace


def run(update, folders, index="x.index"):
    with pytest.raises(KeyboardInterrupt):
        watching.watch_folders(update, [str(folder) for folder in folders], index)


def test_events_call_an_update_and_quiet_rounds_do_not(scripted, tmp_path, monkeypatch):
    scripted(set(), set(), {(1, "a.jpg")}, set())
    updates = []
    run(lambda: updates.append(1), [tmp_path])
    assert len(updates) == 2  # at the beginning, since a change may have come before the first event
    monkeypatch.setattr(watching, "_RESCAN_S", 0)
    scripted(set(), set(), set())
    updates.clear()
    run(lambda: updates.append(1), [tmp_path])
    assert len(updates) == 3


def test_an_error_does_not_end_the_watching(scripted, tmp_path, caplog):
    scripted({1}, {1})
    updates = []

    def update():
        updates.append(1)
        if len(updates) == 1:
            raise HashIndexError("the drive is gone.")

    run(update, [tmp_path])
    assert len(updates) == 2
    assert "the drive is gone." in caplog.text


def test_a_folder_that_comes_back_is_watched_again(scripted, tmp_path):
    here, drive = tmp_path / "here", tmp_path / "drive"
    here.mkdir()
    calls = scripted(set(), drive.mkdir, set(), drive.rmdir, set())
    run(lambda: None, [here, drive])
    assert [folders for folders, _ in calls] == [(str(here),), (str(here), str(drive)), (str(here),)]


def test_the_files_of_the_index_itself_do_not_count(scripted, tmp_path):
    calls = scripted(set())
    run(lambda: None, [tmp_path], tmp_path / "my.index")
    ((_, is_foreign),) = calls
    assert not is_foreign(None, str(tmp_path / "my.index"))
    assert not is_foreign(None, str(tmp_path / ".my.index.update.lock"))
    assert is_foreign(None, str(tmp_path / "deeper" / "my.index"))
    assert is_foreign(None, str(tmp_path / "photo.jpg"))


def test_without_watchfiles_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with pytest.raises(CMFAHError, match="pip install"):
        watching.watcher()
