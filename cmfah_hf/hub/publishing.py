"""Atomic, resumable pushes to the Hub: one commit for all files of a repository.

The Hub stores large files by content digest before a commit references them. So large files are uploaded first, in as
many attempts as needed (the Hub reports those it has), and then one commit, whose parent is the state found at the
beginning, makes everything visible. `upload_large_folder` and `Dataset.push_to_hub` commit repeatedly, so readers, and
interrupted pushes, can see half a data set.
"""

import contextlib
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cmfah_hf.atomic import locked
from cmfah_hf.data.dataset_card import CARD_NAME
from cmfah_hf.errors import CMFAHError, HubError
from cmfah_hf.hub.cards import SEPARATE_NAME
from cmfah_hf.hub.records import Plan, digests_of, is_same, plan
from cmfah_hf.hub_access import hub_errors, hub_failure

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

MAIN = "main"
# Files per request for upload addresses, whose signatures expire.
_FILES_AT_ONCE = 64
# Seconds before each retry of a request that the client does not retry itself.
_WAITS = (1, 2, 4, 8)
# Maximum bytes of a card or a record on the Hub.
_LARGEST_TEXT = 16 * 2**20
_STAGE = re.compile(r"\.?([0-9a-f]{16})(\.lock)?")

T = TypeVar("T")


@dataclass(frozen=True)
class Published:
    """A repository on the Hub after a push.

    Args:
        repo_id: `owner/name`.
        url: Its page.
        revision: The branch.
        commit: The id of the commit with the pushed files.
        changed: False if the Hub had all of it already.
        private: True if only its owners can see it.
        files: Pushed files, by their paths in the repository.
        size: Their total size in bytes.
        kept: Files that were edited on the Hub and stayed unchanged.
    """

    repo_id: str
    url: str
    revision: str
    commit: str
    changed: bool
    private: bool
    files: tuple[str, ...]
    size: int
    kept: tuple[str, ...]

    @property
    def remarks(self) -> list[str]:
        """One line per file that was kept."""
        lines = [f"Kept {path}, which was edited on the Hub." for path in self.kept if path != CARD_NAME]
        if CARD_NAME in self.kept:
            where = f"; the card of this push is in {SEPARATE_NAME}" if SEPARATE_NAME in self.files else ""
            lines.append(f"Kept the text of {CARD_NAME}, which was written on the Hub{where}.")
        return lines


def check_target(repo_id: str, token: str | None = None) -> str:
    """Checks the repository id and the token before anything is read or sent.

    Returns the token: the given one, else that of `HF_TOKEN` or `hf auth login`.
    """
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError("the owner is missing")
    except HFValidationError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise HubError(f"{repo_id!r} is not a valid repository id ({reason}); give owner/name.") from error
    token = token or get_token()
    if not token:
        raise HubError("No token for the Hub; log in with `hf auth login`, or set HF_TOKEN.")
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise HubError("The token for the Hub contains invalid characters; correct HF_TOKEN, or log in again.")
    return token


def make_repository(repo_id: str, kind: str, private: bool = False, token: str | None = None) -> str:
    """Creates a repository of a kind if needed, which shows that the token may write, and returns its address.

    An existing one keeps its visibility; one that is public, not `private`, is an error.
    """
    from huggingface_hub import HfApi

    token = check_target(repo_id, token)
    with _hub_errors(repo_id, MAIN, token):
        url, _ = _repository(HfApi(token=token), repo_id, kind, private)
    return url


def _repository(api: "HfApi", repo_id: str, kind: str, private: bool) -> tuple[str, bool]:
    """The URL of a repository, created if needed, and whether it is private."""
    sdk = "gradio" if kind == "space" else None
    url = _with_retries(
        lambda: api.create_repo(repo_id, repo_type=kind, private=private or None, exist_ok=True, space_sdk=sdk)
    )
    is_private = bool(_with_retries(lambda: api.repo_info(repo_id, repo_type=kind)).private)
    if private and not is_private:
        raise HubError(f"{repo_id} exists and is public; make it private in its settings, or push without --private.")
    return str(url), is_private


