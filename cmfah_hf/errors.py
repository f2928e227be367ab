"""What a user can get wrong, as types.

Every one is a `ValueError`, so code that knows nothing of this package still catches it. The message is one line that
names the file, row or value, says what is wrong with it, and what to do. The command line prints that line and exits 2.
"""

import re


class CMFAHError(ValueError):
    """The root of this package's own errors.

    A message stays one line whatever it names: line breaks and other characters that cannot be printed become escapes.
    """

    def __init__(self, *args: object):
        super().__init__(*(printable(part) if isinstance(part, str) else part for part in args))


class DataError(CMFAHError):
    """A data set, a metadata row or a column that cannot be used as it stands."""


class ImageError(DataError):
    """One picture that cannot be read."""


class QueryError(CMFAHError):
    """A query or an evaluation that has no meaningful answer."""


class HashIndexError(CMFAHError):
    """An index that is damaged, foreign, or asked for what it does not hold."""


class CheckpointError(CMFAHError):
    """A folder that is not the checkpoint it is taken for."""


class HubError(CMFAHError):
    """Something that the Hub refuses, or that cannot be brought to it."""


class HubNotFoundError(HubError):
    """A repository, revision or file that the Hub does not have, or does not show to this token."""


class HubAccessError(HubError):
    """A token that the Hub does not know, or that may not do what was asked."""


class HubConnectionError(HubError):
    """No network, offline mode, or a Hub that does not answer in time."""


class HubServerError(HubError):
    """A Hub that fails, is busy, or answers what cannot be used."""


# Controls, marks that reorder what follows, invisible characters, and halves of characters that no encoding takes.
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""`text` as one line that a terminal shows as it is: what cannot be printed becomes its escape, such as `\x1b`."""
    return UNPRINTABLE.sub(lambda character: ascii(character[0])[1:-1], text)
