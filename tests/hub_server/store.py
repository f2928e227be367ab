"""The state of the Hub: users, repositories with their history, and large objects."""

import hashlib
import threading
from dataclasses import dataclass, field
from datetime import datetime, timezone

KINDS = ("model", "dataset", "space")
MAIN = "main"
# The initial content of a repository; as on the Hub, its patterns select the large objects.
LARGE_SUFFIXES = ("arrow", "bin", "gz", "jpg", "npy", "parquet", "png", "safetensors", "tar", "zip")
GIT_ATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES).encode()
# Larger files are large objects, whatever their name.
LARGE_SIZE = 10 * 2**20


class HubError(Exception):
    """An error response: status, the error code for the client, and a message."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}


@dataclass(frozen=True)
class User:
    """The owner of a token; may write below the own name and those of `organizations`, unless it is read-only."""

    name: str
    organizations: tuple[str, ...] = ()
    may_write: bool = True

    def owns(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.organizations


@dataclass(frozen=True)
class Entry:
    """A file of a commit: its Git id, its size in bytes, and its content or, for a large object, its SHA-256."""

    oid: str
    size: int
    content: bytes | None = None
    sha256: str | None = None
    pointer_size: int = 0

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    files: dict[str, Entry]
    title: str
    message: str
    author: str
    date: str

    def folders(self) -> dict[str, str]:
        """The Git ids of all folders; the root has an empty name."""
        return _trees(self.files)


@dataclass(frozen=True)
class PullRequest:
    """An open pull request; its commits are those of the branch `refs/pr/NUMBER`."""

    title: str
    author: str


@dataclass
class Repository:
    id: str
    kind: str
    private: bool = False
    gated: bool = False
    sdk: str | None = None
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    requests: list[PullRequest] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        return self.id.partition("/")[0]

    def commit_of(self, revision: str) -> Commit:
        """The commit of a branch, a tag or a commit id."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def history(self, revision: str) -> list[Commit]:
        """All commits from this one back to the first."""
        commit, found = self.commit_of(revision), []
        while commit is not None:
            found.append(commit)
            commit = self.commits.get(commit.parent)
        return found

    def add_commit(self, branch: str, files: dict[str, Entry], title: str, message: str, author: str) -> Commit:
        parent = self.branches.get(branch)
        now = datetime.now(timezone.utc)
        oid = _commit_oid(_trees(files)[""], parent, f"{title}\n\n{message}".strip(), author, int(now.timestamp()))
        commit = Commit(oid, parent, dict(files), title, message, author, now.strftime("%Y-%m-%dT%H:%M:%S.000Z"))
        self.commits[oid] = commit
        self.branches[branch] = oid
        return commit


class Store:
    """The complete state; `lock` protects changes of repositories."""

    def __init__(self, users: dict[str, User]):
        self.users = users
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.lock = threading.RLock()

    def user_of(self, authorization: str | None) -> User | None:
        if not authorization:
            return None
        user = self.users.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def repository(self, kind: str, id: str, user: User | None, write: bool = False) -> Repository:
        """A repository that this user may read, and write if requested.

        An inaccessible repository gives the same response as a missing one; without a token the response is 401.
        """
        found = self.repositories.get((kind, id))
        if found is None or (found.private and not (user and user.owns(found.namespace))):
            status, message = (401, "Invalid username or password.") if user is None else (404, "Repository not found")
            raise HubError(status, message, "RepoNotFound")
        if write:
            self.require_writer(found.namespace, user)
        return found

    def require_writer(self, namespace: str, user: User | None) -> None:
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if not (user.may_write and user.owns(namespace)):
            raise HubError(403, f'You don\'t have the rights to write below the namespace "{namespace}"')

    def create(self, kind: str, id: str, private: bool = False, sdk: str | None = None) -> Repository:
        with self.lock:
            if (kind, id) in self.repositories:
                raise HubError(409, f"You already created this {kind} repo: {id}")
            created = self.repositories[kind, id] = Repository(id, kind, private, sdk=sdk)
            created.add_commit(MAIN, {".gitattributes": small_entry(GIT_ATTRIBUTES)}, "initial commit", "", "hub")
            return created

    def put_object(self, sha256: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != sha256:
            raise HubError(400, "BadDigest: the content is not that of this SHA-256")
        self.objects[sha256] = content

    def large_entry(self, sha256: str) -> Entry:
        if sha256 not in self.objects:
            raise HubError(400, f"The large object {sha256} has not been uploaded")
        size = len(self.objects[sha256])
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return Entry(git_oid("blob", pointer), size, sha256=sha256, pointer_size=len(pointer))


def small_entry(content: bytes) -> Entry:
    return Entry(git_oid("blob", content), len(content), content)


def is_large(path: str, size: int) -> bool:
    return size > LARGE_SIZE or path.rpartition(".")[2].lower() in LARGE_SUFFIXES


def git_oid(kind: str, content: bytes) -> str:
    return hashlib.sha1(b"%s %d\0" % (kind.encode(), len(content)) + content).hexdigest()


def _trees(files: dict[str, Entry]) -> dict[str, str]:
    """The Git ids of the tree objects of all folders."""
    below: dict[str, dict[str, str]] = {"": {}}
    for path, entry in files.items():
        folder, _, name = path.rpartition("/")
        below.setdefault(folder, {})[name] = entry.oid
        while folder:
            folder = folder.rpartition("/")[0]
            below.setdefault(folder, {})
    oids: dict[str, str] = {}
    for folder in sorted(below, key=lambda name: name.count("/") + bool(name), reverse=True):
        children = {name: (b"100644", oid) for name, oid in below[folder].items()}
        depth = f"{folder}/" if folder else ""
        for other, oid in oids.items():
            if other.startswith(depth) and "/" not in other[len(depth) :]:
                children[other[len(depth) :]] = (b"40000", oid)
        # Git sorts a folder's name as if it ended with a slash.
        in_order = sorted(children, key=lambda name: f"{name}/" if children[name][0] == b"40000" else name)
        lines = [b"%s %s\0%s" % (children[n][0], n.encode(), bytes.fromhex(children[n][1])) for n in in_order]
        oids[folder] = git_oid("tree", b"".join(lines))
    return oids


def _commit_oid(tree: str, parent: str | None, message: str, author: str, seconds: int) -> str:
    lines = [f"tree {tree}", *([f"parent {parent}"] if parent else [])]
    lines += [f"{role} {author} <{author}@users.noreply> {seconds} +0000" for role in ("author", "committer")]
    return git_oid("commit", ("\n".join(lines) + f"\n\n{message}\n").encode())