def publish(
    files: Mapping[str, Path],
    repo_id: str,
    kind: str,
    message: str,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    replaces: Callable[[str], bool] = lambda path: False,
    may_stay: Collection[str] = (),
    required: Collection[str] = (),
    overwrite: bool = False,
    progress: bool = True,
) -> Published:
    """Makes these files the state of a repository, in one commit; creates the repository if needed.

    Files edited on the Hub since the last push are not replaced. An edited card stays, with the pushed section merged
    into it or written next to it.

    Args:
        files: Local files by their path in the repository.
        repo_id: `owner/name`.
        kind: `model`, `dataset` or `space`.
        message: Title of the commit.
        private: Create a private repository. An existing one keeps its visibility.
        token: Default: the token of `HF_TOKEN` or `hf auth login`.
        revision: The branch; created from main if needed.
        replaces: Selects files to remove from a repository without a record of pushes. With a record, its files
            that are not among `files` are removed.
        may_stay: Paths whose edited version works with everything else that is pushed.
        required: Keys of the card's metadata that readers of the repository depend on.
        overwrite: Also replace edited files.
        progress: Show upload progress bars.

    Raises:
        HubError: If the Hub refuses or cannot be reached, the branch moved meanwhile, or an edited file conflicts.
            Nothing is visible then that was not before; uploads stay on the Hub, so the same call resumes.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    token = check_target(repo_id, token)
    api = HfApi(token=token)
    branch = revision or MAIN
    with _hub_errors(repo_id, branch, token), _bars(progress):
        url, is_private = _repository(api, repo_id, kind, private)
        if revision:
            _with_retries(lambda: api.create_branch(repo_id, branch=branch, repo_type=kind, exist_ok=True))
        head = _head(api, repo_id, kind, branch)
        steps = plan(
            repo_id,
            files,
            _tree(api, repo_id, kind, head),
            lambda path: _with_retries(lambda: _read(api, repo_id, kind, head, path)),
            replaces,
            may_stay,
            required,
            overwrite,
        )
        additions = [CommitOperationAdd(path, content) for path, content in sorted(steps.add.items())]
        for start in range(0, len(additions), _FILES_AT_ONCE):
            batch = additions[start : start + _FILES_AT_ONCE]
            api.preupload_lfs_files(repo_id, batch, repo_type=kind, revision=branch)
        commit = _commit(api, repo_id, kind, branch, head, additions, steps, message)
    size = sum(addition.upload_info.size for addition in additions)
    pushed = tuple(sorted(steps.add))
    return Published(repo_id, url, branch, commit, commit != head, is_private, pushed, size, tuple(steps.kept))


@contextmanager
def staging(parent: Path, source: str, repo_id: str) -> Iterator[Path]:
    """An empty folder to prepare a push in, one per source and target, for the duration of the context.

    Leftovers of killed pushes next to it are removed. If another process is pushing the same, that is a `HubError`.
    """
    name = hashlib.blake2b(f"{Path(source).absolute()} {repo_id}".encode(), digest_size=8).hexdigest()
    folder = parent / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        left = {match[1] for path in parent.iterdir() if (match := _STAGE.fullmatch(path.name))}
    except OSError as error:
        raise HubError(f"{source}: cannot be prepared in {parent} ({error.strerror}); free space there.") from error
    for other in left - {name}:
        with contextlib.suppress(_BusyError), locked(parent / other, _BusyError, timeout_s=0):
            shutil.rmtree(parent / other, ignore_errors=True)
    try:
        with locked(folder, _BusyError, timeout_s=0):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except _BusyError as error:
        if error.__cause__ is not None:
            raise HubError(f"{source}: cannot be prepared in {parent} ({error.__cause__}).") from error
        raise HubError(f"{source}: another process is pushing it to {repo_id}; wait until it has finished.") from None


class _BusyError(CMFAHError):
    """The lock of a staging folder is held or cannot be created."""


def _head(api: "HfApi", repo_id: str, kind: str, branch: str) -> str:
    """The last commit of a branch."""
    sha = _with_retries(lambda: api.repo_info(repo_id, repo_type=kind, revision=branch)).sha
    if sha is None:
        raise HubError(f"{repo_id}: the Hub reports no commit of {branch}; try again later.")
    return sha


def _tree(api: "HfApi", repo_id: str, kind: str, commit: str) -> dict[str, Any]:
    """The files of a commit, by their paths."""
    nodes = _with_retries(lambda: list(api.list_repo_tree(repo_id, recursive=True, repo_type=kind, revision=commit)))
    return {node.path: node for node in nodes if hasattr(node, "blob_id")}


def _read(api: "HfApi", repo_id: str, kind: str, commit: str, path: str) -> bytes:
    """The content of a small file on the Hub."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(repo_id, path, repo_type=kind, revision=commit, endpoint=api.endpoint)
    with get_session().stream("GET", url, headers=build_hf_headers(token=api.token)) as response:
        hf_raise_for_status(response)
        content = b""
        for part in response.iter_bytes():
            content += part
            if len(content) > _LARGEST_TEXT:
                raise HubError(f"{repo_id}: {path} on the Hub has more than {_LARGEST_TEXT:,} bytes; shorten it.")
    return content


