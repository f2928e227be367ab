"""Threads that compute the replies of a server, with a bound on how many requests wait for them."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from cmfah_hf.space.requests import RefusedError

T = TypeVar("T")


class Workers:
    """A bounded number of threads and of calls that wait for them.

    Args:
        threads: Calls at the same time.
        waiting: Calls that wait.
        seconds: Seconds until a call must have returned.
    """

    def __init__(self, threads: int, waiting: int, seconds: float):
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="cmfah-serve")
        self._most, self._seconds = threads + waiting, seconds
        self._count, self._lock = 0, threading.Lock()

    @property
    def count(self) -> int:
        """Calls that run or wait."""
        return self._count

    async def run(self, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """The result of a call in one of the threads. A call that has begun is not interrupted by its time limit.

        Raises:
            RefusedError: If too many calls wait, or the time is over.
        """
        with self._lock:
            if self._count >= self._most:
                raise RefusedError(503, "The server is busy; try again in a moment.")
            self._count += 1
        future = self._pool.submit(call, *args, **options)
        future.add_done_callback(self._done)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._seconds)
        except asyncio.TimeoutError:
            if future.done() and not future.cancelled():  # the error is its own
                raise
            raise RefusedError(503, f"There was no answer within {self._seconds:g} s; try again later.") from None

    def close(self) -> None:
        """Waits for the calls that have begun."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _done(self, _: Future) -> None:
        with self._lock:
            self._count -= 1
