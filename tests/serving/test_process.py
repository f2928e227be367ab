"""`cmfah serve` and `cmfah search --server` as processes."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from cmfah_hf.retrieval import HashIndex

pytestmark = pytest.mark.slow

PROGRAM = [sys.executable, "-c", "from cmfah_hf.cli import main; main()"]
# Prints on standard error the libraries that were loaded, and the seconds of processor time.
MEASURED = """
import sys, time
from cmfah_hf.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"torch", "transformers", "datasets", "numpy", "pyarrow", "faiss"} & set(sys.modules)
    print(sorted(heavy), time.process_time(), file=sys.stderr)
"""


@contextmanager
def started(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """A process whose standard error is read, and that ends with the block."""
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def lines_until(process: subprocess.Popen, pattern: str) -> re.Match[str]:
    lines = []
    for line in process.stderr:
        lines.append(line)
        if found := re.search(pattern, line):
            return found
    raise AssertionError("".join(lines))


def test_the_story_of_a_server(trained, photos, scenes, tmp_path, environment):
    """Started over a folder, asked, changed, stopped in the middle of a request, and started again."""
    environment["CMFAH_TOKEN"] = token = "0123456789abcdef"
    index = tmp_path / "photos.index"
    command = [*PROGRAM, "serve", str(trained.folder), str(index), "--images", str(photos), "--port", "0"]
    image = str(photos / "3.jpg")
    with started(command, environment) as process:
        url = lines_until(process, r"^Serving 5 images, 0 texts at (http://127\.0\.0\.1:\d+)$")[1]
        asked = ["search", "--server", url, "--image", image, "--metric", "hamming", "--json"]
        done = subprocess.run([sys.executable, "-c", MEASURED, *asked], env=environment, capture_output=True, text=True)
        hits = json.loads(done.stdout)["results"]
        assert ("3.jpg", 0) in [(hit["id"], hit["score"]) for hit in hits]
        heavy, seconds = done.stderr.rsplit(" ", 1)
        assert (heavy, float(seconds) < 1) == ("[]", True), done.stderr

        files = [("image", content) for content in scenes * 10]
        ids = [f"upload-{number}" for number in range(len(files))]
        http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60)
        answers: list[httpx.Response] = []
        body = {"data": {"query": json.dumps({"ids": ids})}, "files": files}
        request = threading.Thread(target=lambda: answers.append(http.post("/add", **body)))
        request.start()
        while "cmfah_calls 1" not in http.get("/metrics").text and request.is_alive():
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        request.join(60)
        assert answers[0].json() == {"changed": 60, "items": 65}
        lines_until(process, r"^Stopping: running requests are finished, and changes saved\.$")
        assert process.wait(60) == 0
        http.close()
    assert len(HashIndex.load(index)) == 65

    command += ["--read-only"]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    command = [*PROGRAM, "serve", str(trained.folder), str(index), "--read-only", "--port", "0"]
    with started(command, environment) as process:
        url = lines_until(process, r"^Serving 65 images, 0 texts at (\S+)$")[1]
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60) as http:
            assert http.post("/remove", json={"ids": ["3.jpg"]}).status_code == 422
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
