"""Refused requests: hosts, tokens, sizes, times, malformed bodies; and the settings of the limits."""

import io
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from cmfah_hf.errors import CMFAHError
from cmfah_hf.serving import ServedRetriever, ServedSources, ServiceLimits, read_token, serve
from cmfah_hf.serving.tokens import TokenCheck
from serving.servers import Running, running

TOKEN = "0123456789abcdef-secret"
LIMITS = ServiceLimits(
    body_bytes=200_000, image_bytes=100_000, image_pixels=1_000_000, images=3, texts=4, text_characters=50,
    conditions=2, ids=5, k=20, at_once=1, waiting=2, large_bodies=1, header_seconds=0.5, body_seconds=0.5,
    answer_seconds=1.0,
)  # fmt: skip


@pytest.fixture
def limited(retriever, scenes) -> Running:
    """A server with a token and small limits."""
    retriever.add_images(scenes, [f"{n}.png" for n in range(6)])
    with running(ServedRetriever(retriever), TOKEN, LIMITS) as own:
        own.http.headers["Authorization"] = f"Bearer {TOKEN}"
        yield own


def refusals(answer: httpx.Response) -> tuple[int, str]:
    detail = answer.json()["detail"]
    assert detail.isprintable()
    assert answer.headers["cmfah-api"] == "1"
    return answer.status_code, detail


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_wrong_token_opens_nothing_but_health(limited):
    paths = [("GET", path) for path in ("/info", "/metrics", "/openapi.json", "/sync", "/nothing")]
    paths += [("POST", path) for path in ("/search", "/add", "/remove", "/sync")]
    for given in (
        None,
        "",
        "Bearer",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        TOKEN,
        "Bearer \xff",
    ):
        headers = {} if given is None else {"Authorization": given.encode("latin-1")}
        with httpx.Client(base_url=limited.url, headers=headers) as http:
            for method, path in paths if given in (None, f"Bearer {TOKEN}x") else paths[-1:]:
                answer = http.request(method, path)
                assert refusals(answer)[0] == 401, (given, path)
                assert answer.headers["www-authenticate"] == "Bearer"
            assert http.get("/health").json()["status"] == "ok"
    twice = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", f"Bearer {TOKEN}")]
    assert httpx.get(f"{limited.url}/info", headers=twice).status_code == 401
    assert limited.http.get("/info").status_code == 200


def test_other_hosts_are_refused(limited):
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        for path in ("/health", "/info", "/search"):
            assert refusals(limited.http.post(path, headers=headers))[0] == 403
    assert limited.http.get("/health", headers={"Host": "localhost:1"}).status_code == 200


