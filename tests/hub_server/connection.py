"""Common parts of both listeners: bodies, ranges, answers, faults, and the request log."""

import http.server
import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hub_server.faults import ConnectionCutError, Fault, Meter, Request
from hub_server.store import HubError


@dataclass
class Answer:
    """A status, headers and a body; `ranges` allows partial requests of the body."""

    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = False


def json_answer(value: Any, headers: dict[str, str] | None = None, status: int = 200) -> Answer:
    return Answer(json.dumps(value).encode(), status, {"Content-Type": "application/json"} | (headers or {}))


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection; subclasses implement `answer`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each body waits 40 ms after its headers
    listener = ""
    hub: Any  # the HubServer

    def do(self) -> None:
        split = urlsplit(self.path)
        self.raw_path, self.query = split.path, parse_qs(split.query)
        fault = self.hub.faults.take(self.command, self.raw_path)
        is_awaited = self.hub.record.begin(fault)
        received, sent, status = Meter(fault if self.command in ("PUT", "POST") else None), Meter(None), 0
        if self.command in ("GET", "HEAD"):
            sent = Meter(fault)
        try:
            waits = fault is not None and fault.seconds and not fault.chunk
            if waits and self.hub.stopped.wait(fault.seconds):
                raise ConnectionCutError
            # Read also before an error response, or the next request on this connection would begin inside this body.
            self.body = self._read(received)
            answer = self._answer_or_fault(fault)
            if fault is not None and fault.mute:
                self.hub.stopped.wait()
            if fault is not None and (fault.without_answer or fault.mute):
                raise ConnectionCutError
            if fault is not None and fault.change is not None:
                answer = fault.change(answer)
            status = self._send(answer, sent) if fault is None or not fault.endless else self._send_endlessly(answer)
        except (ConnectionCutError, ConnectionError):
            status, self.close_connection = 0, True
        finally:
            range_ = self.headers.get("Range")
            request = Request(self.listener, self.command, self.raw_path, status, received.count, sent.count, range_)
            self.hub.record.end(is_awaited, request)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do  # noqa: N815

    def answer(self) -> Answer:
        raise NotImplementedError

    def log_message(self, *args: Any) -> None:
        """Disables the log on standard error."""

    def _answer_or_fault(self, fault: Fault | None) -> Answer:
        try:
            if fault is not None and fault.status is not None:
                retry = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
                raise HubError(fault.status, "A requested fault", headers=retry)
            return self.answer()
        except HubError as error:
            headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
            return json_answer({"error": error.message}, headers | error.headers, error.status)

    def _read(self, meter: Meter) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self._read_exactly(int(self.headers.get("Content-Length") or 0), meter)
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self._read_exactly(size, meter))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _read_exactly(self, size: int, meter: Meter) -> bytes:
        parts, left = [], size
        while left:
            part = self.rfile.read(meter.allowed(min(left, meter.chunk)))
            if not part:
                raise ConnectionError("the client went away")
            parts.append(part)
            left -= len(part)
            meter.passed(len(part))
        return b"".join(parts)

    def _send(self, answer: Answer, meter: Meter) -> int:
        content, status, headers = answer.content, answer.status, dict(answer.headers)
        if answer.ranges and status == 200:
            headers["Accept-Ranges"] = "bytes"
            content, status, extra = _part_of(content, self.headers.get("Range"))
            headers |= extra
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return status
        for start in range(0, len(content), meter.chunk):
            part = content[start : start + meter.chunk]
            allowed = part[: meter.allowed(len(part))]
            self.wfile.write(allowed)
            self.wfile.flush()
            meter.passed(len(allowed))
        return status

    def _send_endlessly(self, answer: Answer) -> int:
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Transfer-Encoding": "chunked"}.items():
            self.send_header(name, value)
        self.end_headers()
        while not self.hub.stopped.is_set():
            self.wfile.write(b"10000\r\n" + b" " * 2**16 + b"\r\n")
        raise ConnectionCutError


def _part_of(content: bytes, asked: str | None) -> tuple[bytes, int, dict[str, str]]:
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", asked or "")
    if match is None or not (match[1] or match[2]):
        return content, 200, {}
    if match[1]:
        start, stop = int(match[1]), min(int(match[2] or len(content) - 1) + 1, len(content))
    else:
        start, stop = max(0, len(content) - int(match[2])), len(content)
    if start >= stop:
        return b"", 416, {"Content-Range": f"bytes */{len(content)}"}
    return content[start:stop], 206, {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
