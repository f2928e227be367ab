"""The listener of the Hub: accounts, repositories, trees, commits, uploads and downloads."""

import base64
import binascii
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode

import yaml

from hub_server.connection import Answer, Handler, json_answer
from hub_server.store import KINDS, MAIN, Commit, Entry, HubError, Repository, User, is_large, small_entry

_PREFIXES = {"": "model", "datasets/": "dataset", "spaces/": "space"}
_RESOLVE = re.compile(r"/(datasets/|spaces/|)([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_BATCH = re.compile(r"/(datasets/|spaces/|)([^/]+/[^/]+)\.git/info/lfs/objects/batch")
_REPOSITORY = re.compile(r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/(.+))?")


class ApiHandler(Handler):
    listener = "hub"

    def answer(self) -> Answer:
        self.user: User | None = self.hub.store.user_of(self.headers.get("Authorization"))
        if match := _RESOLVE.fullmatch(self.raw_path):
            prefix, id, revision, path = match.groups()
            return self._resolve(self._repository(_PREFIXES[prefix], id), unquote(revision), unquote(path))
        if match := _BATCH.fullmatch(self.raw_path):
            return self._batch(self._repository(_PREFIXES[match[1]], match[2], write=True))
        plain: dict[str, Callable[[], Answer]] = {
            "GET /api/whoami-v2": self._whoami,
            "POST /api/validate-yaml": self._validate_yaml,
            "POST /api/repos/create": self._create,
            "DELETE /api/repos/delete": self._delete,
            "POST /api/repos/move": self._move,
            "POST /api/lfs/verify": self._verify,
            "POST /api/lfs/complete": self._complete,
        }
        if found := plain.get(f"{self.command} {self.raw_path}"):
            return found()
        if match := _REPOSITORY.fullmatch(self.raw_path):
            return self._of_repository(match[1], match[2], match[3] or "")
        raise HubError(404, f"There is no {self.command} {self.raw_path}")

    def _of_repository(self, kind: str, id: str, rest: str) -> Answer:
        verb, _, argument = rest.partition("/")
        first, _, below = argument.partition("/")
        first, below = unquote(first), unquote(below)
        reads: dict[str, Callable[[Repository], Answer]] = {
            "GET ": lambda it: json_answer(self._info(it, it.commit_of(MAIN))),
            "GET revision": lambda it: json_answer(self._info(it, it.commit_of(first))),
            "GET tree": lambda it: self._tree(it, first, below),
            "POST paths-info": lambda it: self._paths_info(it.commit_of(first)),
            "GET refs": self._refs,
            "GET discussions": self._discussions,
            "GET commits": lambda it: json_answer([_described(commit) for commit in it.history(first)]),
        }
        writes: dict[str, Callable[[Repository], Answer]] = {
            "POST preupload": lambda it: self._preupload(it, first),
            "POST commit": lambda it: self._commit(it, first),
            "POST branch": lambda it: self._add_branch(it, unquote(argument)),
            "DELETE branch": lambda it: self._delete_branch(it, unquote(argument)),
            "POST tag": lambda it: self._add_tag(it, unquote(argument)),
            "DELETE tag": lambda it: self._delete_tag(it, unquote(argument)),
            "PUT settings": self._settings,
        }
        what = f"{self.command} {verb}"
        if what == "GET auth-check":
            self._repository(kind, id, write=argument == "write")
            return json_answer({})
        if what in reads:
            return reads[what](self._repository(kind, id))
        if what in writes:
            with self.hub.store.lock:
                return writes[what](self._repository(kind, id, write=True))
        raise HubError(404, f"There is no {self.command} {self.raw_path}")

    def _repository(self, kind: str, id: str, write: bool = False) -> Repository:
        return self.hub.store.repository(kind, id, self.user, write)

    @property
    def _json(self) -> dict[str, Any]:
        return json.loads(self.body or b"{}")

    # Accounts and repositories

    def _whoami(self) -> Answer:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        token = {"displayName": "test", "role": "write" if self.user.may_write else "read"}
        organizations = [{"type": "org", "name": name} for name in self.user.organizations]
        return json_answer(
            {
                "type": "user",
                "name": self.user.name,
                "orgs": organizations,
                "auth": {"type": "access_token", "accessToken": token},
            }
        )

    def _validate_yaml(self) -> Answer:
        match = re.match(r"---\r?\n(.*?\n)---", self._json["content"], re.DOTALL)
        if match is None:
            return json_answer({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        try:
            yaml.safe_load(match[1])
        except yaml.YAMLError as error:
            message = str(error).splitlines()[0]
            return json_answer({"errors": [{"message": message}], "warnings": []}, status=400)
        return json_answer({"errors": [], "warnings": []})

    def _named(self) -> tuple[str, str]:
        """The kind and the full id of the repository in a request; without a namespace it is the user's."""
        asked = self._json
        kind = asked.get("type") or "model"
        if kind not in KINDS:
            raise HubError(400, f"{kind!r} is not a kind of repository")
        namespace = asked.get("organization") or (self.user.name if self.user else "")
        self.hub.store.require_writer(namespace, self.user)
        return kind, f"{namespace}/{asked['name']}"

    def _create(self) -> Answer:
        kind, id = self._named()
        asked = self._json
        private = asked.get("private", asked.get("visibility") == "private")
        url = f"{self.hub.endpoint}/{_prefix(kind)}{id}"
        try:
            self.hub.store.create(kind, id, bool(private), asked.get("sdk"))
        except HubError as error:
            if error.status != 409:
                raise
            return json_answer({"error": error.message, "url": url}, {"X-Error-Message": error.message}, 409)
        return json_answer({"url": url, "name": id, "id": id})

    def _delete(self) -> Answer:
        kind, id = self._named()
        self._repository(kind, id, write=True)
        del self.hub.store.repositories[kind, id]
        return Answer(b"OK")

    def _move(self) -> Answer:
        asked, store = self._json, self.hub.store
        kind = asked.get("type") or "model"
        with store.lock:
            moved = self._repository(kind, asked["fromRepo"], write=True)
            store.require_writer(asked["toRepo"].partition("/")[0], self.user)
            if (kind, asked["toRepo"]) in store.repositories:
                raise HubError(409, f"There is a {kind} {asked['toRepo']} already")
            del store.repositories[kind, moved.id]
            moved.id = asked["toRepo"]
            store.repositories[kind, moved.id] = moved
        return json_answer({})

    def _settings(self, repository: Repository) -> Answer:
        asked = self._json
        if "visibility" in asked or "private" in asked:
            repository.private = asked.get("private", asked.get("visibility") == "private")
        if "gated" in asked:
            repository.gated = bool(asked["gated"])
        return json_answer({"private": repository.private, "gated": repository.gated})

    def _info(self, repository: Repository, commit: Commit) -> dict[str, Any]:
        with_blobs = self.query.get("blobs", ["false"])[0].lower() == "true"
        siblings = []
        for path, entry in sorted(commit.files.items()):
            sibling: dict[str, Any] = {"rfilename": path}
            if with_blobs:
                sibling |= {"size": entry.size, "blobId": entry.oid}
                if entry.sha256:
                    sibling["lfs"] = {"size": entry.size, "sha256": entry.sha256, "pointerSize": entry.pointer_size}
            siblings.append(sibling)
        first = repository.history(MAIN)[-1]
        return {
            "_id": repository.id,
            "id": repository.id,
            "author": repository.namespace,
            "sha": commit.oid,
            "lastModified": commit.date,
            "createdAt": first.date,
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
        } | ({"sdk": repository.sdk} if repository.kind == "space" else {})

    def _refs(self, repository: Repository) -> Answer:
        def refs(named: dict[str, str], folder: str) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": oid} for n, oid in sorted(named.items())]

        named = {name: oid for name, oid in repository.branches.items() if not name.startswith("refs/")}
        branches = refs(named, "heads")
        return json_answer({"branches": branches, "converts": [], "tags": refs(repository.tags, "tags")})

    def _discussions(self, repository: Repository) -> Answer:
        shown = {"createdAt": repository.commit_of(MAIN).date, "isPullRequest": True, "status": "open"}
        shown["repo"] = {"name": repository.id, "type": repository.kind}
        numbered = [{**asdict(request), "num": number} for number, request in enumerate(repository.requests, start=1)]
        found = [{**each, **shown, "author": {"name": each["author"]}} for each in numbered]
        return json_answer({"discussions": found, "count": len(found), "start": 0})

    def _add_branch(self, repository: Repository, name: str) -> Answer:
        if name in repository.branches:
            raise HubError(409, f"There is a branch {name} already")
        repository.branches[name] = repository.commit_of(self._json.get("startingPoint") or MAIN).oid
        return json_answer({}, status=201)

    def _delete_branch(self, repository: Repository, name: str) -> Answer:
        if name == MAIN:
            raise HubError(403, "The main branch cannot be deleted")
        if repository.branches.pop(name, None) is None:
            raise HubError(404, f"There is no branch {name}", "RevisionNotFound")
        return json_answer({})

    def _add_tag(self, repository: Repository, revision: str) -> Answer:
        if self._json["tag"] in repository.tags:
            raise HubError(409, f"There is a tag {self._json['tag']} already")
        repository.tags[self._json["tag"]] = repository.commit_of(revision).oid
        return json_answer({}, status=201)

    def _delete_tag(self, repository: Repository, name: str) -> Answer:
        if repository.tags.pop(name, None) is None:
            raise HubError(404, f"There is no tag {name}", "RevisionNotFound")
        return json_answer({})

    # Trees

    def _tree(self, repository: Repository, revision: str, folder: str) -> Answer:
        commit = repository.commit_of(revision)
        folders = commit.folders()
        if folder and folder not in folders and folder not in commit.files:
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        paths = sorted(path for path in {*folders, *commit.files} if path and _is_below(path, folder, recursive))
        start, size = int(self.query.get("cursor", ["0"])[0]), self.hub.page_size
        headers = {}
        if start + size < len(paths):
            query = {name: values[0] for name, values in self.query.items()} | {"cursor": start + size}
            headers["Link"] = f'<{self.hub.endpoint}{self.raw_path}?{urlencode(query)}>; rel="next"'
        return json_answer([_node(path, commit, folders) for path in paths[start : start + size]], headers)

    def _paths_info(self, commit: Commit) -> Answer:
        if "json" in self.headers.get("Content-Type", ""):
            wanted = self._json["paths"]
        else:
            wanted = parse_qs(self.body.decode()).get("paths", [])
        folders = commit.folders()
        return json_answer([_node(p, commit, folders) for p in wanted if p and (p in commit.files or p in folders)])

    # Uploads and commits

    def _preupload(self, repository: Repository, revision: str) -> Answer:
        commit = repository.commit_of(revision)
        files = []
        for asked in self._json["files"]:
            entry = commit.files.get(asked["path"])
            mode = "lfs" if is_large(asked["path"], asked["size"]) else "regular"
            oid = entry.etag if entry else None
            files.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return json_answer({"files": files})

    def _batch(self, repository: Repository) -> Answer:
        asked, objects = self._json, []
        for wanted in asked["objects"]:
            answer: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.store.objects:
                answer["authenticated"] = True
                answer["actions"] = {
                    "upload": self._upload(wanted["oid"], wanted["size"], "multipart" in asked.get("transfers", [])),
                    "verify": {"href": f"{self.hub.endpoint}/api/lfs/verify"},
                }
            objects.append(answer)
        return json_answer({"transfer": "basic", "objects": objects})

    def _upload(self, sha256: str, size: int, may_part: bool) -> dict[str, Any]:
        signer, part = self.hub.signer, self.hub.multipart_size
        if not (may_part and part and size > part):
            return {"href": signer.address(self.hub.storage, "PUT", f"/objects/{sha256}")}
        upload = secrets.token_hex(8)
        self.hub.store.uploads[upload] = {}
        header = {"chunk_size": str(part)}
        for number in range(1, -(-size // part) + 1):
            header[f"{number:05d}"] = signer.address(self.hub.storage, "PUT", f"/uploads/{upload}/{number}")
        return {"href": f"{self.hub.endpoint}/api/lfs/complete?{urlencode({'upload': upload})}", "header": header}

    def _complete(self) -> Answer:
        parts = self.hub.store.uploads.pop(self.query["upload"][0], None)
        asked = self._json
        if parts is None or [part["partNumber"] for part in asked["parts"]] != sorted(parts):
            raise HubError(400, "InvalidPart: parts of the upload are missing")
        self.hub.store.put_object(asked["oid"], b"".join(parts[number] for number in sorted(parts)))
        return json_answer({})

    def _verify(self) -> Answer:
        asked = self._json
        if len(self.hub.store.objects.get(asked["oid"], b"")) != asked["size"]:
            raise HubError(400, "The object is missing or has another size")
        return json_answer({"message": "ok"})

    def _commit(self, repository: Repository, branch: str) -> Answer:
        if branch not in repository.branches:
            repository.commit_of(branch)  # error for a missing repository
            raise HubError(400, f"{branch} is not a branch and cannot be committed to")
        head = repository.commit_of(branch)
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, head.oid):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines:
            if line["key"] != "header":
                self._change(files, line["key"], line["value"])
        target, answer = branch, {}
        if self.query.get("create_pr", ["0"])[0] == "1":
            number = 1 + sum(name.startswith("refs/pr/") for name in repository.branches)
            target = f"refs/pr/{number}"
            repository.branches[target] = head.oid
            answer["pullRequestUrl"] = (
                f"{self.hub.endpoint}/{_prefix(repository.kind)}{repository.id}/discussions/{number}"
            )
        commit = repository.add_commit(target, files, header["summary"], header.get("description", ""), self.user.name)
        url = f"{self.hub.endpoint}/{_prefix(repository.kind)}{repository.id}/commit/{commit.oid}"
        return json_answer({"success": True, "commitOid": commit.oid, "commitUrl": url} | answer)

    def _change(self, files: dict[str, Entry], what: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if what == "file":
            try:
                files[path] = small_entry(base64.b64decode(value["content"], validate=True))
            except binascii.Error as error:
                raise HubError(400, f"{path}: the content is not base64") from error
        elif what == "lfsFile":
            files[path] = self.hub.store.large_entry(value["oid"])
        elif what == "deletedFile" and path in files:
            del files[path]
        elif what == "deletedFolder" and any(name.startswith(f"{path.rstrip('/')}/") for name in files):
            for name in [name for name in files if name.startswith(f"{path.rstrip('/')}/")]:
                del files[name]
        elif what in ("deletedFile", "deletedFolder"):
            raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
        else:
            raise HubError(400, f"{what!r} is not a commit operation")

    # Downloads

    def _resolve(self, repository: Repository, revision: str, path: str) -> Answer:
        if repository.gated and not (self.user and self.user.owns(repository.namespace)):
            raise HubError(401 if self.user is None else 403, f"Access to {repository.id} is restricted", "GatedRepo")
        commit = repository.commit_of(revision)
        headers = {"X-Repo-Commit": commit.oid}
        entry = commit.files.get(path)
        if entry is None:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        if entry.sha256 is None:
            return Answer(entry.content, headers=headers | {"ETag": f'"{entry.oid}"'}, ranges=True)
        headers |= {
            "X-Linked-Etag": f'"{entry.sha256}"',
            "X-Linked-Size": str(entry.size),
            "Location": self.hub.signer.address(self.hub.storage, "GET", f"/objects/{entry.sha256}"),
        }
        return Answer(status=302, headers=headers)


def _prefix(kind: str) -> str:
    return "" if kind == "model" else f"{kind}s/"


def _is_below(path: str, folder: str, recursive: bool) -> bool:
    if folder and not path.startswith(f"{folder}/"):
        return False
    rest = path[len(folder) + 1 :] if folder else path
    return recursive or "/" not in rest


def _node(path: str, commit: Commit, folders: dict[str, str]) -> dict[str, Any]:
    entry = commit.files.get(path)
    if entry is None:
        return {"type": "directory", "oid": folders[path], "size": 0, "path": path}
    node: dict[str, Any] = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
    if entry.sha256:
        node["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
    return node


def _described(commit: Commit) -> dict[str, Any]:
    return {
        "id": commit.oid,
        "title": commit.title,
        "message": commit.message,
        "date": commit.date,
        "authors": [{"user": commit.author}],
    }
