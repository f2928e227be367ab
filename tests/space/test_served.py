"""The running Space as an API: endpoints, refused requests, memory under load."""

import io
import itertools
import json
import logging
import os
import random
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from cmfah_hf.data.scenes import FIRST_QUERY, draw_scene
from cmfah_hf.errors import CMFAHError
from cmfah_hf.space import SpaceSettings, serve
from cmfah_hf.space.uploads import MAX_BYTES, MAX_FILES, MAX_TOTAL_BYTES

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


def upload(http: httpx.Client, content: bytes, name: str = "image.png", mime: str = "image/png") -> str:
    answer = http.post("/gradio_api/upload", files={"files": (name, content, mime)})
    assert answer.status_code == 200, answer.text
    return answer.json()[0]


def call(http: httpx.Client, endpoint: str, *values) -> tuple[str, object]:
    """The last event of one call, `complete` or `error`, and its data. A full queue is asked again."""
    asked = http.post(f"/gradio_api/call/{endpoint}", json={"data": values})
    while asked.status_code == 503 and "Queue is full" in asked.text:
        time.sleep(0.2)
        asked = http.post(f"/gradio_api/call/{endpoint}", json={"data": values})
    assert asked.status_code == 200, asked.text
    with http.stream("GET", f"/gradio_api/call/{endpoint}/{asked.json()['event_id']}") as stream:
        lines = [line for line in stream.iter_lines() if line]
    events = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    return events[-1], json.loads(lines[-1].removeprefix("data: "))


def image_of(path: str) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_the_page_is_available_soon_and_the_model_follows(served):
    # CPU seconds, which do not depend on other processes.
    assert served.page_cpu_seconds < 10
    assert served.page_seconds <= served.ready_seconds


def test_the_endpoints_are_documented_and_answer(client):
    described = client.view_api(return_format="dict")["named_endpoints"]
    assert set(described) == {"/search_text", "/search_image", "/explain", "/index_info"}
    assert [value["parameter_name"] for value in described["/search_text"]["parameters"]] == [
        "text",
        "k",
        "avoid",
        "min_score",
    ]

    found = client.predict(text="boat sun", k=3, api_name="/search_text")
    assert [len(found["images"][metric]["hits"]) for metric in ("hamming", "aqd")] == [3, 3]
    scores = [hit["score"] for hit in found["images"]["hamming"]["hits"]]
    assert scores == sorted(scores)
    assert found["images"]["aqd"]["ms"] > 0
    best = found["images"]["aqd"]["hits"][0]["id"]
    # Words to avoid may be left out, by their name or at the end of the list.
    avoided = client.predict(text="boat sun", k=24, avoid="sun", api_name="/search_text")
    assert (
        avoided["images"]["aqd"]["hits"]
        != client.predict("boat sun", 24, api_name="/search_text")["images"]["aqd"]["hits"]
    )
    why = client.predict(text="boat sun", image=best, api_name="/explain")
    hamming = {hit["id"]: hit["score"] for hit in found["images"]["hamming"]["hits"]}
    differ = sum(a != b for a, b in zip(why["query_bits"], why["image_bits"], strict=True))
    assert differ == why["distance"] == hamming.get(best, differ)
    assert why["words"] == ["boat", "sun"]
    assert np.shape(why["weights"]) == (why["grid"][0] * why["grid"][1], 2)


def test_an_image_finds_itself_and_texts(client, tmp_path):
    scene = draw_scene(FIRST_QUERY + 17)
    path = tmp_path / "scene.png"
    scene.image.save(path)
    found = client.predict(image=handle_file(str(path)), k=8, api_name="/search_image")
    assert set(found) == {"bits", "encoding_ms", "ignored_words", "images", "texts"}
    assert f"scene-{FIRST_QUERY + 17}" in [hit["id"] for hit in found["images"]["hamming"]["hits"]]
    assert found["images"]["hamming"]["hits"][0]["score"] == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"text": "zzz", "k": 3, "api_name": "/search_text"}, "The model knows none of these words"),
        ({"text": "boat", "k": 99, "api_name": "/search_text"}, "between 1 and 24"),
        ({"text": "boat", "image": "../../etc/passwd", "api_name": "/explain"}, "Unknown image"),
    ],
)
def test_invalid_calls_are_refused_in_one_line(client, arguments, reason):
    with pytest.raises(AppError, match=reason):
        client.predict(**arguments)


