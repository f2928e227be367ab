"""Commands on folders with a subfolder that the system does not let them read."""

import json
import shutil

import pytest
from closed_folders import without_privileges
from coarse_jpegs import draw


@pytest.mark.slow
def test_a_closed_subfolder_stops_no_command(trained, tmp_path, environment, run_in_a_new_process):
    photos, described, later = tmp_path / "photos", tmp_path / "described", tmp_path / "later"
    for number in range(8):
        draw(photos / ("a" if number < 6 else "System Volume Information") / f"{number}.jpg", number)
    shutil.copytree(photos, later)
    (described / "train").mkdir(parents=True)
    shutil.copy(photos / "a" / "0.jpg", described / "train")
    row = json.dumps({"file_name": "0.jpg", "text": "sun"})
    (described / "train" / "metadata.jsonl").write_text(row, encoding="utf-8")
    (described / "lost+found").mkdir()
    closed = [photos / "System Volume Information", described / "lost+found", later / "a"]

    model, new, former = str(trained.folder), str(tmp_path / "new.index"), str(tmp_path / "former.index")
    run_in_a_new_process([["index", model, str(later), "-o", former]], environment)
    commands = [
        ["index", model, str(photos), "-o", new, "--json"],
        ["index", model, "-o", former, "--prune-missing-root", "--dry-run", "--json"],
        ["index", model, "-o", former, "--prune-missing-root", "--json"],
        ["search", model, "--images", str(photos), "--image", str(photos / "a" / "0.jpg"), "--json"],
        ["data", "inspect", str(described), "--json"],
        ["data", "from-folder", str(photos), "--json"],
        ["data", "inspect", str(photos), "--json"],
    ]
    for folder in closed:
        folder.chmod(0)
    try:
        outcomes = run_in_a_new_process(commands, environment, without_privileges())
    finally:
        for folder in closed:
            folder.chmod(0o755)
    assert [(outcome.code, outcome.err) for outcome in outcomes if outcome.code] == []
    first, dry, second, found, inspected, made, again = outcomes
    assert (first.document["items"], first.document["skipped"]) == (6, {"folders that cannot be read": 1})
    for update in (dry, second):
        counted = {"kept": 6, "removed": 0, "unchanged": 2, "missing": []}
        assert counted.items() <= update.document.items()
    assert second.document["items"] == 8
    assert {result["id"].partition("/")[0] for result in found.document["results"]} == {"a"}
    assert "lost+found cannot be read (Permission denied)" in inspected.err
    assert made.document["images"] == 6
    assert again.err == ""
