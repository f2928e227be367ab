"""The running Space as programs meet it: its endpoints, its refusals, its memory under a crowd."""

import io
import json
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from cmfah_hf.data.scenes import FIRST_QUERY, draw_scene

ROOT = Path(__file__).parents[2]

logger = logging.getLogger(__name__)

pytestmark = pytest.mark.slow


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def client(served) -> Client:
    return Client(served.url, verbose=False)


@pytest.fixture(scope="module")
def http(served):
    with httpx.Client(base_url=served.url.rstrip("/"), timeout=120) as connection:
        yield connection


def upload(http: httpx.Client, content: bytes, name: str = "picture.png", mime: str = "image/png") -> str:
    answer = http.post("/gradio_api/upload", files={"files": (name, content, mime)})
    assert answer.status_code == 200, answer.text
    return answer.json()[0]


def call(http: httpx.Client, endpoint: str, *values) -> tuple[str, object]:
    """The last event of one call, `complete` or `error`, and its data."""
    asked = http.post(f"/gradio_api/call/{endpoint}", json={"data": values})
    assert asked.status_code == 200, asked.text
    with http.stream("GET", f"/gradio_api/call/{endpoint}/{asked.json()['event_id']}") as stream:
        lines = [line for line in stream.iter_lines() if line]
    events = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    return events[-1], json.loads(lines[-1].removeprefix("data: "))


def picture_of(path: str) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_the_page_stands_soon_and_the_model_follows(served):
    # Seconds of a processor, which other programs beside this one do not lengthen.
    assert served.page_cpu_seconds < 10
    assert served.page_seconds <= served.ready_seconds


def test_the_endpoints_are_documented_and_answer(client):
    described = client.view_api(return_format="dict")["named_endpoints"]
    assert set(described) == {"/search_text", "/search_picture", "/explain"}
    assert [value["parameter_name"] for value in described["/search_text"]["parameters"]] == ["text", "k"]

    found = client.predict(text="boat sun", k=3, api_name="/search_text")
    assert [len(found["images"][metric]["hits"]) for metric in ("hamming", "aqd")] == [3, 3]
    scores = [hit["score"] for hit in found["images"]["hamming"]["hits"]]
    assert scores == sorted(scores)
    assert found["images"]["aqd"]["ms"] > 0
    best = found["images"]["aqd"]["hits"][0]["id"]
    why = client.predict(text="boat sun", picture=best, api_name="/explain")
    hamming = {hit["id"]: hit["score"] for hit in found["images"]["hamming"]["hits"]}
    differ = sum(a != b for a, b in zip(why["query_bits"], why["picture_bits"], strict=True))
    assert differ == why["distance"] == hamming.get(best, differ)
    assert why["words"] == ["boat", "sun"]
    assert np.shape(why["weights"]) == (why["grid"][0] * why["grid"][1], 2)


def test_a_picture_finds_itself_and_texts(client, tmp_path):
    scene = draw_scene(FIRST_QUERY + 17)
    path = tmp_path / "scene.png"
    scene.image.save(path)
    found = client.predict(picture=handle_file(str(path)), k=8, api_name="/search_picture")
    assert set(found) == {"bits", "encoding_ms", "ignored_words", "images", "texts"}
    assert f"scene-{FIRST_QUERY + 17}" in [hit["id"] for hit in found["images"]["hamming"]["hits"]]
    assert found["images"]["hamming"]["hits"][0]["score"] == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"text": "zzz", "k": 3, "api_name": "/search_text"}, "None of these words"),
        ({"text": "boat", "k": 99, "api_name": "/search_text"}, "from 1 to 24"),
        ({"text": "boat", "picture": "../../etc/passwd", "api_name": "/explain"}, "There is no picture"),
    ],
)
def test_wrong_calls_are_told_so_in_one_line(client, arguments, reason):
    with pytest.raises(AppError, match=reason):
        client.predict(**arguments)


