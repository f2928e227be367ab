"""A loopback stand-in for the Hub: serves the data sets below a folder (`owner/name/...`) over real HTTP.

It answers the few requests that `datasets` and `huggingface_hub` make to read a public data set at its main revision.
Run as a program, it prints its address and serves until it is killed.
"""

import hashlib
import http.server
import json
import re
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee0123456789c0ffee0123456789c0ffee01"


class HubHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path
    paths: list[str]

    def do_HEAD(self):
        self._respond()

    def do_GET(self):
        self._respond()

    def do_POST(self):
        self._respond()

    def log_message(self, *args):
        pass

    def _respond(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.paths.append(f"{self.command} {path}")
        if match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            return self._file(self.root / match[1], match[2])
        match = re.fullmatch(r"/api/datasets/([^/]+/[^/]+?)(?:/(revision|tree|paths-info)/[^/]+(?:/(.*))?)?", path)
        if match is None or not (self.root / match[1]).is_dir():
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        repo, verb, below = self.root / match[1], match[2], match[3] or ""
        entries = [self._entry(repo, entry) for entry in sorted(repo.rglob("*"))]
        if verb == "tree":
            recursive = "recursive" in self.path and "recursive=false" not in self.path.lower()
            found = [entry for entry in entries if _is_below(entry["path"], below, recursive)]
            if below and not (repo / below).exists():
                return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return self._json(found)
        if verb == "paths-info":
            is_json = "json" in self.headers.get("Content-Type", "")
            wanted = json.loads(body)["paths"] if is_json else parse_qs(body.decode())["paths"]
            return self._json([entry for entry in entries if entry["path"] in wanted])
        siblings = [{"rfilename": entry["path"]} for entry in entries if entry["type"] == "file"]
        return self._json({"id": match[1], "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})

    def _entry(self, repo: Path, path: Path):
        name = path.relative_to(repo).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
        return {"type": "file", "path": name, "oid": _etag(path), "size": path.stat().st_size}

    def _file(self, repo: Path, name: str):
        path = repo / name
        headers = {"X-Repo-Commit": COMMIT}
        if not repo.is_dir():
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if not path.is_file():
            return self._send(404, b"", headers | {"X-Error-Code": "EntryNotFound"})
        content, status = path.read_bytes(), 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(match[1]), int(match[2] or len(content) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{min(stop, len(content)) - 1}/{len(content)}"
            content, status = content[start:stop], 206
        return self._send(status, content, headers | {"ETag": f'"{_etag(path)}"', "Accept-Ranges": "bytes"})

    def _json(self, value):
        return self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def _is_below(name: str, folder: str, recursive: bool) -> bool:
    if folder and not name.startswith(f"{folder}/"):
        return False
    rest = name[len(folder) + 1 :] if folder else name
    return recursive or "/" not in rest


def make_server(root: Path) -> http.server.ThreadingHTTPServer:
    handler = type("Handler", (HubHandler,), {"root": root, "paths": []})
    return http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
