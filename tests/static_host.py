"""A folder as a static host serves it, and visitors of its pages."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Quiet(SimpleHTTPRequestHandler):
    """Python's own static server, as `python -m http.server` runs it, without a log."""

    def log_message(self, *args) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a folder while it is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def visitor(chromium, wrong: list[str], **settings):
    """A new visitor, who notes answers in `window.answers`, and errors and requests to other hosts in a list."""
    context = chromium.new_context(**{"viewport": {"width": 1200, "height": 900}, **settings})
    context.set_default_timeout(60_000)
    context.on("request", lambda request: wrong.append(request.url) if _is_external(request.url) else None)
    context.on("weberror", lambda error: wrong.append(str(error.error)))
    context.add_init_script(
        "document.addEventListener('answer', event => (window.answers ??= []).push("
        "{...event.detail, values: [...event.detail.values]}))"
    )
    return context


def _is_external(address: str) -> bool:
    return not re.match(r"http://127\.0\.0\.1:|file:|data:|blob:", address)
