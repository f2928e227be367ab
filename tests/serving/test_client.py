"""`cmfah search --server`, and servers that are none."""

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from image_files import image, image_file
from PIL import Image

from cmfah_hf.cli import main
from cmfah_hf.errors import ImageError, QueryError, SearchServerError
from cmfah_hf.retrieval import Term
from cmfah_hf.serving import SearchClient, ServedRetriever
from cmfah_hf.serving.client import _described
from cmfah_hf.serving.limits import ServiceLimits
from serving.servers import running

ANSWER = {
    "answers": [[{"id": "a", "score": 1, "metadata": {}}]],
    "columns": [],
    "ignored_words": [],
    "similar_words": {},
}


@pytest.fixture
def replies() -> Iterator[tuple[str, list[tuple[int, dict[str, str], bytes]]]]:
    """The address of a server, and the list of replies that it sends, one after the other."""
    planned: list[tuple[int, dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            status, headers, content = planned.pop(0)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", planned
        server.shutdown()
        thread.join()


OURS = {"CMFAH-API": "1"}


@pytest.mark.parametrize(
    ("status", "headers", "content", "error", "reason"),
    [
        (200, {}, json.dumps(ANSWER), SearchServerError, "no server of `cmfah serve` (HTTP 200 without the header"),
        (404, {}, "<html>", SearchServerError, "no server of `cmfah serve` (HTTP 404"),
        (302, {"Location": "http://127.0.0.1:1/"}, "", SearchServerError, "no server of `cmfah serve` (HTTP 302"),
        (200, {"CMFAH-API": "2"}, json.dumps(ANSWER), SearchServerError, "version '2' of the interface, and this"),
        (200, OURS, "{", SearchServerError, "its reply is no JSON)"),
        (200, OURS, "[" * 100_000, SearchServerError, "its reply is no JSON)"),
        (200, OURS, "[]", SearchServerError, "its reply is no JSON object"),
        (200, OURS, "{}", SearchServerError, "its answers have another form"),
        (200, OURS, json.dumps({**ANSWER, "answers": [[{"id": []}]]}), SearchServerError, "its answers have another"),
        (200, OURS, json.dumps({**ANSWER, "columns": [1]}), SearchServerError, "its columns have another form"),
        (200, OURS, json.dumps({**ANSWER, "similar_words": {"a": 1}}), SearchServerError, "its similar_words have"),
        (401, OURS, '{"detail": "x"}', SearchServerError, "the token is missing or wrong; set CMFAH_TOKEN"),
        (503, OURS, '{"detail": "The server is busy."}', SearchServerError, "The server is busy."),
        (422, OURS, '{"detail": "No word of \\u001b[1m"}', QueryError, "No word of \\x1b[1m"),
        (500, OURS, "{}", SearchServerError, "HTTP 500"),
        (200, {"Content-Length": "9", "Content-Encoding": "gzip"}, "nonsense!", SearchServerError, "no connection"),
        (200, {**OURS, "Content-Length": "1000"}, "{", SearchServerError, "no connection"),
    ],
)
def test_unusable_replies_are_one_line(replies, status, headers, content, error, reason):
    url, planned = replies
    planned.append((status, headers, content.encode()))
    with SearchClient(url) as client, pytest.raises(error) as caught:
        client.search("boat")
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_reply_has_a_bounded_size(replies, monkeypatch):
    url, planned = replies
    monkeypatch.setattr("cmfah_hf.serving.client._MOST_BYTES", 1000)
    planned.append((200, OURS, b" " * 2000))
    with SearchClient(url) as client, pytest.raises(SearchServerError, match="more than 1,000 bytes"):
        client.search("boat")


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8008", "ftp://a", "http://", "http://[::1", "http://a:port", "http://u@a", "http://\x01"]
)
def test_addresses_that_are_none(url):
    with pytest.raises(SearchServerError, match="give the address of a server"):
        SearchClient(url)


def test_a_server_that_does_not_answer():
    with SearchClient("http://127.0.0.1:1") as client, pytest.raises(SearchServerError, match="start a server with"):
        client.search("boat")


def test_an_image_that_no_server_takes_is_sent_as_png_within_its_limits():
    limits, noise = ServiceLimits(), Image.effect_noise((2500, 2000), 90)
    file, images = io.BytesIO(), []
    noise.convert("RGB").save(file, "BMP")  # 15 MB
    for content in (image_file("tif"), image_file("png"), file.getvalue()):
        _described(Term(image=content), images)
    assert images[1] == image_file("png")  # a server reads it
    whole, _, reduced = (Image.open(io.BytesIO(content)) for content in images)
    assert (whole.format, reduced.format) == ("PNG", "PNG")
    assert np.array_equal(np.asarray(whole), np.asarray(image()))
    assert len(images[2]) <= limits.image_bytes
    assert reduced.width / reduced.height == pytest.approx(1.25, abs=0.01)
    assert reduced.width * reduced.height > 2_500_000
    with pytest.raises(ImageError, match="not an image in a format"):
        _described(Term(image=b"nonsense"), images)


@pytest.fixture
def cmfah(capsys, monkeypatch):
    """A function that runs a command in this process, and returns its exit code and both outputs."""
    monkeypatch.delenv("CMFAH_TOKEN", raising=False)

    def run(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        streams = capsys.readouterr()
        return left.value.code or 0, streams.out, streams.err

    return run


def test_the_command_prints_the_same_as_without_a_server(trained, retriever, scenes, tmp_path, cmfah, monkeypatch):
    retriever.add_images(scenes, [f"{n}.png" for n in range(6)], metadata={"year": [2020 + n for n in range(6)]})
    index, image, token = tmp_path / "images.index", tmp_path / "scene.png", "0123456789abcdef"
    retriever.images.save(index)
    image.write_bytes(scenes[3])
    (tmp_path / "token").write_text(token, encoding="utf-8")
    others = [tmp_path / f"q.{ending}" for ending in ("tif", "heic", "jxl")]  # the server does not read all of these
    for path in others:
        path.write_bytes(image_file(path.suffix[1:]))
    with running(ServedRetriever(retriever), token) as own:
        server = ["--server", own.url, "--token-file", tmp_path / "token"]
        for query in (
            *(["--image", path, "--json"] for path in others),
            ["--text", "boat sun qqqq", "-k", "3", "--json"],
            ["--text", "boat", "--not", "sun", "--image", f"{image}:0.5", "--image-weight", "0.7", "--json"],
            ["--image", image, "--metric", "hamming", "--where", "year=2023", "--json"],
            ["--text", "boat", "--approximate"],
            ["--text", "boat", "-k", "99"],
        ):
            assert cmfah("search", *server, *query) == cmfah("search", trained.folder, index, *query), query
        for query in (
            ["--text", "qqqq"],
            ["--text", "boat", "--where", "month=1"],
            ["--image", tmp_path / "no.png"],
            [],
        ):
            code, out, err = cmfah("search", *server, *query)
            assert (code, out, err) == cmfah("search", trained.folder, index, *query), query
            assert code == 2
        for options in ([trained.folder], ["--images", tmp_path], ["--any-model"], ["--trust-remote-code"]):
            code, _, err = cmfah("search", *options, *server, "--text", "boat")
            assert (code, err.count("\n"), "the server has its own model" in err) == (2, 1, True)
        code, _, err = cmfah("search", "--server", own.url, "--text", "boat")
        assert (code, "the token is missing or wrong" in err) == (2, True)
        monkeypatch.setenv("CMFAH_TOKEN", token)
        assert cmfah("search", "--server", own.url, "--text", "boat")[0] == 0
    code, _, err = cmfah("search", "--text", "boat")
    assert (code, err) == (2, "cmfah: Name the model of the index, or a server with --server.\n")


def test_a_program_asks_with_bytes_and_for_several_texts(server, scenes):
    with SearchClient(server.url) as client:
        reply = client.search(terms=[Term(image=scenes[2])], k=1, where=["year=2022"])
        assert [hit["id"] for hit in reply["answers"][0]] == ["2.png"]
        assert len(client.search(["boat", "sun"], target="images")["answers"]) == 2
