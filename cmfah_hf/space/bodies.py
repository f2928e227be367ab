"""Validation of JSON request bodies against the app's functions; Gradio sees only the rewritten body.

Gradio gets no key, type or path that was not checked here, whatever its own parsers would have made of the original.
"""

import json
import math
import re
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.components.api_component import Api

from cmfah_hf.documents import parse_json
from cmfah_hf.errors import QueryError
from cmfah_hf.space.uploads import Uploads

SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Data of the page's own events: the selected answer or region.
_EVENT_KEYS = ("id", "region")


class Bodies:
    """Validates request bodies of one app, whose functions and input components define valid calls.

    A malformed body is a `QueryError`.
    """

    def __init__(self, app: gr.Blocks, uploads: Uploads):
        self._app, self._uploads = app, uploads
        self._checks: dict[type, Callable[[Any, Any], Any]] = {
            gr.State: lambda _, value: None,
            gr.Image: self._image,
            gr.Textbox: _text,
            gr.Dropdown: _text,
            gr.Radio: _text,
            gr.Slider: _number,
            gr.Checkbox: _flag,
            gr.Dataset: _row,
            Api: _scalar,
        }

    def join(self, body: bytes) -> bytes:
        """The body of a call from the page, by the number of a function."""
        given = _mapping(body)
        number = self._number_of_function(given)
        checked = self._call(self._app.fns[number], given)
        if "session_hash" not in checked:
            raise QueryError("session_hash is missing; give one.")
        return json.dumps(checked | {"fn_index": number}).encode()

    def call(self, name: str, body: bytes) -> bytes:
        """The body of a call from a program, by the name of an endpoint."""
        functions = (fn for fn in self._app.fns.values() if fn.api_name == name and fn.api_visibility == "public")
        function = next(functions, None)
        if function is None:
            raise QueryError("There is no endpoint of this name; see /gradio_api/info for them.")
        return json.dumps(self._call(function, _mapping(body))).encode()

    def cancel(self, body: bytes) -> bytes:
        """The body of a request to cancel a call."""
        given = _mapping(body)
        names = {key: _name(given.get(key)) for key in ("session_hash", "event_id")}
        return json.dumps(names | {"fn_index": self._number_of_function(given)}).encode()

    def reset(self, body: bytes) -> bytes:
        """The body of a request to reset a call."""
        return json.dumps({"event_id": _name(_mapping(body).get("event_id"))}).encode()

    def _number_of_function(self, given: dict[str, Any]) -> int:
        number = given.get("fn_index")
        if isinstance(number, bool) or not isinstance(number, int) or number not in self._app.fns:
            raise QueryError("fn_index is not the number of a function here; see /config for them.")
        return number

    def _call(self, function: Any, given: dict[str, Any]) -> dict[str, Any]:
        values = given.get("data")
        if isinstance(values, list):  # a program may leave out what has a default value
            missing = function.inputs[len(values) :]
            values = [*values, *(block.value for block in missing if type(block) is Api and block.value is not None)]
        if not isinstance(values, list) or len(values) != len(function.inputs):
            raise QueryError(f"data is not a list of the {len(function.inputs)} inputs of this function; give one.")
        data = [self._value(block, value) for block, value in zip(function.inputs, values, strict=True)]
        checked: dict[str, Any] = {"data": data}
        if given.get("session_hash") is not None:
            checked["session_hash"] = _name(given["session_hash"])
        trigger = given.get("trigger_id")
        if isinstance(trigger, int) and not isinstance(trigger, bool) and trigger in self._app.blocks:
            checked["trigger_id"] = trigger
        event = given.get("event_data")
        if isinstance(event, dict):
            checked["event_data"] = {key: event[key] for key in _EVENT_KEYS if isinstance(event.get(key), (str, int))}
        return checked

    def _value(self, block: Any, value: Any) -> Any:
        check = self._checks.get(type(block))
        if check is None:
            raise QueryError(f"Nothing can be sent for {type(block).__name__}.")
        return check(block, value)

    def _image(self, block: Any, value: Any) -> dict[str, Any] | None:
        """An upload by name; any other name becomes a path that does not exist, so replies do not differ."""
        if value is None:
            return None
        path = self._uploads.path_of(value.get("path") if isinstance(value, dict) else None)
        return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def _mapping(body: bytes) -> dict[str, Any]:
    given = parse_json(body, "The body", QueryError)
    if not isinstance(given, dict):
        raise QueryError("The body is not a JSON object; send one.")
    return given


def _name(value: Any) -> str:
    if not isinstance(value, str) or SESSION.fullmatch(value) is None:
        raise QueryError("A session or an event is named by 1 to 64 letters, digits, - and _; give such a name.")
    return value


def _text(block: Any, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise QueryError(f"{block.label} is a text; give one.")
    return value


def _number(block: Any, value: Any) -> float:
    # A comparison with NaN is never true.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not block.minimum <= value <= block.maximum:
        raise QueryError(f"{block.label} is a number from {block.minimum} to {block.maximum}; give one.")
    return value


def _flag(block: Any, value: Any) -> bool:
    if not isinstance(value, bool):
        raise QueryError(f"{block.label} is true or false; give one.")
    return value


def _row(block: Any, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31):
        raise QueryError("The number of a row is an integer; give one.")
    return value


def _scalar(block: Any, value: Any) -> str | float | None:
    """A plain value; the function itself validates it."""
    if isinstance(value, float) and not math.isfinite(value):
        raise QueryError(f"{block.label} is not a finite number; give one.")
    if value is not None and (isinstance(value, bool) or not isinstance(value, (str, int, float))):
        raise QueryError(f"{block.label} is a text or a number; give one.")
    return value