def test_invalid_files_are_refused_in_one_line(http, served):
    bomb = png(Image.new("1", (10_000, 10_000)))
    refused = {
        b"nonsense": "not a readable image",
        bomb: "10,000 x 10,000 pixels",
        b"%PDF-1.7": "not a readable image",
    }
    before = served.resident
    for content, reason in refused.items():
        event, data = call(http, "search_image", image_of(upload(http, content)), 3)
        assert event == "error"
        assert reason in data["error"]
    assert served.resident - before < 60 * 2**20  # the bomb takes at least 100 MB if it is decoded
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
    for given in (image_of(path), {"path": f"{served.uploads}/../log", "meta": {"_type": "gradio.FileData"}}):
        event, data = call(http, "search_image", given, 3)
        assert event == "error"
        assert str(ROOT) not in json.dumps(data)


def test_the_server_fetches_no_addresses(http):
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
    for given in (image_of(address), image_of("x.png") | {"url": address}, {"url": address}):
        assert call(http, "search_image", given, 3)[0] == "error"
    assert call(http, "search_image", {"url": "data:image/png;base64,AAAA", "path": None}, 3)[0] == "error"
    time.sleep(0.2)
    assert asked == []


def test_no_response_contains_a_path_of_the_server(http):
    for path in ("/", "/config", "/gradio_api/info", "/gradio_api/startup-events", "/gradio_api/openapi.json"):
        answer = http.get(path)
        assert str(ROOT) not in answer.text, path
        assert "site-packages" not in answer.text, path
    assert http.get("/monitoring").status_code in (403, 404)


def test_a_private_file_is_not_searched_and_looks_like_a_missing_one(http, tmp_path):
    private, pipe = tmp_path / "private.png", tmp_path / "pipe.png"
    draw_scene(3).image.save(private)
    os.mkfifo(pipe)
    link = tmp_path / "link.png"
    link.symlink_to(private)
    answers = set()
    begin = time.monotonic()
    for path in (private, tmp_path / "missing.png", "/dev/zero", pipe, link, tmp_path):
        for given in ({"path": str(path)}, image_of(str(path)), {"path": str(path), "meta": None}):
            answers.add(json.dumps(call(http, "search_image", given, 2)))
    assert len(answers) == 1
    assert "not an image that was uploaded here" in answers.pop()
    assert time.monotonic() - begin < 20


def test_uploads_are_bounded_and_refused_ones_deleted(http, served):
    kept = served.uploads / "cmfah-space"
    for number in range(20):
        upload(http, bytes([number]) * MAX_BYTES)
    sizes = [path.stat().st_size for path in served.uploads.rglob("*") if path.is_file()]
    assert sum(sizes) <= MAX_TOTAL_BYTES
    name = upload(http, b"nonsense")
    assert (kept / name).exists()
    assert call(http, "search_image", image_of(name), 2)[0] == "error"
    assert not (kept / name).exists()
    # No files are left elsewhere, also after an interrupted upload.
    with socket.create_connection((http.base_url.host, http.base_url.port)) as connection:
        head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {http.base_url.netloc.decode()}\r\n"
        form = "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 5000000\r\n\r\n--x\r\n"
        part = 'Content-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
        connection.sendall((head + form + part).encode() + b"x" * 3_000_000)
    time.sleep(0.5)
    files = {path for path in served.uploads.rglob("*") if path.is_file()}
    assert files == set(kept.iterdir())
    assert {path.stat().st_size for path in files} == {MAX_BYTES}