@pytest.mark.parametrize(
    ("asked", "status", "reason"),
    [
        (b'{"text": "boat', 400, "not valid JSON"),
        (b"\xff\xfe", 400, "not valid JSON"),
        (b'{"text": "a", "text": "b"}', 400, "twice"),
        (b'{"text": "\\ud800"}', 400, "surrogate"),
        (b"[" * 5_000, 400, "nested"),
        (b"[1]", 422, "The request: "),
        (b'{"txt": "boat"}', 422, "txt: "),
        (b'{"text": 7}', 422, "text"),
        (b'{"text": "boat", "k": "5"}', 422, "k: "),
        (b'{"text": "boat", "k": 0}', 422, "k: "),
        (b'{"text": "boat", "k": 21}', 422, "k is 21, and at most 20"),
        (b'{"text": "boat", "k": 1e400}', 422, "k: "),
        (b'{"text": "boat", "metric": "cosine"}', 422, "metric: "),
        (b'{"text": "boat", "target": "/etc/passwd"}', 422, "target: "),
        (b'{"text": "boat", "image_weight": NaN}', 422, "image_weight: "),
        (b'{"terms": [{"text": "boat", "weight": Infinity}]}', 422, "weight: "),
        (b'{"terms": [{"text": "boat", "weight": 1e9}]}', 422, "from -1000 to 1000"),
        (b'{"terms": [{"image": 0}]}', 422, "names image 0, and 0 images were uploaded"),
        (b'{"terms": [{"image": "/etc/passwd"}]}', 422, "image: "),
        (b'{"terms": []}', 422, "terms"),
        (b'{"text": ["a", "b", "c", "d", "e"]}', 422, "number of texts is 5, and at most 4"),
        (b'{"text": "' + b"a " * 30 + b'"}', 422, "characters of a text is 60, and at most 50"),
        (b'{"text": "boat", "where": ["a=1", "b=2", "c=3"]}', 422, "conditions is 3, and at most 2"),
        (b'{"text": "boat", "where": ["year=2020"]}', 422, "no metadata column 'year'"),
        (b'{"text": "qqqq"}', 422, "No word of 'qqqq' is known"),
        (b"{}", 422, "Give a text or an image"),
        (b"", 422, "Give a text or an image"),
        (b"x" * 200_001, 413, "at most 200,000 bytes"),
    ],
    ids=lambda value: value[:24] if isinstance(value, bytes) else None,
)
def test_a_search_that_cannot_be_answered(limited, asked, status, reason):
    found, detail = refusals(limited.http.post("/search", content=asked))
    assert (found, reason in detail) == (status, True), detail


def test_images_that_are_refused(limited, scenes):
    for images, asked, status, reason in [
        ([b"nonsense"], {}, 422, "Image 0: This file is not a readable image"),
        ([scenes[0], scenes[1][:300]], {}, 422, "damaged or cut short"),
        ([png(1_000, 1_001)], {}, 422, "1,000 x 1,001 pixels; send one of at most 1 megapixels"),
        ([png(1_000, 600)] * 2, {}, 422, "pixels of all images is 1,200,000, and at most 1,000,000"),
        ([b"\x89PNG" + b"x" * 100_000], {}, 422, "Image 0 has more than 100,000 bytes"),
        (scenes[:4], {}, 400, "at most 3 files"),
        (scenes[:2], {"terms": [{"image": 2}]}, 422, "names image 2, and 2 images were uploaded"),
        (scenes[:1], {"terms": [{"text": "boat", "image": 0}]}, 422, "either a text or an image"),
        ([b"<svg/>"], {}, 422, "not a readable image"),
    ]:
        found, detail = refusals(limited.post("/search", asked, images))
        assert (found, reason in detail) == (status, True), detail
    for parts in ({"files": [("other", b"x")]}, {"data": {"text": "boat"}, "files": [("image", scenes[0])]}):
        assert "The form has a part" in limited.http.post("/search", **parts).json()["detail"]
    broken = {"content-type": "multipart/form-data; boundary=x"}
    assert limited.http.post("/search", content=b"--y", headers=broken).status_code == 400
    assert limited.http.post("/remove", json={"ids": list(range(6))}).json()["detail"].endswith("at most 5 here.")


def test_a_body_of_unknown_length_is_bounded(limited):
    def endless():
        yield b'{"text": "'
        for _ in range(40):
            yield b"x" * 10_000

    assert refusals(limited.http.post("/search", content=endless()))[0] == 413


def raw(limited: Running, content: bytes, seconds: float = 10) -> bytes:
    """The reply to bytes after which nothing follows."""
    where = urlsplit(limited.url)
    with socket.create_connection((where.hostname, where.port), seconds) as connection:
        connection.sendall(content)
        reply = b""
        while part := connection.recv(65_536):
            reply += part
        return reply


