"""The staging folder of a push: the next complete push removes the files of killed ones."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cmfah_hf.data import make_scenes
from cmfah_hf.errors import HubError
from cmfah_hf.hub.publishing import staging

ROOT = Path(__file__).parents[2]
PUSH = """
import os, signal, sys
from pathlib import Path
import cmfah_hf.hub.publishing as publishing

steps, stop = 0, int(sys.argv[2])

def step(frame, event, argument):  # kills this process at the given call inside the staging of a push
    global steps
    name = frame.f_code.co_filename
    if event == "call" and any(part in name for part in ("publishing", "atomic", "shutil", "pathlib")):
        steps += 1
        if steps == stop:
            os.kill(os.getpid(), signal.SIGKILL)

parent = Path(sys.argv[1])
sys.setprofile(step)
with publishing.staging(parent, "run", "org/model") as stage:
    (stage / "model.safetensors").write_bytes(bytes(1000))
    (stage / "model").mkdir()
    (stage / "model" / "config.json").write_text("{}")
sys.setprofile(None)
print("done", steps)
"""


def test_staging_folder_is_empty_private_and_removed_afterwards(tmp_path):
    with staging(tmp_path / "cache", "run", "org/model") as stage:
        assert list(stage.iterdir()) == []
        assert stage.stat().st_mode & 0o077 == 0
        (stage / "x").write_text("x")
        with pytest.raises(HubError, match="another process is pushing it"), staging(stage.parent, "run", "org/model"):
            pass
        with staging(stage.parent, "run", "org/other") as other:  # folders in use are not treated as leftovers
            assert other != stage
        assert (stage / "x").exists()
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(RuntimeError), staging(tmp_path / "cache", "run", "org/model"):
        raise RuntimeError
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_unwritable_cache_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(HubError, match=r"run: cannot be prepared in .*file/cache") as raised,
        staging(tmp_path / "file" / "cache", "run", "org/model"),
    ):
        pass
    assert "\n" not in str(raised.value)


def test_files_of_others_are_kept(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "0123456789abcdef.txt").touch()
    with staging(tmp_path, "run", "org/model"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "0123456789abcdef.txt"}


@pytest.mark.slow
def test_the_next_push_removes_the_files_of_a_push_killed_at_any_step(tmp_path):
    def run(stop: int) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", PUSH, str(tmp_path / "cache"), str(stop)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    whole = run(0)
    assert whole.returncode == 0, whole.stderr
    steps = int(whole.stdout.split()[1])
    for stop in sorted({1 + steps * part // 12 for part in range(12)}):
        assert run(stop).returncode == -signal.SIGKILL
        with staging(tmp_path / "cache", "another run", "org/other") as stage:
            assert list(stage.iterdir()) == []
        assert list((tmp_path / "cache").iterdir()) == [], stop


@pytest.mark.slow
def test_the_next_push_removes_the_files_of_a_killed_push_of_a_data_set(push, hub, tmp_path):
    """Of another source, so that the staging folder is not simply reused."""
    make_scenes(4, image_size=32).to_parquet(tmp_path / "query.parquet")
    hub.mute("PUT /objects/")
    process = push(tmp_path / "query.parquet", "--repo-id", "org/scenes", start=True)
    end = time.monotonic() + 100
    while not any(request.method == "POST" and "batch" in request.path for request in hub.log):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    (cache,) = tmp_path.rglob("cmfah-push")
    assert list(cache.iterdir())
    hub.faults.clear()
    with staging(cache, "another", "org/other"):
        pass
    assert list(cache.iterdir()) == []
    assert hub.history("org/scenes") == ["initial commit"]
