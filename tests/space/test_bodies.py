"""Validation of JSON request bodies, and the values passed on to Gradio."""

import json

import gradio as gr
import pytest

from cmfah_hf.errors import QueryError
from cmfah_hf.space.bodies import Bodies
from cmfah_hf.space.uploads import Uploads

NAME = "ab" * 32


@pytest.fixture(scope="module")
def app():
    def find(text: str, k: int = 3) -> str:
        return text * k

    with gr.Blocks() as app:
        words, image, count = gr.Textbox(label="Words"), gr.Image(), gr.Slider(1, 24)
        gr.Button().click(lambda *_: "", [words, image, count, gr.State("")], words, api_visibility="private")
        gr.Button().click(lambda _: "", gr.Checkbox(label="Both"), words, api_visibility="private")
        gr.api(find, api_name="find")
    return app


@pytest.fixture
def bodies(app, tmp_path) -> Bodies:
    return Bodies(app, Uploads(tmp_path))


def join(bodies: Bodies, data: list, **more) -> dict:
    return json.loads(bodies.join(json.dumps({"data": data, "fn_index": 0, "session_hash": "s"} | more).encode()))


@pytest.mark.parametrize(
    "given",
    [
        {"path": "/etc/passwd"},
        {"path": "/etc/no-such-file"},
        {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
        {"path": "../" + NAME},
        {"path": NAME + "/.."},
        {"path": NAME.upper()},
        {"path": None, "url": "data:image/png;base64,AAAA"},
        {"url": "http://example.com/x.png"},
        {"path": "http://example.com/x.png"},
        {"path": {"path": NAME}},
        {},
        [NAME],
        NAME,
        3,
        False,
    ],
)
def test_values_that_name_no_upload_become_one_unused_path(bodies, given, tmp_path):
    nowhere = {"path": str(tmp_path / ("0" * 64)), "meta": {"_type": "gradio.FileData"}}
    assert join(bodies, ["", given, 3, None])["data"][1] == nowhere


def test_an_upload_keeps_only_its_path(bodies, tmp_path):
    given = {"path": NAME, "url": "http://example.com", "is_stream": True, "meta": {"_type": "x"}, "size": -1}
    data = join(bodies, ["boat", given, 3, {"path": "/etc/passwd"}])["data"]
    assert data == ["boat", {"path": str(tmp_path / NAME), "meta": {"_type": "gradio.FileData"}}, 3, None]
    assert join(bodies, [None, None, 3, None])["data"] == [None, None, 3, None]


def test_unchecked_keys_are_removed(bodies):
    more = {"batched": True, "simple_format": True, "event_id": "x", "trigger_id": 10**9, "oauth_token": "t"}
    assert set(join(bodies, ["", None, 3, None], **more)) == {"data", "fn_index", "session_hash"}
    event = {"id": "a", "region": 3, "value": {"path": "/etc/passwd"}}
    assert join(bodies, ["", None, 3, None], event_data=event)["event_data"] == {"id": "a", "region": 3}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fn_index": 99}, "fn_index is not"),
        ({"fn_index": True}, "fn_index is not"),
        ({"fn_index": None}, "fn_index is not"),
        ({"fn_index": [0]}, "fn_index is not"),
        ({"fn_index": 0.0}, "fn_index is not"),
        ({"session_hash": None}, "session_hash is missing"),
        ({"session_hash": 3}, "is named by"),
        ({"session_hash": "x" * 65}, "is named by"),
        ({"session_hash": "a/b"}, "is named by"),
        ({"data": None}, "data is not a list of the 4 inputs"),
        ({"data": {}}, "data is not a list"),
        ({"data": [""]}, "data is not a list"),
        ({"data": [{"path": "/etc/passwd"}, None, 3, None]}, "Words is a text"),
        ({"data": [[], None, 3, None]}, "Words is a text"),
        ({"data": ["", None, 25, None]}, "is a number from 1 to 24"),
        ({"data": ["", None, float("nan"), None]}, "is a number from 1 to 24"),
        ({"data": ["", None, 10**400, None]}, "is a number from 1 to 24"),
        ({"data": ["", None, "3", None]}, "is a number from 1 to 24"),
        ({"data": ["yes"], "fn_index": 1}, "Both is true or false"),
        ({"data": [1], "fn_index": 1}, "Both is true or false"),
    ],
)
def test_malformed_calls_are_refused_in_one_line(bodies, change, reason):
    with pytest.raises(QueryError, match=reason) as refused:
        join(bodies, **{"data": ["", None, 3, None]} | change)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"3", b"\xff", b'{"data": [], "data": []}', b"[" * 60_000, b'{"a":' * 10_000,
        b'{"data": ["\\ud800", 3]}', b'{"data": ["x", ' + b"9" * 5000 + b"]}", b'{"data": ["x", NaN]}',
        b'{"data": ["x", [3]]}', b'{"data": ["x", true]}', b'{"data": []}', b'{"data": ["x", 3, 4]}',
    ],
)  # fmt: skip
def test_malformed_bodies_are_refused_in_one_line(bodies, body):
    for check in (lambda: bodies.call("find", body), lambda: bodies.join(body), lambda: bodies.cancel(body)):
        with pytest.raises(QueryError) as refused:
            check()
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 400


def test_endpoints_are_called_only_by_their_public_names(bodies, app):
    body = b'{"data": ["x", 3]}'
    assert json.loads(bodies.call("find", body)) == {"data": ["x", 3]}
    # What has a default value may be left out at the end.
    assert json.loads(bodies.call("find", b'{"data": ["x"]}')) == {"data": ["x", 3]}
    private = app.fns[0].api_name
    for name in ("nothing", private, str(private)):
        with pytest.raises(QueryError, match="no endpoint of this name"):
            bodies.call(name, body)
