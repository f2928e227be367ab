"""Files onto the Hub, in one commit: whole or not at all, and what was sent is not sent again.

Large files are stored on the Hub under the digest of their content before any commit names them. So they go first, in
any number of attempts, and the Hub says which of them it has; then one commit makes all of them visible, on top of the
state that was found at the beginning. `upload_large_folder` and `Dataset.push_to_hub` commit as they go, so that a
reader, or whoever's push breaks off, may find half of a data set.
"""

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from cmfah_hf.errors import HubError

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

logger = logging.getLogger(__name__)

MAIN = "main"
# Files whose addresses are asked for at once: what the Hub has signed for uploading is good for some time only.
_FILES_AT_ONCE = 64
# Seconds before each further attempt of a request that the client does not repeat by itself.
_WAITS = (1, 2, 4, 8)
_PASSING_STATUSES = (408, 429, 500, 502, 503, 504)

T = TypeVar("T")


@dataclass(frozen=True)
class Published:
    """A repository of the Hub as a push has left it.

    Args:
        repo_id: `owner/name`.
        url: Its page.
        revision: The branch.
        commit: The id of the commit that holds what was pushed.
        changed: False where the Hub had all of it already.
        private: Whether only its owners see it.
        files: What was pushed, by their paths in the repository.
        size: Their bytes.
    """

    repo_id: str
    url: str
    revision: str
    commit: str
    changed: bool
    private: bool
    files: tuple[str, ...]
    size: int


def check_target(repo_id: str, token: str | None = None) -> str:
    """Refuse an id that no repository can have, and a missing token, before anything is read or sent.

    Returns:
        The token: the one given, else that of `HF_TOKEN` or of `hf auth login`.

    Raises:
        HubError: If the id is not `owner/name`, or there is no token.
    """
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError("the owner is missing")
    except HFValidationError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise HubError(f"{repo_id!r} cannot be a repository's id ({reason}); give owner/name.") from error
    token = token or get_token()
    if not token:
        raise HubError("There is no token for the Hub; log in with `hf auth login`, or set HF_TOKEN.")
    return token


def make_repository(repo_id: str, kind: str, private: bool = False, token: str | None = None) -> str:
    """Create a repository, if it is not there, and see that the token may write.

    Args:
        repo_id: `owner/name`.
        kind: `model`, `dataset` or `space`.
        private: Whether it is to be private. A repository that is there already keeps what it is.
        token: Default: that of `HF_TOKEN` or of `hf auth login`.

    Returns:
        Its address.

    Raises:
        HubError: In one line, if the Hub refuses it or cannot be reached, or it is to be private and is public.
    """
    from huggingface_hub import HfApi

    token = check_target(repo_id, token)
    with _told_in_one_line(repo_id, MAIN, token):
        url, _ = _repository(HfApi(token=token), repo_id, kind, private)
    return url


