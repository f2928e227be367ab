"""Error types for mistakes in the user's input.

Each is a `ValueError`, so code without this package still catches it. The message is one line: the file, row or value,
what is wrong with it, and what to do. The command line prints that line and exits with code 2.
"""

import re


class CMFAHError(ValueError):
    """Base class of this package's errors.

    A message is always one line: line breaks and other characters that cannot be printed become escapes.
    """

    def __init__(self, *args: object):
        super().__init__(*(printable(part) if isinstance(part, str) else part for part in args))


class DataError(CMFAHError):
    """A data set, a metadata row or a column that cannot be used."""


class ImageError(DataError):
    """An image that cannot be read."""


class QueryError(CMFAHError):
    """A query or an evaluation without a meaningful answer."""


class HashIndexError(CMFAHError):
    """An index that is damaged or of another format, or lacks the requested content."""


class CheckpointError(CMFAHError):
    """A folder that is not a usable checkpoint."""


class SearchServerError(CMFAHError):
    """A search server that does not answer, refuses a request, or is of another version."""


class HubError(CMFAHError):
    """A failed request to the Hub, or content that cannot be uploaded."""


class HubNotFoundError(HubError):
    """A repository, revision or file that does not exist on the Hub, or that this token may not see."""


class HubAccessError(HubError):
    """A token that is invalid, or without permission for the request."""


class HubConnectionError(HubError):
    """No network, offline mode, or no answer from the Hub in time."""


class HubServerError(HubError):
    """A server error of the Hub, a busy Hub, or an unusable answer."""


# Control characters, marks that reorder text, invisible characters, and halves of surrogate pairs.
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""`text` as one line that is safe to print: unprintable characters become escapes such as `\x1b`."""
    return UNPRINTABLE.sub(lambda character: ascii(character[0])[1:-1], text)
