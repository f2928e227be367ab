"""The endpoint for agents: its messages, and a server with a client of the protocol."""

import asyncio
import base64
import io
import json
import socket
import threading
import time
from pathlib import Path

import gradio as gr
import httpx
import numpy as np
import pytest
from agents import agent
from PIL import Image

from cmfah_hf.data.scenes import FIRST_QUERY, draw_scene
from cmfah_hf.errors import CMFAHError, QueryError
from cmfah_hf.space import SpaceSettings, agents, serve
from cmfah_hf.space.agents import MAX_MESSAGE, MAX_MESSAGE_WITH_IMAGE, AgentGate, AgentMessages
from cmfah_hf.space.bodies import Bodies
from cmfah_hf.space.hosts import AllowedHosts
from cmfah_hf.space.limits import Limits
from cmfah_hf.space.uploads import Uploads

ROOT = Path(__file__).parents[2]
TOOLS = {
    "search_by_text": frozenset({"text", "k"}),
    "search_by_image": frozenset({"image_base64", "k"}),
    "explain_answer": frozenset({"text", "image"}),
}


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def as_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


SCENE = draw_scene(FIRST_QUERY + 17).image
# What names or holds no usable image, and the reason.
REFUSED = {
    "/etc/passwd": "Paths and addresses are not read here",
    "/etc/hostname/ab": "Paths and addresses are not read here",  # base64 by chance
    "../../etc/passwd": "Paths and addresses are not read here",
    str(ROOT / "docs" / "images" / "overview.png"): "Paths and addresses are not read here",
    "file:///etc/passwd": "Paths and addresses are not read here",
    "http://example.com/x.png": "Paths and addresses are not read here",
    "https://10.0.0.1/x.png": "Paths and addresses are not read here",
    "http://169.254.169.254/latest/meta-data": "Paths and addresses are not read here",
    "data:image/png,abc": "Paths and addresses are not read here",
    "": "Paths and addresses are not read here",
    "ab" * 32: "not an image that was uploaded here",
    as_base64(b"<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'></svg>"): "not a readable image",
    "data:image/svg+xml;base64," + as_base64(b"<svg xmlns='http://www.w3.org/2000/svg'></svg>"): "not a readable image",
    as_base64(b"nonsense" * 100): "not a readable image",
    as_base64(png(Image.new("1", (10_000, 10_000)))): "10,000 x 10,000 pixels; send one of at most 25 megapixels",
    as_base64(png(SCENE)[:600]): "damaged or cut short",
}


@pytest.fixture
def uploads(tmp_path) -> Uploads:
    return Uploads(tmp_path / "uploads")


@pytest.fixture
def check(uploads):
    """A function that checks a message given as keywords, of which it adds id and version."""
    messages = AgentMessages(TOOLS, uploads)

    def checked(**message):
        answer = messages.check(json.dumps({"jsonrpc": "2.0", "id": 1} | message).encode())
        return json.loads(answer) if isinstance(answer, bytes) else answer

    return checked


def call(name: str, **arguments) -> dict:
    return {"method": "tools/call", "params": {"name": name, "arguments": arguments}}


def test_only_checked_parts_of_a_message_are_passed_on(check):
    passed = check(**call("search_by_text", text="boat", k=3), more=1)
    assert passed == {"jsonrpc": "2.0", "id": 1} | call("search_by_text", text="boat", k=3)
    params = {"name": "explain_answer", "_meta": {"progressToken": 1}, "task": {"ttl": 9}}
    assert check(method="tools/call", params=params)["params"] == {"name": "explain_answer", "arguments": {}}
    told = {"protocolVersion": "2025-06-18", "capabilities": {"sampling": {}}, "clientInfo": {"name": "n" * 500}}
    assert check(method="initialize", params=told)["params"] == {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "n" * 128, "version": "unknown"},
    }  # fmt: skip
    for method in ("ping", "tools/list", "resources/list", "prompts/list"):
        assert check(method=method, params={"cursor": "x"}) == {"jsonrpc": "2.0", "id": 1, "method": method}
    assert check(method="notifications/initialized", id=None) is None


