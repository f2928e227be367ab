"""Files onto the Hub, in one commit: whole or not at all, and what was sent is not sent again.

Large files are stored on the Hub under the digest of their content before any commit names them. So they go first, in
any number of attempts, and the Hub says which of them it has; then one commit makes all of them visible, on top of the
state that was found at the beginning. `upload_large_folder` and `Dataset.push_to_hub` commit as they go, so that a
reader, or whoever's push breaks off, may find half of a data set.
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
from cmfah_hf.hub.cards import BESIDE_NAME
from cmfah_hf.hub.records import Plan, digests_of, is_same, plan
from cmfah_hf.hub_access import hub_errors, hub_failure

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

MAIN = "main"
# Files whose addresses are asked for at once: what the Hub has signed for uploading is good for some time only.
_FILES_AT_ONCE = 64
# Seconds before each further attempt of a request that the client does not repeat by itself.
_WAITS = (1, 2, 4, 8)
# Bytes of a card or a record on the Hub that are read.
_LARGEST_TEXT = 16 * 2**20
_STAGE = re.compile(r"\.?([0-9a-f]{16})(\.lock)?")

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
        kept: Files that somebody has changed on the Hub, and that stayed as they are there.
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
        """One line for each file that was kept."""
        lines = [
            f"Kept {path} as it is on the Hub: somebody has changed it." for path in self.kept if path != CARD_NAME
        ]
        if CARD_NAME in self.kept:
            where = f"; the card of this push is in {BESIDE_NAME}" if BESIDE_NAME in self.files else ""
            lines.append(f"Kept the text of {CARD_NAME} on the Hub, which somebody has written{where}.")
        return lines


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
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise HubError("The token for the Hub holds characters that no token has; correct HF_TOKEN, or log in again.")
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
    with _hub_errors(repo_id, MAIN, token):
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
    may_stay: Collection[str] = (),
    required: Collection[str] = (),
    overwrite: bool = False,
    progress: bool = True,
) -> Published:
    """Make these files the state of a repository, in one commit; the repository is created if needed.

    A file that somebody has changed on the Hub since the last push is not replaced. A card stays, with a push's part in
    it or next to it.

    Args:
        files: Local files by their path in the repository.
        repo_id: `owner/name`.
        kind: `model`, `dataset` or `space`.
        message: The commit's title.
        private: Whether it is to be private. A repository that is there already keeps what it is.
        token: Default: that of `HF_TOKEN` or of `hf auth login`.
        revision: The branch, created from the main one if needed.
        replaces: Which files of a repository without a record of pushes go where they are not among `files`; all
            others stay. With a record, those go that it names.
        may_stay: Files of which a person's version does with all others as they are pushed.
        required: Keys of a card's metadata without whose values the repository cannot be read.
        overwrite: Replace also what somebody has changed.
        progress: Show a bar for each file that is being sent.

    Raises:
        HubError: In one line, if the Hub refuses it, cannot be reached, or holds another commit than at the beginning,
            or if somebody has changed a file there that cannot stay. Nothing is visible then that was not before; what
            was sent stays on the Hub, so the same call goes on.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    token = check_target(repo_id, token)
    api = HfApi(token=token)
    branch = revision or MAIN
    with _hub_errors(repo_id, branch, token), _bars(progress):
        url, is_private = _repository(api, repo_id, kind, private)
        if revision:
            _patiently(lambda: api.create_branch(repo_id, branch=branch, repo_type=kind, exist_ok=True))
        head = _patiently(lambda: api.repo_info(repo_id, repo_type=kind, revision=branch)).sha
        steps = plan(
            repo_id,
            files,
            _tree(api, repo_id, kind, head),
            lambda path: _patiently(lambda: _read(api, repo_id, kind, head, path)),
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
    """An empty folder to make a push ready in, for as long as the context lasts.

    There is one for each source and target. What pushes that were killed left next to it is removed.

    Raises:
        HubError: If another process is pushing the same to the same place, or the folder cannot be made.
    """
    name = hashlib.blake2b(f"{Path(source).absolute()} {repo_id}".encode(), digest_size=8).hexdigest()
    folder = parent / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        left = {match[1] for path in parent.iterdir() if (match := _STAGE.fullmatch(path.name))}
    except OSError as error:
        raise HubError(f"{source}: cannot be made ready in {parent} ({error.strerror}); make room there.") from error
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
            raise HubError(f"{source}: cannot be made ready in {parent} ({error.__cause__}).") from error
        raise HubError(f"{source}: another process is pushing it to {repo_id}; wait for its end.") from None


class _BusyError(CMFAHError):
    """The lock of a staging folder is held, or cannot be made."""


def _tree(api: "HfApi", repo_id: str, kind: str, commit: str) -> dict[str, Any]:
    """The files of a commit, by their paths."""
    nodes = _patiently(lambda: list(api.list_repo_tree(repo_id, recursive=True, repo_type=kind, revision=commit)))
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
                raise HubError(f"{repo_id}: {path} there has more than {_LARGEST_TEXT:,} bytes; make it shorter.")
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
    """The id of the commit, on top of `head`; also if the Hub made it and its answer got lost."""
    from huggingface_hub import CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError

    deletions = [CommitOperationDelete(path, is_folder=False) for path in steps.remove]
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
        there = _tree(api, repo_id, kind, now)
        made = all(path in there and is_same(digests_of(content), there[path]) for path, content in steps.add.items())
        if made and not there.keys() & set(steps.remove):
            return now
        raise


def _patiently(ask: Callable[[], T]) -> T:
    """What `ask()` gives; asked again where the Hub is busy or the connection breaks.

    The client does so by itself for uploads and downloads, and not for the other requests.
    """
    from huggingface_hub.errors import HfHubHTTPError

    from cmfah_hf.hub_requests import BUSY_STATUSES, TransportError

    for wait in _WAITS:
        try:
            return ask()
        except (HfHubHTTPError, TransportError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code not in BUSY_STATUSES:
                raise
        time.sleep(wait)
    return ask()


@contextmanager
def _hub_errors(repo_id: str, branch: str, token: str) -> Iterator[None]:
    """`hub_errors` of a push; what the client refuses without a request is told in one line too."""
    messages = {
        401: "the Hub does not know the token; log in again with `hf auth login`, or correct HF_TOKEN.",
        403: "the token may not write there; take one that may write, of an owner or of a member of the organization.",
        404: "there is no such repository that the token may see; check the id.",
        412: f"somebody else has changed {branch} while this push was under way, and nothing of it was published; "
        "look at what is there, then push again: what was sent is not sent again.",
    }
    again = "push again to go on: what was sent is not sent again"
    with hub_errors(repo_id, token=token, writes=True, messages=messages, again=again):
        try:
            yield
        except CMFAHError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            if hub_failure(error) is not None:
                raise
            reason = " ".join(str(error).split()).replace(token, "***")
            raise HubError(f"{repo_id}: it could not be published ({reason}); {again}.") from error


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