def test_other_hosts_are_refused(http):
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example"):
        answer = http.get("/config", headers={"Host": host, "Origin": f"http://{host}"})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
        assert "components" not in answer.text
    preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for origin in (preflight, {"Origin": "null"}, {"Origin": "http://evil.example"}):
        answer = http.options("/gradio_api/queue/join", headers=origin)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    assert http.get("/config", headers={"X-Forwarded-Host": "evil.example"}).json()["root"] == str(
        http.base_url
    ).rstrip("/")


def test_a_server_for_a_local_network_answers_to_its_addresses_and_named_hosts(tmp_path):
    settings = SpaceSettings(hosts=("search.home",))
    app = serve(settings, tmp_path, "0.0.0.0", keep_on_error=True, problem=CMFAHError("x"), block=False)
    try:
        base = f"http://127.0.0.1:{app.server_port}"
        for host in ("127.0.0.1", "192.168.1.7", f"[fe80::1]:{app.server_port}", "localhost", "search.home"):
            answer = httpx.get(f"{base}/config", headers={"Host": host, "Origin": f"http://{host}"})
            assert answer.status_code == 200, host
        assert httpx.get(f"{base}/config", headers={"Host": "evil.example"}).status_code == 403
        foreign = {"Host": "192.168.1.7", "Origin": "http://evil.example"}
        assert httpx.get(f"{base}/config", headers=foreign).status_code == 403
    finally:
        app.close(verbose=False)


def test_unused_endpoints_are_not_found(http):
    for path in (
        "/openapi.json",
        "/gradio_api/openapi.json",
        "/docs",
        "/redoc",
        "/monitoring",
        "/gradio_api/deep_link",
    ):
        assert http.get(path).status_code == 404, path
    for path in ("/gradio_api/run/search_text", "/gradio_api/api/search_text", "/gradio_api/component_server"):
        assert http.post(path, json={"data": ["boat", 3]}).status_code == 404, path


def test_unknown_words_are_reported(client):
    found = client.predict(text="boat quixotic zebra", k=3, api_name="/search_text")
    assert found["ignored_words"] == ["quixotic", "zebra"]