def _commit(
    api: "HfApi",
    repo_id: str,
    kind: str,
    branch: str,
    head: str,
    additions: list["CommitOperationAdd"],
    steps: Plan,
    message: str,
) -> str:
    """The id of the new commit on top of `head`, also if the Hub made it and the reply got lost."""
    from huggingface_hub import CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError

    deletions = [CommitOperationDelete(path, is_folder=False) for path in steps.remove]
    try:
        return _with_retries(
            lambda: api.create_commit(
                repo_id,
                [*additions, *deletions],
                commit_message=message,
                repo_type=kind,
                revision=branch,
                parent_commit=head,
            )
        ).oid
    except HfHubHTTPError as error:
        if error.response.status_code != 412:
            raise
        now = _head(api, repo_id, kind, branch)
        there = _tree(api, repo_id, kind, now)
        made = all(path in there and is_same(digests_of(content), there[path]) for path, content in steps.add.items())
        if made and not there.keys() & set(steps.remove):
            return now
        raise


def _with_retries(request: Callable[[], T]) -> T:
    """Calls `request()`, with retries while the Hub is busy, which the client itself has only for transfers."""
    from huggingface_hub.errors import HfHubHTTPError

    from cmfah_hf.hub_requests import BUSY_STATUSES, TransportError

    for wait in _WAITS:
        try:
            return request()
        except (HfHubHTTPError, TransportError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code not in BUSY_STATUSES:
                raise
        time.sleep(wait)
    return request()


@contextmanager
def _hub_errors(repo_id: str, branch: str, token: str) -> Iterator[None]:
    """`hub_errors` with the messages of a push; also reports errors that the client raises without a request."""
    messages = {
        401: "the Hub rejects the token; log in again with `hf auth login`, or correct HF_TOKEN.",
        403: "the token may not write there; use a write token of the owner or of a member of the organization.",
        404: "the token sees no such repository; check the id.",
        412: f"somebody else changed {branch} during this push, and nothing was published; look at the changes, then "
        "push again: uploaded files are not sent again.",
    }
    again = "push again to resume: uploaded files are not sent again"
    with hub_errors(repo_id, token=token, writes=True, messages=messages, again=again):
        try:
            yield
        except CMFAHError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            if hub_failure(error) is not None:
                raise
            reason = " ".join(str(error).split()).replace(token, "***")
            raise HubError(f"{repo_id}: the push failed ({reason}); {again}.") from error


@contextmanager
def _bars(progress: bool) -> Iterator[None]:
    """The client's progress bars, or none in this context."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if progress or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
