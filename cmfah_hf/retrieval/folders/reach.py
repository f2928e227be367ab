"""System calls on folders of drives that may never answer, such as a network drive whose server is gone."""

import errno
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

# Seconds to wait for an answer; a disk that has to spin up takes some of them.
_ANSWER_S = 20.0
# Calls that still wait, by path: a further one for the same path would wait as well.
_waiting: dict[str, threading.Thread] = {}


def in_time(call: Callable[[str], T], path: str) -> T:
    """The result of a system call on a path.

    Raises:
        TimeoutError: If there is no answer within 20 seconds, or an earlier call for this path still waits. Its thread
            stays until the drive answers or the process ends.
        Exception: What the call raises.
    """
    if path in _waiting and _waiting[path].is_alive():
        raise _silent(path)
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call(path))
        except BaseException as error:  # raised again by `result`
            future.set_exception(error)

    thread = threading.Thread(target=run, name=f"cmfah-reach {path}", daemon=True)
    thread.start()
    thread.join(_ANSWER_S)
    if thread.is_alive():
        _waiting[path] = thread
        raise _silent(path)
    return future.result()


def _silent(path: str) -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, f"it does not answer within {_ANSWER_S:g} seconds", path)