class Crowd:
    """Users who search, and clients that send malformed requests at the same time."""

    def __init__(self, served, http: httpx.Client):
        self.served = served
        self.expected = {}
        for query in ("boat sun", "house", "tree", "kite", "moon star"):
            _, (document,) = call(http, "search_text", query, 4)
            self.expected[query] = [hit["id"] for hit in document["images"]["aqd"]["hits"]]
        whole = png(draw_scene(3).image)
        rng = np.random.default_rng(5)
        self.images = [whole, png(Image.new("1", (10_000, 10_000))), b"", b"GIF89a", b"<svg/>", whole[:200]]
        for _ in range(20):
            content = bytearray(whole)
            for at in rng.integers(len(content), size=12):
                content[at] = rng.integers(256)
            self.images.append(bytes(content))

    def run(self, seconds: float, users: int = 50) -> Counter[str]:
        """Counts the outcomes; a wrong answer or a failure is raised."""
        end, ends = time.monotonic() + seconds, Counter()
        with ThreadPoolExecutor(users + 4) as pool:
            tasks = [pool.submit(self._user, number, end) for number in range(users)]
            tasks += [pool.submit(self._attacker, number, end) for number in range(4)]
            for task in tasks:
                ends += task.result()
        return ends

    def _user(self, number: int, end: float) -> Counter[str]:
        ends = Counter()
        with httpx.Client(base_url=self.served.url.rstrip("/"), timeout=280) as connection:
            for turn in itertools.count(number):
                if time.monotonic() > end:
                    return ends
                query = list(self.expected)[turn % len(self.expected)]
                event, data = call(connection, "search_text", query, 4)
                assert event == "complete"
                assert [hit["id"] for hit in data[0]["images"]["aqd"]["hits"]] == self.expected[query]
                content = self.images[turn % len(self.images)]
                event, data = call(connection, "search_image", image_of(upload(connection, content)), 2)
                assert event == "complete" or isinstance(data["error"], str)
                ends.update(["searched", event])

    def _attacker(self, number: int, end: float) -> Counter[str]:
        ends, rng = Counter(), random.Random(number)
        bodies = [b"{", b"[" * 50_000, b'{"data": [' + b"9" * 5000 + b"]}", b'{"data": [{"path": "/dev/zero"}, 3]}']
        with httpx.Client(base_url=self.served.url.rstrip("/"), timeout=60) as connection:
            while time.monotonic() < end:
                session = f"attacker-{rng.random()}".replace(".", "-")
                abandoned = {"data": ["boat", "", 24, 0, False], "fn_index": self.private, "session_hash": session}
                named = {"session_hash": session, "event_id": "e", "fn_index": 0}
                elsewhere = rng.choice(["/etc/passwd", "0" * 64, "http://127.0.0.1:1/"])
                endpoint = rng.choice(["search_image", "search_text", "x"])
                answers = [
                    connection.post("/gradio_api/queue/join", content=rng.choice(bodies)),
                    connection.post(f"/gradio_api/call/{endpoint}", content=rng.choice(bodies)),
                    connection.post("/gradio_api/queue/join", json=abandoned),
                    connection.get(f"/gradio_api/file={elsewhere}"),
                    connection.get(f"/gradio_api/upload_progress?upload_id={session}"),
                    connection.post("/gradio_api/upload", content=b"--x" * 9999, headers={"content-type": "x"}),
                    connection.get("/config", headers={"Host": "evil.example"}),
                    connection.post("/gradio_api/cancel", json=named),
                ]
                with connection.stream("GET", f"/gradio_api/heartbeat/{session}") as stream:
                    next(stream.iter_raw())
                ends.update(str(answer.status_code) for answer in answers)
                time.sleep(0.1)
        return ends

    @cached_property
    def private(self) -> int:
        """The id of the function behind the search button."""
        config = httpx.get(f"{self.served.url}config", timeout=60).json()
        return next(
            each["id"] for each in config["dependencies"] if len(each["inputs"]) == 5 and len(each["outputs"]) == 2
        )

    def held(self) -> dict[str, int]:
        """Resources of the server: bytes of memory, bytes on disk, open files."""
        time.sleep(3)  # connections close
        files = [path.stat().st_size for path in self.served.uploads.rglob("*") if path.is_file()]
        return {
            "memory": self.served.resident,
            "disk": sum(files) + self.served.log.stat().st_size,
            "files": len(files),
            "descriptors": len(list(Path(f"/proc/{self.served.process.pid}/fd").iterdir())),
        }


@pytest.mark.timeout(420)
def test_load_with_malformed_requests_keeps_results_correct_and_memory_bounded(http, served):
    crowd = Crowd(served, http)
    # Buffers, sessions and uploads grow to their bounds once.
    for _ in range(MAX_FILES):
        upload(http, crowd.images[0])
    crowd.run(20)
    before = crowd.held()
    ends = crowd.run(40)
    after = crowd.held()
    logger.info("%s; before: %s, after: %s", dict(ends), before, after)
    assert ends["searched"] >= 33
    assert ends["error"] > 0 < ends["complete"]
    # A server that is slower than the attackers fills its queue, which has a bound, and says so with 503.
    assert not [status for status in ends if status.startswith("5") and status != "503"]
    for what, amount in after.items():
        assert amount <= 1.1 * before[what], (what, before, after)
    assert served.process.poll() is None
    log = served.log.read_text(encoding="utf-8")
    assert "MemoryError" not in log
    assert "Traceback" not in log
