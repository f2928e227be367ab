"""A served retriever behind a real server on the loopback."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from cmfah_hf.serving import ServedRetriever, ServiceLimits, build_service
from cmfah_hf.serving.server import bind, make_server
from cmfah_hf.space.hosts import AllowedHosts


@dataclass
class Running:
    """A server in a thread: its retriever, its address, and a client that keeps its connection."""

    served: ServedRetriever
    url: str
    http: httpx.Client
    stop: Callable[[], None]

    def post(self, path: str, asked: Any = None, images: list[bytes] = (), **options: Any) -> httpx.Response:
        if not images:
            return self.http.post(path, json=asked, **options)
        files: list[tuple[str, Any]] = [("image", (f"{n}.png", content)) for n, content in enumerate(images)]
        return self.http.post(path, data={"query": json.dumps(asked or {})}, files=files, **options)

    def search(self, images: list[bytes] = (), **asked: Any) -> dict[str, Any]:
        answer = self.post("/search", asked, images)
        assert answer.status_code == 200, answer.text
        return answer.json()


@contextmanager
def running(
    served: ServedRetriever, token: str | None = None, limits: ServiceLimits | None = None, mcp: bool = False
) -> Iterator[Running]:
    """Serves until the block ends, and saves then."""
    limits = limits or ServiceLimits()
    ready, listening = threading.Event(), bind("127.0.0.1", 0)
    with served:
        server = make_server(build_service(served, token, AllowedHosts("127.0.0.1"), limits, mcp), limits)
        thread = threading.Thread(target=server.run_and_report, args=(listening, ready.set))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.start()
        assert ready.wait(20)

        def stop() -> None:
            server.should_exit = True

        try:
            with httpx.Client(base_url=url, timeout=30) as http:
                yield Running(served, url, http, stop)
        finally:
            stop()
            thread.join(30)
            assert not thread.is_alive()
