"""The embedded Space in a new process, and Debian's Chromium as its client."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@dataclass(frozen=True)
class Served:
    """A running Space: address, process, log, upload folder, and the seconds until it was ready."""

    url: str
    process: subprocess.Popen
    log: Path
    uploads: Path
    page_seconds: float
    page_cpu_seconds: float
    ready_seconds: float

    @property
    def resident(self) -> int:
        """Bytes of memory that the process currently uses."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])


def cpu_seconds(process: subprocess.Popen) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(command: list[str], folder: Path, log: Path, environment: dict[str, str]) -> subprocess.Popen:
    with log.open("w", encoding="utf-8") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=stream, cwd=folder, env=environment)


def wait_for(log: Path, pattern: str, process: subprocess.Popen, seconds: float = 200) -> re.Match[str]:
    """The match of a pattern in the log of a process, as soon as it appears.

    On a timeout, the log ends with the stack of each thread.
    """
    end = time.monotonic() + seconds
    while not (match := re.search(pattern, log.read_text(encoding="utf-8"), re.MULTILINE)):
        assert process.poll() is None, log.read_text(encoding="utf-8")
        if time.monotonic() > end:
            process.send_signal(signal.SIGABRT)
            process.wait(30)
            raise AssertionError(log.read_text(encoding="utf-8"))
        time.sleep(0.05)
    return match


def space_environment(folder: Path) -> dict[str, str]:
    """Environment of a server process: uploads below a folder, no network, no settings of this test run."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "GRADIO_", "PYTHONPATH"))}
    return own | {
        "HF_HOME": str(folder / "hf-home"),
        "HF_HUB_OFFLINE": "1",
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
    }


def _responds(url: str) -> bool:
    try:
        return httpx.get(url, timeout=30).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")  # after a test of its load, a server is busy with abandoned requests for minutes
def served(tmp_path_factory) -> Iterator[Served]:
    """`cmfah space` as a user starts it, ready to answer."""
    with serving(tmp_path_factory.mktemp("space")) as found:
        yield found


@pytest.fixture(scope="session")
def space_server() -> Callable[..., AbstractContextManager[Served]]:
    """The function that starts a server."""
    return serving


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Served]:
    """`cmfah space` with options in a new process, with its log and uploads in a folder."""
    log = folder / "log"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from cmfah_hf.cli import main; main()", "space", "--port", str(port)]
    command += options
    begin = time.monotonic()
    process = start(command, folder, log, space_environment(folder) | {"PYTHONPATH": str(ROOT)})
    try:
        # Before the libraries of the page are loaded, and so before it answers.
        starting = rf"^The page starts at http://127\.0\.0\.1:{port}/ and loads its libraries\.$"
        assert wait_for(log, starting, process)
        assert not _responds(f"http://127.0.0.1:{port}/")
        while not _responds(f"http://127.0.0.1:{port}/"):
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < begin + 200, log.read_text(encoding="utf-8")
            time.sleep(0.05)
        page, cpu = time.monotonic() - begin, cpu_seconds(process)
        # The address is in the log at once, and not only after the model.
        assert wait_for(log, r"^The page is at (\S+) ", process, 5)[1] == f"http://127.0.0.1:{port}/"
        url = wait_for(log, r"^Serving at (\S+)$", process)[1]
        yield Served(url, process, log, folder / "uploads", page, cpu, time.monotonic() - begin)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")  # while it is active, no other event loop can run in this process
def chromium():
    """The browser; tests that need it are skipped if it is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; Debian's package chromium has it")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
