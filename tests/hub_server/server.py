"""`HubServer`: both listeners, from start to end, and what a test asks of them."""

import hashlib
import http.server
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from hub_server.api import ApiHandler
from hub_server.connection import Answer
from hub_server.faults import Fault, Faults, Record, Request
from hub_server.storage import Signer, StorageHandler
from hub_server.store import MAIN, Commit, Entry, PullRequest, Store, User, is_large, small_entry

USERS = {
    "hf_writer": User("me", ("org",)),
    "hf_reader": User("me", ("org",), may_write=False),
    "hf_stranger": User("stranger"),
}


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a slow answer does not hold up the end of a test

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news; what the server itself does wrong is kept for the test."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            self.errors.append(error)


class HubServer:
    """A Hub on the loopback, serving from entering the context to leaving it.

    Args:
        users: Whom each token belongs to.
        page_size: Entries of one page of a tree's listing.
        multipart_size: Larger objects, in bytes, are uploaded in parts of this size; None: none is.
    """

    def __init__(self, users: dict[str, User] | None = None, page_size: int = 1000, multipart_size: int | None = None):
        self.store = Store(dict(USERS if users is None else users))
        self.page_size, self.multipart_size = page_size, multipart_size
        self.faults, self.signer = Faults(), Signer()
        self.record = Record()
        self.stopped = threading.Event()
        self.errors: list[BaseException | None] = []
        self._listeners = [
            _Listener(("127.0.0.1", 0), type("Bound", (kind,), {"hub": self})) for kind in (ApiHandler, StorageHandler)
        ]
        for listener in self._listeners:
            listener.errors = self.errors
        self.endpoint, self.storage = (f"http://127.0.0.1:{each.server_port}" for each in self._listeners)

    def __enter__(self) -> "HubServer":
        for listener in self._listeners:
            threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stopped.set()
        for listener in self._listeners:
            listener.shutdown()
            listener.server_close()
        if raised[0] is None and self.errors:
            raise AssertionError("The server itself failed.") from self.errors[0]

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The environment of a process that is to use this Hub, with its caches below `home`."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        own |= {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        return own | ({"HF_TOKEN": token} if token else {})

    @property
    def log(self) -> list[Request]:
        """The logged requests; a request whose answer has been read is among them."""
        return self.record.complete()

    # What goes wrong, for the requests whose `METHOD /path` the pattern matches, `times` times (None: always).

    def fail(self, pattern: str, status: int = 503, times: int | None = 1, retry_after: int | None = None) -> None:
        """Answer with this status; 507 is what a full disk says."""
        self.faults.add(Fault(pattern, times, status=status, retry_after=retry_after))

    def cut(self, pattern: str, after: int = 0, times: int | None = 1) -> None:
        """Cut the connection when so many bytes (at least one) of the body, up or down, have gone over it."""
        self.faults.add(Fault(pattern, times, cut_after=max(1, after), chunk=min(max(1, after), 2**16)))

    def lose_answer(self, pattern: str, times: int | None = 1) -> None:
        """Do what is asked, and cut the connection instead of saying so."""
        self.faults.add(Fault(pattern, times, without_answer=True))

    def slow(self, pattern: str, seconds: float, chunk: int = 0, times: int | None = None) -> None:
        """Wait so long after each `chunk` bytes of the body, or once before anything is read."""
        self.faults.add(Fault(pattern, times, seconds=seconds, chunk=chunk))

    def mute(self, pattern: str, times: int | None = None) -> None:
        """Take the request, and answer nothing as long as the server runs."""
        self.faults.add(Fault(pattern, times, mute=True))

    def endless(self, pattern: str, times: int | None = None) -> None:
        """Answer with a body that does not end."""
        self.faults.add(Fault(pattern, times, endless=True))

    def change(self, pattern: str, change: Callable[[Answer], Answer], times: int | None = None) -> None:
        """Send what `change` makes of the answer, in its place."""
        self.faults.add(Fault(pattern, times, change=change))

    def reply(
        self,
        pattern: str,
        content: bytes,
        status: int = 200,
        headers: dict[str, str] | None = None,
        times: int | None = None,
    ) -> None:
        """Do what is asked, and answer with this instead of saying so."""
        self.change(pattern, lambda _: Answer(content, status, dict(headers or {})), times)

    # What a test puts there or looks at without a client.

    def add(self, id: str, files: dict[str, bytes], kind: str = "dataset", private: bool = False) -> Commit:
        """A repository with these files in one commit on the main branch, or another commit of it with these."""
        repository = self.store.repositories.get((kind, id)) or self.store.create(kind, id, private)
        entries: dict[str, Entry] = dict(repository.commit_of(MAIN).files)
        for path, content in files.items():
            entries[path] = self.entry(path, content)
        return repository.add_commit(MAIN, entries, "Add files", "", "hub")

    def open_pull_request(
        self, id: str, files: dict[str, bytes], title: str, author: str, kind: str = "dataset"
    ) -> Commit:
        """A pull request with these files in one commit on that of the main branch."""
        repository = self.store.repositories[kind, id]
        repository.requests.append(PullRequest(title, author))
        branch, main = f"refs/pr/{len(repository.requests)}", repository.commit_of(MAIN)
        repository.branches[branch] = main.oid
        entries = dict(main.files) | {path: self.entry(path, content) for path, content in files.items()}
        return repository.add_commit(branch, entries, title, "", author)

    def add_folder(self, id: str, folder: Path, kind: str = "dataset", private: bool = False) -> Commit:
        """The same, of all files below a folder."""
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        return self.add(id, files, kind, private)

    def files(self, id: str, kind: str = "dataset", revision: str = MAIN) -> dict[str, bytes]:
        """The files of a revision with their content."""
        entries = self.store.repositories[kind, id].commit_of(revision).files
        return {p: self.store.objects[e.sha256] if e.content is None else e.content for p, e in entries.items()}

    def history(self, id: str, kind: str = "dataset", revision: str = MAIN) -> list[str]:
        """The titles of all commits, the last one first."""
        return [commit.title for commit in self.store.repositories[kind, id].history(revision)]

    def asked(self, method: str, part: str = "", ok: bool | None = None) -> list[Request]:
        """The requests of this method with `part` in their path; only those that succeeded, or did not, if asked."""
        found = [request for request in self.log if request.method == method and part in request.path]
        return found if ok is None else [r for r in found if (200 <= r.status < 400) == ok]

    def entry(self, path: str, content: bytes) -> Entry:
        """A file for a commit; the content of a large one is stored."""
        if not is_large(path, len(content)):
            return small_entry(content)
        sha256 = hashlib.sha256(content).hexdigest()
        self.store.put_object(sha256, content)
        return self.store.large_entry(sha256)