def test_an_image_becomes_an_upload(check, uploads):
    for prefix in ("", "data:image/png;base64,", "data:;base64,", "data:image/png;charset=utf-8;base64,"):
        passed = check(**call("search_by_image", image_base64=prefix + as_base64(png(SCENE)), k=2))
        name = passed["params"]["arguments"].pop("image_base64")
        assert uploads.read(uploads.path_of(name)) == png(SCENE)
        assert passed["params"]["arguments"] == {"k": 2}
    broken = base64.encodebytes(png(SCENE)).decode()  # in lines of 76 characters
    assert "result" not in check(**call("search_by_image", image_base64=broken))
    kept = check(**call("search_by_image", image_base64=name))
    assert kept["params"]["arguments"] == {"image_base64": name}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (call("answer_words", text="boat"), "There is no tool 'answer_words'; the tools are search_by_text"),
        (call(["search_by_text"], text="boat"), "There is no tool"),
        ({"method": "tools/call"}, "There is no tool None"),
        (call("search_by_text", text="boat", session_hash="x"), "has no parameter 'session_hash'"),
        (call("search_by_text", text=["boat"]), "text is a list or an object"),
        (call("search_by_image", image_base64={"path": "/etc/passwd"}), "is a list or an object"),
        (call("search_by_image", image_base64=3), "is not a text"),
        (call("search_by_text", text="x" * MAX_MESSAGE), "more than 65,536 characters"),
        (call("search_by_image", image_base64="A" * MAX_MESSAGE_WITH_IMAGE), "larger than 8 MB"),
        ({"method": "tools/call", "params": {"name": "search_by_text", "arguments": "boat"}}, "not a JSON object"),
    ],
    ids=range(10),
)
def test_a_call_is_refused_in_a_line_that_the_agent_reads(check, message, reason):
    reply = check(**message)
    assert reply["result"]["isError"]
    (content,) = reply["result"]["content"]
    assert reason in content["text"]
    assert len(content["text"]) < 300


def test_no_other_methods(check, uploads):
    for method in ("resources/read", "prompts/get", "completion/complete", "logging/setLevel", "x"):
        assert check(method=method)["error"]["code"] == -32601
    for body in (b"", b"[]", b"3", b'{"id": 1}', b'{"id": [], "method": "ping"}', b'{"id": true, "method": "ping"}'):
        with pytest.raises(QueryError):
            AgentMessages(TOOLS, uploads).check(body)


@pytest.fixture(scope="module")
def blocks() -> gr.Blocks:
    return gr.Blocks()


@pytest.fixture
def ask(uploads, blocks):
    """A function that returns the status, the reply, and the scope that passed, of a request through all checks."""
    passed: list[dict] = []

    async def echo(scope, receive, send):
        passed.append(scope)
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    def asked(body=b"", method="POST", path=agents.ENDPOINT, headers=(), on=True, query=b""):
        sent, left = [], [body]

        async def receive():
            return {"type": "http.request", "body": left.pop()}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "query_string": query}
        scope["headers"] = [(b"host", b"localhost"), *headers]
        gate = AgentGate(echo, TOOLS, uploads)
        asyncio.run(
            Limits(gate, AllowedHosts("127.0.0.1"), Bodies(blocks, uploads), uploads, bool, on)(scope, receive, send)
        )
        return sent[0]["status"], sent[1]["body"], passed.pop() if passed else None

    return asked


def test_only_messages_and_the_description_reach_gradio(ask):
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode()
    odd = [(b"cookie", b"x"), (b"x-forwarded-host", b"evil.example"), (b"Transfer-Encoding", b"chunked")]
    for path in agents.PATHS:
        status, passed, scope = ask(body, path=path, headers=odd, query=b"tools=x")
        assert (status, json.loads(passed), scope["path"]) == (200, json.loads(body), "/gradio_api/mcp/")
        assert {name for name, _ in scope["headers"]} == {b"host", b"content-type", b"content-length"}
        assert scope["query_string"] == b""
        assert ask(body, path=path, on=False)[0] == 404
        for method in ("GET", "DELETE"):
            assert ask(method=method, path=path)[0] == 405
    assert ask(method="GET", path=agents.SCHEMA_PATH)[0] == 200
    assert ask(method="GET", path=agents.SCHEMA_PATH, on=False)[0] == 404
    for path in ("/gradio_api/mcp/sse", "/gradio_api/mcp/messages/", "/gradio_api/mcp/http", "/gradio_api/mcp//"):
        assert ask(body, path=path)[0] == 404
        assert ask(method="GET", path=path)[0] == 404
    assert ask(body, headers=[(b"origin", b"https://evil.example")])[0] == 403


def test_messages_are_bounded(ask, monkeypatch, uploads):
    assert ask(b" " * (MAX_MESSAGE_WITH_IMAGE + 1))[0] == 413
    assert ask(b"{")[0] == 400
    notification = json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}).encode()
    assert ask(notification) == (202, b"", None)

    def full(_):
        raise OSError(28, "No space left on device")

    image = json.dumps({"id": 1} | call("search_by_image", image_base64=as_base64(png(SCENE)))).encode()
    monkeypatch.setattr(uploads, "keep", full)
    assert ask(image)[0] == 507
    monkeypatch.setattr(agents, "MOST_MESSAGES", 0)
    monkeypatch.setattr(agents, "TURN_SECONDS", 0.01)
    assert ask(notification)[0] == 503


