"""Failures of the Hub as this package's errors: one line each, after a bounded wait."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cmfah_hf.errors import (
    CMFAHError,
    HubAccessError,
    HubConnectionError,
    HubError,
    HubNotFoundError,
    HubServerError,
)


@contextmanager
def hub_errors(
    what: str,
    error: type[CMFAHError] | None = None,
    token: str | None = None,
    writes: bool = False,
    messages: Mapping[int, str] | None = None,
    again: str = "try again later",
) -> Iterator[None]:
    """Limits how long the requests to the Hub inside may take, and turns their failures into errors in one line.

    Errors of this package pass as they are. Loaders of other libraries may be called inside; their
    error is traced back to the Hub's (`from`), and one that did not come of the Hub passes as it is.

    Args:
        what: What the message begins with, such as the repository's id.
        error: The type to raise. None: one of `HubNotFoundError`, `HubAccessError`, `HubConnectionError`,
            `HubServerError`, or `HubError` for the rest.
        token: A token that no message may contain.
        writes: Whether something is sent: replies may take longer, and so may a Hub that is busy.
        messages: By HTTP status, what to say instead.
        again: What to do if the Hub fails or cannot be reached.

    Raises:
        HubNotFoundError: If there is no such repository, revision or file that the token may see.
        HubAccessError: If the token is unknown or may not do this.
        HubConnectionError: If there is no network, offline mode is set, or the Hub does not answer.
        HubServerError: If the Hub fails, is busy, or answers what it should not.
        HubError: If it refuses for another reason.
    """
    from huggingface_hub.errors import EntryNotFoundError

    from cmfah_hf.hub_requests import READING, WRITING, limited

    try:
        with limited(WRITING if writes else READING):
            yield
    except CMFAHError:
        raise
    # HTTP errors of the client are OSErrors or HTTPErrors; those that other libraries wrap them in are these too.
    except (_http_error(), EntryNotFoundError, OSError, RuntimeError, ValueError) as found:
        failure = hub_failure(found, messages, again)
        if failure is None:
            raise
        message = f"{what}: {failure}"
        message = message.replace(token, "***") if token else message
        raise (error or type(failure))(message) from found


def hub_file(
    repo_id: str, name: str, kind: str = "model", error: type[CMFAHError] | None = None, **options: Any
) -> str | None:
    """The path of a repository's file in the cache, where it is fetched to if needed.

    A file that is in the cache serves also where the Hub cannot be reached.

    Args:
        repo_id: `owner/name`.
        name: Of the file, with its folders.
        kind: `model`, `dataset` or `space`.
        error: As of `hub_errors`.
        **options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` or `subfolder` of
            `hf_hub_download`.

    Returns:
        None, if the repository has no such file; offline also, if it is not cached and other files of the revision are.

    Raises:
        HubError: As `hub_errors`, above all if there is no such repository or it cannot be reached.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    token = options.get("token")
    with hub_errors(repo_id, error, token if isinstance(token, str) else None):
        try:
            return hf_hub_download(repo_id, name, repo_type=kind, **options)
        except RemoteEntryNotFoundError:
            return None
        except LocalEntryNotFoundError:
            if not (options.get("local_files_only") or is_offline_mode()):
                raise
            where = {name: value for name, value in options.items() if name in ("revision", "cache_dir")}
            # Raises in its turn if nothing of this revision is cached.
            folder = snapshot_download(repo_id, repo_type=kind, local_files_only=True, **where)
            if any(Path(folder).iterdir()):
                return None
            raise


def hub_failure(
    error: BaseException, messages: Mapping[int, str] | None = None, again: str = "try again later"
) -> HubError | None:
    """The failure of the Hub that an exception is, or was raised from: its type, and a message without the subject.

    Args:
        error: Whatever a library has raised.
        messages: By HTTP status, what to say instead.
        again: What to do if the Hub fails or cannot be reached.

    Returns:
        None, if neither it nor what it was raised from came of a request to the Hub.
    """
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    from cmfah_hf.hub_replies import BadReplyError
    from cmfah_hf.hub_requests import BusyError, UnreachableError, reason_of

    found: BaseException | None = None
    for cause in _causes(error):
        if isinstance(cause, (HfHubHTTPError, OfflineModeIsEnabled, BadReplyError, BusyError, UnreachableError)):
            found = cause
            break
        if isinstance(cause, _http_error()):
            found = cause
    if found is None:
        return _without_request(error)
    if isinstance(found, HfHubHTTPError):
        return _refused(found, messages or {}, again)
    if isinstance(found, OfflineModeIsEnabled):
        return HubConnectionError(
            "the environment variable HF_HUB_OFFLINE forbids to ask the Hub, and it is not in the cache; unset it."
        )
    reason = reason_of(found)
    if isinstance(found, BusyError):
        return HubServerError(f"the Hub is failing or busy ({reason}); {again}.")
    if isinstance(found, BadReplyError):
        return HubServerError(
            f"the Hub answers what cannot be used ({reason}); check HF_ENDPOINT and any proxy, or {again}."
        )
    return HubConnectionError(
        f"there is no connection to the Hub ({reason}); check the network, HF_ENDPOINT and any proxy, then {again}."
    )


def _refused(error: Any, messages: Mapping[int, str], again: str) -> HubError:
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RevisionNotFoundError

    from cmfah_hf.hub_requests import BUSY_STATUSES, reason_of

    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return HubNotFoundError("there is no such revision; name another branch, tag or commit, or none for main.")
    if isinstance(error, RemoteEntryNotFoundError):
        return HubNotFoundError(f"there is no such file ({error.response.request.url.path.rpartition('/')[2]}).")
    if isinstance(error, GatedRepoError):
        return HubAccessError("it is gated; ask for access on its page, and log in with `hf auth login`.")
    kinds = {401: HubAccessError, 403: HubAccessError, 404: HubNotFoundError}
    if status in messages:
        return kinds.get(status, HubError)(messages[status])
    if status == 401 and error.response.headers.get("X-Error-Code") != "RepoNotFound" and _brought_token(error):
        return HubAccessError(
            "the Hub does not know the token; log in again with `hf auth login`, or correct HF_TOKEN."
        )
    if status in (401, 404):
        return HubNotFoundError(
            "there is no such repository on the Hub, or it is private and the token may not see it; check the id, and "
            "log in with `hf auth login`."
        )
    if status == 403:
        return HubAccessError("the token may not do this; take one of an owner or of a member of the organization.")
    if status in BUSY_STATUSES:
        return HubServerError(f"the Hub is failing or busy ({reason_of(error)}); {again}.")
    return HubError(f"the Hub refuses it ({reason_of(error)}).")


def _without_request(error: BaseException) -> HubError | None:
    """Failures that the client reports without a failed request."""
    from huggingface_hub.errors import FileMetadataError, HFValidationError, LocalEntryNotFoundError

    for cause in _causes(error):
        if isinstance(cause, FileMetadataError):
            return HubServerError("what answers there is no Hub; check HF_ENDPOINT and any proxy.")
        if type(cause) is OSError and cause.errno is None and str(cause).startswith("Consistency check failed"):
            return HubServerError("a file that was fetched has another size than the Hub said; try again later.")
        if isinstance(cause, HFValidationError):
            return HubNotFoundError("that cannot be a repository's id; give owner/name.")
        if isinstance(cause, LocalEntryNotFoundError) and cause.__cause__ is None:
            return HubConnectionError("it is not in the cache, and local_files_only forbids to ask the Hub.")
    return None


def _brought_token(error: Any) -> bool:
    return "authorization" in error.response.request.headers


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _http_error() -> type[Exception]:
    from huggingface_hub.errors import HTTPError

    return HTTPError