def test_slow_clients_lose_their_connection(limited):
    head = f"POST /search HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    begin = time.monotonic()
    assert raw(limited, b"") == b""
    assert raw(limited, head.encode()) == b""  # headers that do not end
    reply = raw(limited, f"{head}Content-Length: 20\r\nConnection: close\r\n\r\n{{".encode())
    assert reply.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - begin < 10
    assert raw(limited, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert limited.search(text="boat")["answers"]


def test_busy_servers_refuse_instead_of_hoarding(limited, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    original = limited.served.search

    def slow(*arguments, **options):
        begun.set()
        assert go_on.wait(20)
        return original(*arguments, **options)

    monkeypatch.setattr(limited.served, "search", slow)

    def ask(_) -> tuple[int, str]:
        with httpx.Client(base_url=limited.url, headers=limited.http.headers, timeout=20) as http:
            answer = http.post("/search", json={"text": "boat"})
            assert answer.headers["retry-after"] == "1"
            return refusals(answer)

    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(ask, number) for number in range(4)]  # one runs, two wait
        details = sorted(each.result() for each in waiting)
        assert limited.http.get("/health").status_code == 200
    assert [status for status, _ in details] == [503] * 4
    assert sum("is busy" in detail for _, detail in details) == 1
    assert sum("no answer within 1 s" in detail for _, detail in details) == 3
    go_on.set()
    end = time.monotonic() + 20
    while limited.http.post("/search", json={"text": "boat"}).status_code != 200:  # the abandoned call ends
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_internal_error_is_one_line_and_in_the_log(limited, monkeypatch, caplog):
    monkeypatch.setattr(limited.served, "search", lambda *_: 1 / 0)
    answer = limited.http.post("/search", json={"text": "boat"})
    assert (answer.status_code, "ZeroDivision" in answer.text) == (500, False)
    end = time.monotonic() + 20
    while "ZeroDivisionError" not in caplog.text:  # logged behind the reply
        assert time.monotonic() < end
        time.sleep(0.01)
    assert answer.headers["cmfah-api"] == "1"


def test_limits_are_set_by_name():
    assert ServiceLimits.of_options(["k=5", "body_seconds=2.5"]) == ServiceLimits(k=5, body_seconds=2.5)
    for option, reason in [
        ("k", "NAME=NUMBER, of body_bytes"),
        ("q=3", "NAME=NUMBER"),
        ("k=many", "no number of its kind"),
        ("k=2.5", "no number of its kind"),
        ("k=0", "k is 0; give 1 or more"),
        ("k=9999999999999", "below 2"),
        ("body_seconds=nan", "body_seconds is nan"),
        ("body_seconds=-1", "a number above 0"),
    ]:
        with pytest.raises(CMFAHError, match=reason):
            ServiceLimits.of_options([option])


def test_tokens_are_read_and_never_shown(tmp_path, monkeypatch):
    monkeypatch.delenv("CMFAH_TOKEN", raising=False)
    assert read_token() is None
    (tmp_path / "token").write_text(f"{TOKEN}\n", encoding="utf-8")
    assert read_token(tmp_path / "token") == TOKEN
    monkeypatch.setenv("CMFAH_TOKEN", "fedcba9876543210")
    assert read_token() == "fedcba9876543210"
    assert read_token(tmp_path / "token") == TOKEN
    for wrong in ("short", "", "two words of a token", "x" * 600, "\u00fc" * 20):
        (tmp_path / "token").write_text(wrong, encoding="utf-8")
        with pytest.raises(CMFAHError, match="16 to 512 ASCII characters") as caught:
            read_token(tmp_path / "token")
        assert not wrong or wrong not in str(caught.value)
    with pytest.raises(CMFAHError, match="does not exist"):
        read_token(tmp_path / "missing")
    assert TokenCheck(None).accepts(None)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "search.home"])
def test_an_open_server_needs_a_token(host):
    with pytest.raises(CMFAHError, match="set a token by --token-file or CMFAH_TOKEN, or pass --no-token"):
        serve(ServedSources("no-model"), host, 0)


def test_a_taken_port_is_reported_before_the_model_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CMFAHError, match=f"Cannot listen on 127.0.0.1:{port} \\(Address already in use\\)"):
            serve(ServedSources("no-model"), port=port)
