"""Access to the Hub with bounded waits, and its failures as one-line errors of this package."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cmfah_hf.errors import CMFAHError, HubAccessError, HubConnectionError, HubError, HubNotFoundError, HubServerError


@contextmanager
def hub_errors(
    what: str,
    error: type[CMFAHError] | None = None,
    token: str | None = None,
    writes: bool = False,
    messages: Mapping[int, str] | None = None,
    again: str = "try again later",
    kind: str | None = "model",
) -> Iterator[None]:
    """Limits the duration of requests to the Hub inside, and turns their failures into one-line errors.

    Errors of this package pass unchanged. Loaders of other libraries may be called inside: their errors are traced back
    along `__cause__`, and those that do not originate from the Hub pass unchanged.

    Args:
        what: Beginning of the message, such as the repository's id.
        error: The type to raise. None: `HubNotFoundError`, `HubAccessError`, `HubConnectionError`, `HubServerError`, or
            `HubError` for the rest.
        token: A token to mask in messages.
        writes: True for uploads, which get longer limits.
        messages: Messages by HTTP status, instead of the default ones.
        again: Advice if the Hub fails or cannot be reached.
        kind: If `what` is a repository that is read, its type, such as `"dataset"`: without a connection, the message
            says how to get a folder of it. None: it does not.
    """
    from huggingface_hub.errors import EntryNotFoundError, HTTPError

    from cmfah_hf.hub_requests import READING, WRITING, limited

    try:
        with limited(WRITING if writes else READING):
            yield
    except CMFAHError:
        raise
    # The types of the client's errors, and of other libraries' errors that wrap them.
    except (HTTPError, EntryNotFoundError, OSError, RuntimeError, ValueError) as found:
        failure = hub_failure(found, messages, again)
        if failure is None:
            raise
        message = f"{what}: {failure}"
        if isinstance(failure, HubConnectionError) and kind is not None and not writes:
            message = f"{message} {folder_instead(what, kind)}"
        message = message.replace(token, "***") if token else message
        raise (error or type(failure))(message) from found


def hub_file(
    repo_id: str, name: str, kind: str = "model", error: type[CMFAHError] | None = None, **options: Any
) -> str | None:
    """The path of a repository's file in the cache, downloaded if need be; a cached one if the Hub cannot be reached.

    None if the repository has no such file, or offline, if other files of the revision are cached but not this one.
    `options` are `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` or `subfolder` of
    `hf_hub_download`; errors are those of `hub_errors`.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    token = options.get("token")
    with hub_errors(repo_id, error, token if isinstance(token, str) else None, kind=kind):
        try:
            return hf_hub_download(repo_id, name, repo_type=kind, **options)
        except RemoteEntryNotFoundError:
            return None
        except LocalEntryNotFoundError:
            if not (options.get("local_files_only") or is_offline_mode()):
                raise
            where = {name: value for name, value in options.items() if name in ("revision", "cache_dir")}
            # Raises if nothing of this revision is cached.
            folder = snapshot_download(repo_id, repo_type=kind, local_files_only=True, **where)
            if any(Path(folder).iterdir()):
                return None
            raise


def folder_instead(repo_id: str, kind: str = "model") -> str:
    """The advice to give a folder where the Hub cannot be reached, and how to make it."""
    name, _, revision = repo_id.partition("@")
    option = ("" if kind == "model" else f" --repo-type {kind}") + (f" --revision {revision}" if revision else "")
    return f"Or give a folder; where there is a network, `hf download {name}{option} --local-dir FOLDER` makes one."


def hub_failure(
    error: BaseException, messages: Mapping[int, str] | None = None, again: str = "try again later"
) -> HubError | None:
    """The Hub failure behind an exception of any library, with a message without its subject; None if there is none.

    `messages` and `again` are those of `hub_errors`.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    from cmfah_hf.hub_replies import BadReplyError
    from cmfah_hf.hub_requests import BusyError, UnreachableError, reason_of

    found: BaseException | None = None
    for cause in _causes(error):
        if isinstance(cause, (HfHubHTTPError, OfflineModeIsEnabled, BadReplyError, BusyError, UnreachableError)):
            found = cause
            break
        if isinstance(cause, HTTPError):
            found = cause
    if found is None:
        return _without_request(error)
    if isinstance(found, HfHubHTTPError):
        return _refused(found, messages or {}, again)
    if isinstance(found, OfflineModeIsEnabled):
        return HubConnectionError("HF_HUB_OFFLINE is set, and it is not in the cache; unset HF_HUB_OFFLINE.")
    reason = reason_of(found)
    if isinstance(found, BusyError):
        return HubServerError(f"the Hub is failing or busy ({reason}); {again}.")
    if isinstance(found, BadReplyError):
        return HubServerError(f"the Hub sent an invalid reply ({reason}); check HF_ENDPOINT and any proxy, or {again}.")
    return HubConnectionError(
        f"no connection to the Hub ({reason}); check the network, HF_ENDPOINT and any proxy, then {again}."
    )


def _refused(error: Any, messages: Mapping[int, str], again: str) -> HubError:
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RevisionNotFoundError

    from cmfah_hf.hub_requests import BUSY_STATUSES, reason_of

    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return HubNotFoundError("no such revision; name another branch, tag or commit, or none for main.")
    if isinstance(error, RemoteEntryNotFoundError):
        return HubNotFoundError(f"no such file ({error.response.request.url.path.rpartition('/')[2]}).")
    if isinstance(error, GatedRepoError):
        return HubAccessError("it is gated; request access on its page, and log in with `hf auth login`.")
    kinds = {401: HubAccessError, 403: HubAccessError, 404: HubNotFoundError}
    if status in messages:
        return kinds.get(status, HubError)(messages[status])
    has_token = "authorization" in error.response.request.headers
    if status == 401 and error.response.headers.get("X-Error-Code") != "RepoNotFound" and has_token:
        return HubAccessError("the Hub rejects the token; log in again with `hf auth login`, or correct HF_TOKEN.")
    if status in (401, 404):
        return HubNotFoundError(
            "no such repository on the Hub, or it is private and the token may not see it; check the id, and log in "
            "with `hf auth login`."
        )
    if status == 403:
        return HubAccessError("the token lacks permission; use one of the owner or of a member of the organization.")
    if status in BUSY_STATUSES:
        return HubServerError(f"the Hub is failing or busy ({reason_of(error)}); {again}.")
    return HubError(f"the Hub refuses ({reason_of(error)}).")


def _without_request(error: BaseException) -> HubError | None:
    """Failures that the client raises without a failed request."""
    from huggingface_hub.errors import FileMetadataError, HFValidationError, LocalEntryNotFoundError

    for cause in _causes(error):
        if isinstance(cause, FileMetadataError):
            return HubServerError("the server is not a Hub; check HF_ENDPOINT and any proxy.")
        if type(cause) is OSError and cause.errno is None and str(cause).startswith("Consistency check failed"):
            return HubServerError("a downloaded file has a different size than announced; try again later.")
        if isinstance(cause, HFValidationError):
            return HubNotFoundError("not a valid repository id; give owner/name.")
        if isinstance(cause, LocalEntryNotFoundError) and cause.__cause__ is None:
            return HubConnectionError("it is not in the cache, and local_files_only is set.")
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