def test_on_the_hub_tools_have_the_name_of_the_space_and_there_are_no_others(monkeypatch):
    from gradio.mcp import GradioMCPServer

    def answer(text: str) -> dict:
        return {"text": text}

    with gr.Blocks() as app:
        for endpoint in (*agents.TOOLS.values(), "another"):
            gr.api(answer, api_name=endpoint)
    monkeypatch.setattr("gradio.utils.get_space", lambda: "owner/my-search")
    app.mcp_server_obj = server = GradioMCPServer(app)
    assert len(server.tool_to_endpoint) == 5
    agents.keep_tools(app)
    assert server.tool_to_endpoint == {f"my_search_{tool}": f"/{endpoint}" for tool, endpoint in agents.TOOLS.items()}
    (content,) = server.postprocess_output_data([{"text": None, "score": 1.5}], "http://localhost")
    assert json.loads(content.text) == {"text": None, "score": 1.5}


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(agents, "find_spec", lambda name: None)
    with pytest.raises(CMFAHError, match=r"pip install 'cmfah-hf\[mcp\]'\.$"):
        serve(SpaceSettings(mcp=True), tmp_path)


@pytest.fixture(scope="module")
def served(space_server, tmp_path_factory):
    with space_server(tmp_path_factory.mktemp("agents"), "--mcp") as found:
        yield found


@pytest.mark.slow
def test_an_agent_searches_and_asks_why(served):
    with agent(f"{served.url}gradio_api/mcp") as own:
        tools = own.tools()
        assert set(tools) == set(agents.TOOLS)
        assert all(len(tool.description) > 60 for tool in tools.values())
        schema = tools["search_by_text"].inputSchema
        assert {name: part["type"] for name, part in schema["properties"].items()} == {
            "text": "string", "k": "integer", "avoid": "string", "min_score": "number",
        }  # fmt: skip
        assert schema["required"] == ["text"]
        assert all(part["description"] for tool in tools.values() for part in tool.inputSchema["properties"].values())

        info = own.answer("index_info")
        assert (info["images"], info["bits"], info["has_attention"]) == (320, 64, True)
        found = own.answer("search_by_text", text=info["examples"][0], k=3)
        hits = found["images"]["aqd"]["hits"]
        assert [set(hit) for hit in hits] == [{"id", "score", "text", "probability"}] * 3
        why = own.answer("explain_answer", text=info["examples"][0], image=hits[0]["id"])
        assert why["distance"] == sum(a != b for a, b in zip(why["query_bits"], why["image_bits"], strict=True))
        assert np.shape(why["weights"]) == (why["grid"][0] * why["grid"][1], len(why["words"]))
        by_image = own.answer("search_by_image", image_base64=as_base64(png(SCENE)), k=24)["images"]["hamming"]["hits"]
        assert f"scene-{FIRST_QUERY + 17}" in [hit["id"] for hit in by_image if hit["score"] == 0]
        noise = png(Image.effect_noise((1600, 1600), 90).convert("RGB"))
        assert len(noise) > 2**20  # more than Gradio would take as a message
        assert len(own.answer("search_by_image", image_base64=as_base64(noise))["texts"]["aqd"]["hits"]) == 12
    schema = httpx.get(f"{served.url}gradio_api/mcp/schema").json()
    assert [tool["name"] for tool in schema] == list(agents.TOOLS)
    assert httpx.get(f"{served.url}gradio_api/mcp").status_code == 405


@pytest.mark.slow
def test_an_agent_gets_no_more_than_a_browser(served):
    asked = []

    def listen(listening: socket.socket) -> None:
        while True:
            asked.append(listening.accept())

    listening = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=listen, args=(listening,), daemon=True).start()
    refused = REFUSED | {f"http://127.0.0.1:{listening.getsockname()[1]}/x.png": "Paths and addresses are not read"}
    before = served.resident
    with agent(f"{served.url}gradio_api/mcp") as own:
        for value, reason in refused.items():
            assert reason in own.refusal("search_by_image", image_base64=value), value[:80]
        assert served.resident - before < 60 * 2**20  # the large image takes at least 100 MB if it is decoded
        for arguments, reason in [
            ({"text": "zzz"}, "The model knows none of these words"),
            ({"text": "boat", "k": 99}, "between 1 and 24"),
            ({"text": "boat", "k": "3"}, "not of type 'integer'"),
            ({"text": "boat " * 61}, "write at most 300"),
            ({}, "'text' is a required property"),
        ]:
            assert reason in own.refusal("search_by_text", **arguments)
        assert "Unknown image" in own.refusal("explain_answer", text="boat", image="../../etc/passwd")
        for tool in ("answer_words", "look", "begin", "search_text", "search_image"):
            assert "There is no tool" in own.refusal(tool)
    time.sleep(0.1)
    assert asked == []
    assert len(list(served.uploads.rglob("*"))) < 20
    assert "Traceback" not in served.log.read_text(encoding="utf-8")