def test_wrong_files_are_refused_in_one_line(http, served):
    bomb = png(Image.new("1", (10_000, 10_000)))
    refused = {
        b"nonsense": "no picture that can be read",
        bomb: "10,000 x 10,000 pixels",
        b"%PDF-1.7": "no picture that can be read",
    }
    before = served.resident
    for content, reason in refused.items():
        event, data = call(http, "search_picture", picture_of(upload(http, content)), 3)
        assert event == "error"
        assert reason in data["error"]
    assert served.resident - before < 60 * 2**20  # the bomb is 100 MB and more where it is decoded
    too_long = http.post("/gradio_api/upload", files={"files": ("x.png", b"x" * (9 * 2**20), "image/png")})
    assert too_long.status_code == 413


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/proc/self/environ",
        str(ROOT / "pyproject.toml"),
        str(ROOT / "spaces" / "cmfah-search" / "space.json"),
        "cmfah_hf/errors.py",
        "log",
    ],
)
def test_no_file_of_the_machine_can_be_read(http, served, path):
    secret = f"{served.uploads}/../log"
    for address in (path, f"../../../../..{path}", f"{served.uploads}/..%2f..{path}", path.replace("/", "%2f"), secret):
        for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/../", "/assets/../../../"):
            answer = http.get(f"{prefix}{address}")
            assert answer.status_code in (400, 403, 404, 405, 307), (prefix, address)
            assert b"root:" not in answer.content
    for given in (picture_of(path), {"path": f"{served.uploads}/../log", "meta": {"_type": "gradio.FileData"}}):
        event, data = call(http, "search_picture", given, 3)
        assert event == "error"
        assert str(ROOT) not in json.dumps(data)


def test_nothing_is_fetched_for_others(http):
    asked = []

    class Listener(threading.Thread):
        def __init__(self):
            super().__init__(daemon=True)
            self.socket = socket.create_server(("127.0.0.1", 0))

        def run(self):
            while True:
                asked.append(self.socket.accept())

    listener = Listener()
    listener.start()
    address = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/x.png"
    assert http.get(f"/gradio_api/file={address}").status_code == 403
    assert http.get(f"/gradio_api/proxy={address}").status_code == 403
    for given in (picture_of(address), picture_of("x.png") | {"url": address}, {"url": address}):
        assert call(http, "search_picture", given, 3)[0] == "error"
    assert call(http, "search_picture", {"url": "data:image/png;base64,AAAA", "path": None}, 3)[0] == "error"
    time.sleep(0.2)
    assert asked == []


def test_no_answer_of_the_server_names_a_folder_of_it(http):
    for path in ("/", "/config", "/gradio_api/info", "/gradio_api/startup-events", "/gradio_api/openapi.json"):
        answer = http.get(path)
        assert str(ROOT) not in answer.text, path
        assert "site-packages" not in answer.text, path
    assert http.get("/monitoring").status_code in (403, 404)


def test_a_crowd_and_malformed_uploads_leave_answers_right_and_memory_stable(http, served):
    queries = ["boat sun", "house", "tree", "kite", "moon star"]
    expected = {}
    for query in queries:
        _, (document,) = call(http, "search_text", query, 4)
        expected[query] = [hit["id"] for hit in document["images"]["aqd"]["hits"]]
    whole = png(draw_scene(3).image)
    bomb = png(Image.new("1", (10_000, 10_000)))
    rng = np.random.default_rng(5)
    malformed = [bomb, b"", b"GIF89a", b"<svg/>", whole[:200]]
    for _ in range(20):
        content = bytearray(whole)
        for at in rng.integers(len(content), size=12):
            content[at] = rng.integers(256)
        malformed.append(bytes(content))
    mimes = ["image/png", "text/html", "application/x-sh", "image/svg+xml"]

    def user(number: int) -> str:
        with httpx.Client(base_url=served.url.rstrip("/"), timeout=280) as connection:
            query = queries[number % len(queries)]
            event, data = call(connection, "search_text", query, 4)
            assert event == "complete"
            assert [hit["id"] for hit in data[0]["images"]["aqd"]["hits"]] == expected[query]
            content = malformed[number % len(malformed)]
            path = upload(connection, content, f"x{number}.png", mimes[number % len(mimes)])
            return call(connection, "search_picture", picture_of(path), 2)[0]

    def crowd() -> list[str]:
        with ThreadPoolExecutor(50) as pool:
            return list(pool.map(user, range(50)))

    for _ in range(2):  # buffers and caches grow to the size of a crowd once
        crowd()
    before = served.resident
    ends = [crowd() for _ in range(2)]
    grown = served.resident - before
    logger.info("Resident: %.0f MB, after 100 more users %+.1f MB.", before / 2**20, grown / 2**20)
    for end in ends:
        # The bomb, the empty ones and those cut short among them; a fuzzed picture may still be one.
        assert end.count("error") >= 10
        assert set(end) <= {"error", "complete"}
    # The allocator's own swing; four bombs are among these uploads, each of 100 MB where it is decoded.
    assert grown < 80 * 2**20
    assert served.process.poll() is None
    log = served.log.read_text(encoding="utf-8")
    assert "MemoryError" not in log
