"""Faults of the test Hub: delays, errors, broken transfers; and the log of its requests."""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# Maximum wait: a handler that is active for longer is blocked by its client, for example in an incomplete body.
_MOST_SECONDS = 5.0


@dataclass(frozen=True)
class Request:
    """One request: the listener (`hub` or `storage`), method and path, the answer's status, bytes of both bodies.

    The status is 0 where the connection was cut, and the bytes are those that went over it until then.
    """

    listener: str
    method: str
    path: str
    status: int
    received: int
    sent: int
    range: str | None = None


@dataclass
class Fault:
    """Something that goes wrong with requests whose `METHOD /path` a pattern matches, `times` times or always."""

    pattern: str
    times: int | None
    status: int | None = None
    retry_after: int | None = None
    cut_after: int | None = None
    seconds: float = 0.0
    chunk: int = 0
    without_answer: bool = False
    mute: bool = False
    endless: bool = False
    change: Callable[[Any], Any] | None = None


@dataclass
class Faults:
    """The faults in force. Of several that match a request, the first that was asked for happens."""

    _faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """The fault that happens to this request, counted as one of its times."""
        with self._lock:
            for fault in self._faults:
                if fault.times != 0 and re.search(fault.pattern, f"{method} {path}"):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None


class Record:
    """The log of requests, complete for every request whose answer a client has read.

    A handler logs a request after it has sent the answer, so readers wait for active handlers. They do not wait for
    handlers that a fault delays, which may never end.
    """

    def __init__(self) -> None:
        self._requests: list[Request] = []
        self._at_work = 0
        self._idle = threading.Condition()

    def begin(self, fault: Fault | None) -> bool:
        """Registers a request; returns whether `complete` waits for it."""
        is_awaited = fault is None or not (fault.seconds or fault.mute or fault.endless)
        with self._idle:
            self._at_work += is_awaited
        return is_awaited

    def end(self, is_awaited: bool, request: Request) -> None:
        """Logs a request whose handler has finished."""
        with self._idle:
            self._requests.append(request)
            self._at_work -= is_awaited
            self._idle.notify_all()

    def complete(self) -> list[Request]:
        """The requests, in the order in which their handlers finished."""
        with self._idle:
            self._idle.wait_for(lambda: not self._at_work, timeout=_MOST_SECONDS)
            return self._requests


class ConnectionCutError(Exception):
    """The fault says that the connection ends here."""


class Meter:
    """Counts the bytes of one body, sleeps after each chunk, and cuts the connection where the fault says so."""

    def __init__(self, fault: Fault | None):
        self.fault = fault
        self.count = 0

    @property
    def chunk(self) -> int:
        return (self.fault and self.fault.chunk) or 2**16

    def allowed(self, size: int) -> int:
        """The number of the next `size` bytes that still pass."""
        if self.fault is None or self.fault.cut_after is None:
            return size
        return min(size, self.fault.cut_after - self.count)

    def passed(self, size: int) -> None:
        self.count += size
        if self.fault is None:
            return
        if self.fault.cut_after is not None and self.count >= self.fault.cut_after:
            raise ConnectionCutError
        if self.fault.seconds and self.fault.chunk:
            time.sleep(self.fault.seconds)
