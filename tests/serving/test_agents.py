"""The endpoint for agents on the loopback: its tools with a client of the protocol, limits, refusals."""

import base64
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import numpy as np
import pytest
from agents import agent
from PIL import Image

from cmfah_hf.errors import CMFAHError
from cmfah_hf.evaluation.attention import attention_of_words
from cmfah_hf.retrieval.codes import sign, unpack
from cmfah_hf.retrieval.folders import FolderRequest
from cmfah_hf.serving import ServedRetriever, ServiceLimits
from cmfah_hf.serving.agent_schemas import MOST_THUMBNAILS
from cmfah_hf.space import agents as space_agents
from serving.servers import running

TOOLS = {"search_by_text", "search_by_image", "explain_answer", "index_info"}
LIMITS = ServiceLimits(k=20, images=2, image_pixels=1_000_000, text_characters=200, conditions=2, body_bytes=2**21)


def as_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def served(retriever, scenes, tmp_path) -> ServedRetriever:
    """Six images with years, and two texts, which must not change."""
    retriever.add_images(scenes, [f"{n}.png" for n in range(6)], metadata={"year": [2020 + n for n in range(6)]})
    retriever.add_texts(["boat sun", "moon"], ["a", "b"])
    return ServedRetriever(retriever)


@pytest.fixture
def server(served):
    with running(served, limits=LIMITS, mcp=True) as own:
        yield own


def test_tools_answer_as_the_endpoints_do(server, scenes):
    with agent(f"{server.url}/mcp") as own:
        tools = own.tools()
        assert set(tools) == TOOLS
        for tool in tools.values():
            assert (tool.annotations.readOnlyHint, tool.annotations.destructiveHint) == (True, False)
            assert all("description" in part for part in tool.inputSchema["properties"].values())
            assert tool.inputSchema["additionalProperties"] is False
        assert own.answer("index_info") == server.http.get("/info").json()
        for asked in (
            {"text": "boat sun", "k": 3},
            {"text": "boat sun", "where": ["year=2022"], "metric": "hamming"},
            {"text": "boat qqqq", "target": "texts", "k": 1},
            {"terms": [{"text": "sun"}, {"text": "boat", "weight": -0.5}], "unique": 0},
        ):
            assert own.answer("search_by_text", **asked) == server.search(**asked)
        by_image = own.answer("search_by_image", image_base64=as_base64(scenes[2]), k=2, metric="hamming")
        assert by_image == server.search(scenes[2:3], k=2, metric="hamming")
        mixed = own.answer("search_by_image", image_base64=as_base64(scenes[2]), text="boat", image_weight=0.8)
        assert mixed == server.search(scenes[2:3], text="boat", image_weight=0.8)
        result = own.call("search_by_text", text="boat")
        assert result.structuredContent == json.loads(result.content[0].text)  # the client has checked its schema


def test_an_answer_is_explained(server, scenes):
    retriever = server.served.retriever
    with agent(f"{server.url}/mcp") as own:
        found = own.answer("search_by_text", text="boat sun qqqq", k=6)["answers"][0]
        for hit in found:
            why = own.answer("explain_answer", id=hit["id"], text="boat sun qqqq")
            assert (why["score"], why["probability"]) == (hit["score"], hit.get("probability"))
            code = unpack(retriever.images.codes[[*retriever.images.ids].index(hit["id"])][None])[0]
            assert why["distance"] == (sign(retriever.encode_texts(["boat sun qqqq"]))[0] != code).sum()
            assert [word["word"] for word in why["words"]] == ["boat", "sun"]
            alone = own.answer("search_by_text", text="boat", k=6)["answers"][0]
            assert why["words"][0]["score"] == {other["id"]: other["score"] for other in alone}[hit["id"]]
            assert why["ignored_words"] == ["qqqq"]
            assert "has no file of this image" in why["note"]
        why = own.answer("explain_answer", id="2.png", image_base64=as_base64(scenes[2]))
        assert (why["distance"], why["bits"], why["words"], why["note"]) == (
            0,
            8 * retriever.images.codes.shape[1],
            [],
            None,
        )
        assert own.answer("explain_answer", id="a", text="boat sun", target="texts")["distance"] == 0
        for arguments, reason in [
            ({"id": "unknown", "text": "boat"}, "holds no id 'unknown'"),
            ({"id": 3, "text": "boat"}, "holds no id 3"),
            ({"id": "2.png"}, "Give either a text or an image"),
            ({"id": "2.png", "text": "boat", "image_base64": as_base64(scenes[0])}, "Give either a text or an image"),
            ({"id": "2.png", "text": "qqqq"}, "No word of 'qqqq' is known"),
        ]:
            assert reason in own.refusal("explain_answer", **arguments)


