"""Seeded mutation of files and messages, and the failures of their readers.

A reader may accept an input or refuse it with a `CMFAHError` of one line. Everything else is a failure: another error,
a message of several lines, a timeout, access to the canary. A crash of the process fails its test; the name of the
test and the number of the input, which is saved first, reproduce the input.
"""

import contextlib
import copy
import ctypes
import http.server
import os
import random
import signal
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cmfah_hf.errors import CMFAHError

# Values that often break readers, for any place in a document.
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**40, 0.0, -0.0, 1e308, -1e-320,
    float("nan"), float("inf"), float("-inf"), "", "x", "\0", "\n", "é", "e\u0301", "\u202e", "[red]", "../x",
    "/dev/zero", "x" * 70_000, [], {}, [[]], [{}], [None], [0] * 1000, {"": None}, {"a": {"a": {"a": {}}}},
)  # fmt: skip
ODD_BYTES = (b"", b"\0", b"\xff", b"\0" * 8, b"\xff" * 8, b"[" * 2000, b'{"a":' * 2000, b"\r\n", b"\xed\xa0\x80")
_IN_ACCESS, _IN_OPEN, _IN_NONBLOCK = 0x1, 0x20, 0o4000


class InputTimeoutError(BaseException):
    """An input exceeded the time limit. Not an `Exception`, so no reader catches it by accident."""


class Canary:
    """A file outside every root, and a server; no reader may access either.

    Args:
        folder: The folder of the file.
        content: Content of the file, for example an image, so that a reader would accept it.
    """

    def __init__(self, folder: Path, content: bytes):
        self.path = folder / "canary.png"
        self.path.write_bytes(content)
        self.requests: list[str] = []
        canary = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                canary.requests.append(self.path)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(content)

            do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - the names that http.server calls

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/canary.png"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        libc = ctypes.CDLL(None, use_errno=True)
        self._watch = libc.inotify_init1(_IN_NONBLOCK)
        if libc.inotify_add_watch(self._watch, os.fsencode(self.path), _IN_ACCESS | _IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), "inotify")

    def touched(self) -> str | None:
        """The access to the file or the server since the last call, by any process; None if there was none."""
        found = None
        with contextlib.suppress(BlockingIOError):
            while os.read(self._watch, 4096):
                found = f"{self.path} was opened"
        if self.requests:
            found = f"{self.url} was asked for {self.requests}"
            self.requests.clear()
        return found

    def close(self) -> None:
        os.close(self._watch)
        self._server.shutdown()
        self._server.server_close()

    def names(self) -> tuple[str, ...]:
        """Names of the file and of the server's response, in the notations of several libraries."""
        path = str(self.path)
        up = "../" * 12 + path.lstrip("/")
        return path, up, f"file://{path}", f"local://{path}", f"simplecache::file://{path}", self.url


class Fuzzer:
    """Passes inputs to a reader and counts the outcomes.

    Args:
        count: Number of inputs.
        canary: The file and server that must not be accessed.
        note: A file with the number of the current input, in case the process crashes.
        limit_s: Time limit of one input in seconds.
    """

    def __init__(self, count: int, canary: Canary, note: Path, limit_s: float = 10.0):
        self.count, self.canary, self.note, self.limit_s = count, canary, note, limit_s
        self.outcomes: Counter[str] = Counter()
        self.failures: list[str] = []

    def run(self, attempt: Callable[[random.Random], Any], allowed: tuple[type[BaseException], ...] = ()) -> None:
        """Makes and reads `count` inputs.

        Args:
            attempt: Makes an input from a generator and reads it. The generator state depends only on the number of
                the input.
            allowed: Additional errors that count as a refusal.

        Raises:
            AssertionError: If there were failures; it names the first ones with their numbers.
        """
        for number in range(self.count):
            self.note.write_text(str(number))
            try:
                with time_limit(self.limit_s):
                    attempt(random.Random(number))
                self.outcomes["accepted"] += 1
            except (CMFAHError, *allowed) as error:
                self.outcomes["refused"] += 1
                if "\n" in str(error):
                    self._fail(number, f"a message of several lines: {error!r}")
            except InputTimeoutError:
                self._fail(number, f"took more than {self.limit_s:g} s")
            except Exception as error:  # any exception is a finding
                self._fail(number, f"{type(error).__module__}.{type(error).__name__}: {str(error)[:300]}")
            if touched := self.canary.touched():
                self._fail(number, touched)
        self.note.unlink()
        print(f"{dict(self.outcomes)}")  # noqa: T201 - shown with -s, and when a test fails
        assert not self.failures, f"{len(self.failures)} of {self.count}:\n" + "\n".join(self.failures[:10])

    def _fail(self, number: int, reason: str) -> None:
        self.outcomes["failed"] += 1
        self.failures.append(encodable(f"input {number}: {reason}"))


def encodable(text: str) -> str:
    """The text with escapes for characters that UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises an `InputTimeoutError` in the block after this time. Only in the main thread."""

    def stop(*_: object) -> None:
        raise InputTimeoutError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def mutated(rng: random.Random, content: bytes) -> bytes:
    """The content with one to four changes: bits, bytes, numbers, pieces removed, repeated, truncated, inserted."""
    result = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(result) + 1)
        end = min(len(result), at + rng.choice((1, 2, 4, 8, 64, 1000)))
        kind = rng.randrange(9)
        if kind == 0 and at < len(result):
            result[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            result[at:end] = rng.randbytes(end - at)
        elif kind == 2:
            result[at:end] = b""
        elif kind == 3:
            result[at:at] = result[at:end]
        elif kind == 4:
            result[at:] = b""
        elif kind == 5:
            result[at:at] = rng.choice(ODD_BYTES)
        elif kind == 6:
            result[at : at + 4] = struct.pack(
                "<I", rng.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, rng.randrange(2**32)))
            )
        elif kind == 7:
            result[at : at + 8] = struct.pack("<Q", rng.choice((0, 2**31, 2**63 - 1, 2**63, 2**64 - 1)))
        else:
            result += rng.randbytes(rng.randrange(1, 64))
    return bytes(result)


def mutated_json(rng: random.Random, value: Any, odd_values: tuple[Any, ...] = ODD_VALUES) -> Any:
    """A copy of a JSON value with one to three entries changed, removed, added, nested or exchanged.

    Args:
        rng: The generator.
        value: A result of `json.loads`.
        odd_values: Inserted values, for example the canary's names in addition to the usual ones.
    """
    root = {"root": copy.deepcopy(value)}
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(root))
        holder, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0 and holder is not root:
            del holder[key]
        elif kind == 1:
            other, other_key = rng.choice(places)
            holder[key] = copy.deepcopy(other[other_key])
        elif kind == 2 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(rng.choice(odd_values)))
        elif kind == 2 and holder is not root:
            holder[rng.choice(("", "x", "__class__", "auto_map", str(key).upper()))] = copy.deepcopy(
                rng.choice(odd_values)
            )
        elif kind == 3 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = rng.choice(
                (holder[key] + 1, -holder[key], holder[key] * 10**6, holder[key] / 3, str(holder[key]))
            )
        elif kind == 4:
            holder[key] = [holder[key]]
        else:
            holder[key] = copy.deepcopy(rng.choice(odd_values))
    return root["root"]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every entry below a value, as its container and its key."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])