def _repository(api: "HfApi", repo_id: str, kind: str, private: bool) -> tuple[str, bool]:
    """The address of a repository, which is created if needed, and whether it is private."""
    sdk = "gradio" if kind == "space" else None
    url = _patiently(
        lambda: api.create_repo(repo_id, repo_type=kind, private=private or None, exist_ok=True, space_sdk=sdk)
    )
    is_private = bool(_patiently(lambda: api.repo_info(repo_id, repo_type=kind)).private)
    if private and not is_private:
        raise HubError(
            f"{repo_id} is there already and public; make it private in its settings, or push without --private."
        )
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
    progress: bool = True,
) -> Published:
    """Make these files the state of a repository, in one commit; the repository is created if needed.

    Args:
        files: Local files by their path in the repository.
        repo_id: `owner/name`.
        kind: `model`, `dataset` or `space`.
        message: The commit's title.
        private: Whether it is to be private. A repository that is there already keeps what it is.
        token: Default: that of `HF_TOKEN` or of `hf auth login`.
        revision: The branch, created from the main one if needed.
        replaces: Which files of the repository go where they are not among `files`; all others stay.
        progress: Show a bar for each file that is being sent.

    Raises:
        HubError: In one line, if the Hub refuses it, cannot be reached, or holds another commit than at the beginning.
            Nothing is visible then that was not before; what was sent stays on the Hub, so the same call goes on.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    token = check_target(repo_id, token)
    api = HfApi(token=token)
    branch = revision or MAIN
    with _told_in_one_line(repo_id, branch, token), _bars(progress):
        url, is_private = _repository(api, repo_id, kind, private)
        if revision:
            _patiently(lambda: api.create_branch(repo_id, branch=branch, repo_type=kind, exist_ok=True))
        head = _patiently(lambda: api.repo_info(repo_id, repo_type=kind, revision=branch)).sha
        additions = [CommitOperationAdd(path, file) for path, file in sorted(files.items())]
        for start in range(0, len(additions), _FILES_AT_ONCE):
            batch = additions[start : start + _FILES_AT_ONCE]
            api.preupload_lfs_files(repo_id, batch, repo_type=kind, revision=branch)
        commit = _commit(api, repo_id, kind, branch, head, additions, message, replaces)
    size = sum(file.stat().st_size for file in files.values())
    return Published(repo_id, url, branch, commit, commit != head, is_private, tuple(sorted(files)), size)


@contextmanager
def staging(parent: Path, source: str, repo_id: str) -> Iterator[Path]:
    """An empty folder to make a push ready in, for as long as the context lasts.

    There is one for each source and target, so what a killed push left there is found, and made anew.

    Raises:
        HubError: If another process is pushing the same to the same place.
    """
    from filelock import FileLock, Timeout

    name = hashlib.blake2b(f"{Path(source).absolute()} {repo_id}".encode(), digest_size=8).hexdigest()
    folder = parent / name
    parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{folder}.lock", timeout=0):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except Timeout:
        raise HubError(f"{source}: another process is pushing it to {repo_id}; wait for its end.") from None


def _commit(
    api: "HfApi",
    repo_id: str,
    kind: str,
    branch: str,
    head: str,
    additions: list["CommitOperationAdd"],
    message: str,
    replaces: Callable[[str], bool],
) -> str:
    """The id of the commit, on top of `head`; also if the Hub made it and its answer got lost."""
    from huggingface_hub import CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError

    ours = {addition.path_in_repo for addition in additions}

    def stale(commit: str) -> list[str]:
        tree = api.list_repo_tree(repo_id, recursive=True, repo_type=kind, revision=commit)
        return [
            node.path for node in tree if hasattr(node, "blob_id") and node.path not in ours and replaces(node.path)
        ]

    deletions = [CommitOperationDelete(path, is_folder=False) for path in stale(head)]
    try:
        return _patiently(
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
        now = _patiently(lambda: api.repo_info(repo_id, repo_type=kind, revision=branch)).sha
        if _holds(api, repo_id, kind, now, additions) and not stale(now):
            return now
        raise


def _holds(api: "HfApi", repo_id: str, kind: str, commit: str, additions: list["CommitOperationAdd"]) -> bool:
    """Whether a commit has all files that are to be added, with the same content."""
    import hashlib

    tree = api.list_repo_tree(repo_id, recursive=True, repo_type=kind, revision=commit)
    there = {node.path: node for node in tree if hasattr(node, "blob_id")}
    for addition in additions:
        node = there.get(addition.path_in_repo)
        if node is None or node.size != addition.upload_info.size:
            return False
        if node.lfs is not None:
            same = node.lfs.sha256 == addition.upload_info.sha256.hex()
        else:
            with addition.as_file() as file:
                content = file.read()
            same = node.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if not same:
            return False
    return True


def _patiently(ask: Callable[[], T]) -> T:
    """What `ask()` gives; asked again where the Hub is busy or the connection breaks.

    The client does so by itself for uploads and downloads, and not for the other requests.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    for wait in _WAITS:
        try:
            return ask()
        except OfflineModeIsEnabled:
            raise
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code not in _PASSING_STATUSES:
                raise
            logger.warning("The Hub did not answer (%s); asking again in %d s.", _reason(error), wait)
        time.sleep(wait)
    return ask()


@contextmanager
def _told_in_one_line(repo_id: str, branch: str, token: str) -> Iterator[None]:
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except HubError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        _refuse(error, repo_id, branch, token)


def _refuse(error: Exception, repo_id: str, branch: str, token: str) -> NoReturn:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    root: BaseException = error
    while root.__cause__ is not None and not isinstance(root, HfHubHTTPError):
        root = root.__cause__
    status = root.response.status_code if isinstance(root, HfHubHTTPError) else None
    code = root.response.headers.get("X-Error-Code") if isinstance(root, HfHubHTTPError) else None
    known = {
        401: "the Hub does not know the token; log in again with `hf auth login`, or correct HF_TOKEN.",
        403: "the token may not write there; take one that may write, of an owner or of a member of the organisation.",
        404: "there is no such repository that the token may see; check the id.",
        412: f"somebody else has changed {branch} while this push was under way, and nothing of it was published; "
        "look at what is there, then push again: what was sent is not sent again.",
    }
    if isinstance(root, OfflineModeIsEnabled):
        message = "the environment variable HF_HUB_OFFLINE forbids to ask the Hub; unset it."
    elif code == "RevisionNotFound":
        message = f"there is no branch {branch!r}; name another, or none for the main one."
    elif status in known:
        message = known[status]
    else:
        message = f"it could not be published ({_reason(root)}); push again to go on: what was sent is not sent again."
    raise HubError(f"{repo_id}: {message}".replace(token, "***")) from error


def _reason(error: BaseException) -> str:
    """What went wrong, without addresses: those of uploads are signed, and are as good as a password for a while."""
    response: Any = getattr(error, "response", None)
    if response is not None:
        said = getattr(error, "server_message", None)
        return f"HTTP {response.status_code} {response.reason_phrase}" + (f": {said}" if said else "")
    said = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {said}" if said and "://" not in said else type(error).__name__


@contextmanager
def _bars(progress: bool) -> Iterator[None]:
    """The client's own bars, or none within this context."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if progress or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