def test_files_of_followed_folders_are_links_and_small_images(retriever, photos, tmp_path):
    (photos / "odd#%name.jpg").write_bytes((photos / "0.jpg").read_bytes())
    with running(
        ServedRetriever(retriever, {"images": tmp_path / "new.index"}, [FolderRequest(photos)]), mcp=True
    ) as own:
        own.post("/sync", {})
        with agent(f"{own.url}/mcp") as client:
            plain = client.call("search_by_text", text="boat", k=6)
            assert len(plain.content) == 1
            assert str(photos) not in plain.content[0].text
            links = client.call("search_by_text", text="boat", k=6, paths=True)
            hits = json.loads(links.content[0].text)["answers"][0]
            assert {hit["path"] for hit in hits} == {str(path) for path in photos.iterdir()}
            assert [httpx.URL(str(link.uri)).path for link in links.content[1:]] == [hit["path"] for hit in hits]
            assert {(link.type, link.mimeType) for link in links.content[1:]} == {("resource_link", "image/jpeg")}
            (photos / hits[1]["id"]).write_bytes(b"damaged")
            shown = client.call("search_by_text", text="boat", k=6, thumbnails=3)
            assert str(photos) not in shown.content[0].text
            assert [part.type for part in shown.content] == ["text", "image", "image"]
            for part in shown.content[1:]:
                content = base64.b64decode(part.data)
                assert len(content) < 2**16
                assert max(Image.open(io.BytesIO(content)).size) <= 256
            assert "less than or equal to 8" in client.refusal(
                "search_by_text", text="x", thumbnails=MOST_THUMBNAILS + 1
            )

            why = client.answer("explain_answer", id=hits[0]["id"], text="boat sun")
            image = Image.open(photos / hits[0]["id"]).convert("RGB")
            expected = attention_of_words(retriever.model, retriever.processor, image, "boat sun")
            rows, columns = expected.grid
            for column, word in enumerate(why["words"]):
                best = int(expected.weights[:, column].argmax())
                assert word["attention"] == pytest.approx(expected.weights[best, column], abs=1e-5)
                left, top, right, bottom = word["region"]
                seen = np.asarray(expected.seen) / np.tile(image.size, 2)
                x = ((left + right) / 2 - seen[0]) / (seen[2] - seen[0])
                y = ((top + bottom) / 2 - seen[1]) / (seen[3] - seen[1])
                assert (int(y * rows), int(x * columns)) == divmod(best, columns)
            note = client.answer("explain_answer", id=hits[1]["id"], text="boat sun")["note"]
            assert "cannot be read" in note


REFUSED = {
    "/etc/passwd": "Paths and addresses are not read here",
    "file:///etc/passwd": "Paths and addresses are not read here",
    "http://127.0.0.1/x.png": "Paths and addresses are not read here",
    "https://10.0.0.1/x.png": "Paths and addresses are not read here",
    "ab" * 32: "not a readable image",  # a name of an upload to a Space
    as_base64(b"<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'></svg>"): "not a readable image",
    as_base64(png(Image.new("1", (10_000, 10_000)))): "10,000 x 10,000 pixels; send one of at most 1 megapixels",
}


def test_calls_beyond_limits_are_refused_in_a_line(server, scenes):
    with agent(f"{server.url}/mcp") as own:
        for value, reason in REFUSED.items():
            assert reason in own.refusal("search_by_image", image_base64=value)
            assert reason in own.refusal("explain_answer", id="2.png", image_base64=value)
        for arguments, reason in [
            ({"text": "boat", "k": 21}, "k is 21, and at most 20 here"),
            ({"text": "boat " * 50}, "at most 200 here"),
            ({"text": "boat", "where": ["year=1"] * 3}, "at most 2 here"),
            ({"terms": [{"text": "boat"}] * 65}, "at most 64 here"),
            ({"text": "boat", "where": ["month=1"]}, "month"),
            ({"text": ["boat"]}, "text: Input should be a valid string"),
            ({"text": "boat", "k": "3"}, "k: Input should be a valid integer"),
            ({"text": "boat", "image_path": "/etc/passwd"}, "image_path: Extra inputs are not permitted"),
            ({"text": "qqqq"}, "No word of 'qqqq' is known"),
            ({"text": "boat", "terms": [{"text": "sun"}]}, "Give either terms, or a text and an image"),
            ({}, "Give a text or an image"),
        ]:
            assert reason in own.refusal("search_by_text", **arguments), arguments
        for tool in ("add", "remove", "sync", "search"):
            assert "There is no tool" in own.refusal(tool, ids=["2.png"])
    assert len(server.served.retriever.images) == 6


