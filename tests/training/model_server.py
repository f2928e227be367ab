"""A loopback stub of the Hub's models: serves the folders `owner/name` below a root over real HTTP."""

import hashlib
import http.server
import json
import re
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "feed0123456789c0ffee0123456789c0ffee0123"


class ModelHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path
    asked: list[str]

    def do_HEAD(self):
        self._respond()

    def do_GET(self):
        self._respond()

    def log_message(self, *args):
        pass

    def _respond(self):
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/.*)?", path)
        match = file or listing
        if match is None or not (self.root / match[1]).is_dir():
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        repo = self.root / match[1]
        if "/tree/" in path:  # for a folder below the root, and none exists
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        if listing:
            siblings = [{"rfilename": entry.name} for entry in sorted(repo.iterdir())]
            body = {"id": listing[1], "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}
            return self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        if not (repo / file[2]).is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = (repo / file[2]).read_bytes()
        return self._send(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def _send(self, status: int, content: bytes, headers: dict[str, str]):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def serving(root: Path):
    """The address of a server over `root`, and the list of its requests."""
    handler = type("Handler", (ModelHandler,), {"root": root, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.asked
    finally:
        server.shutdown()
        server.server_close()