def message(method: str, **params) -> dict:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


def test_messages_pass_the_checks_of_the_service(served):
    token = "0123456789abcdef"
    accepts = {"Accept": "application/json, text/event-stream"}
    with running(served, token, LIMITS, mcp=True) as own:
        with agent(f"{own.url}/mcp", token) as client:
            assert set(client.tools()) == TOOLS
        own.http.headers.update(accepts | {"Authorization": f"Bearer {token}"})
        ping = message("ping")
        assert own.post("/mcp", ping).json()["result"] == {}
        assert own.post("/mcp/", ping).json()["result"] == {}
        assert own.post("/mcp", ping, headers={"Authorization": "Bearer no"}).status_code == 401
        assert own.post("/mcp", ping, headers={"Host": "evil.example"}).status_code == 403
        assert own.post("/mcp", ping, headers={"Origin": "https://evil.example"}).status_code == 403
        assert own.http.post("/mcp", content=b" " * (2**21 + 1)).status_code == 413
        for body in (b"[" * 10**5, b"{", b"\xff", b'{"id": 1, "id": 2}'):
            answer = own.http.post("/mcp", content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == 400
            assert answer.json()["detail"].startswith("The message ")
        for method in ("GET", "DELETE"):
            assert own.http.request(method, "/mcp").status_code == 405
        own.post("/mcp", message("tools/call", name="search_by_text", arguments={"text": "boat"}))
        own.post("/mcp", message("tools/call", name="search_by_text", arguments={"text": "qqqq"}))
        counts = own.http.get("/metrics").text
        for line in ('/mcp/search_by_text",status="200"} 1.0', '/mcp/search_by_text",status="422"} 1.0'):
            assert f'cmfah_requests_total{{endpoint="{line}' in counts
        assert 'cmfah_requests_total{endpoint="/mcp",status="401"} 1.0' in counts
    with running(served) as own:
        assert own.post("/mcp", ping, headers=accepts).status_code == 404


def test_agents_wait_for_the_same_threads_and_a_stop_lets_them_finish(served, monkeypatch):
    limits = ServiceLimits(at_once=1, waiting=1)
    begun, go_on = threading.Event(), threading.Event()
    original = served.search

    def slow(*arguments):
        begun.set()
        assert go_on.wait(20)
        return original(*arguments)

    monkeypatch.setattr(served, "search", slow)
    with running(served, limits=limits, mcp=True) as own, ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        first, second, third = (stack.enter_context(agent(f"{own.url}/mcp")) for _ in range(3))
        for client in (first, second):
            client.tools()  # otherwise, the client would ask for their schemas after the server has stopped
        running_call = pool.submit(first.answer, "search_by_text", text="boat")
        assert begun.wait(20)
        waiting_call = pool.submit(second.answer, "search_by_text", text="sun")
        while "cmfah_calls 2" not in own.http.get("/metrics").text:
            pass
        assert third.refusal("search_by_text", text="moon") == "The server is busy; try again in a moment."
        own.stop()
        go_on.set()
        assert len(running_call.result(20)["answers"][0]) == 6
        assert len(waiting_call.result(20)["answers"][0]) == 6


def test_an_internal_error_is_not_shown(server, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("a secret")

    monkeypatch.setattr(server.served, "search", fail)
    with agent(f"{server.url}/mcp") as own:
        assert own.refusal("search_by_text", text="boat") == "An internal error; the log of the server has it."
    assert "a secret" in caplog.text


def test_a_missing_library_is_named(monkeypatch, served):
    monkeypatch.setattr(space_agents, "find_spec", lambda name: None)
    with pytest.raises(CMFAHError, match=r"pip install 'cmfah-hf\[mcp\]'\.$"), running(served, mcp=True):
        pass
