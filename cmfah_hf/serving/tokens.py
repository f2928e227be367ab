"""The token that clients of the search service send."""

import hashlib
import hmac
import os
import re
from pathlib import Path

from cmfah_hf.documents import read_bytes
from cmfah_hf.errors import CMFAHError

TOKEN_VARIABLE = "CMFAH_TOKEN"
# Such as `openssl rand -hex 32` prints. Shorter ones could be guessed.
_TOKEN = re.compile(r"[\x21-\x7e]{16,512}")
_MOST_BYTES = 4096


def read_token(file: str | os.PathLike | None = None) -> str | None:
    """The token in a file, or else in the environment variable `CMFAH_TOKEN`. None without either.

    Raises:
        CMFAHError: If the file cannot be read, or what it holds is no token. The error does not show it.
    """
    where = TOKEN_VARIABLE if file is None else str(file)
    if file is None:
        text = os.environ.get(TOKEN_VARIABLE)
        if not text:
            return None
    else:
        text = read_bytes(Path(file), most_bytes=_MOST_BYTES).decode("utf-8", "replace")
    token = text.strip()
    if _TOKEN.fullmatch(token) is None:
        raise CMFAHError(
            f"{where}: a token is one word of 16 to 512 ASCII characters, as `openssl rand -hex 32` prints."
        )
    return token


class TokenCheck:
    """Compares tokens in constant time. Without a token, everything is accepted."""

    def __init__(self, token: str | None):
        self._digest = None if token is None else _digest(token.encode())

    def accepts(self, authorization: str | None) -> bool:
        """Whether the header `Authorization: Bearer TOKEN` has the token."""
        if self._digest is None:
            return True
        scheme, _, given = (authorization or "").partition(" ")
        # Digests, since a comparison of texts of different lengths takes different times.
        is_same = hmac.compare_digest(_digest(given.strip().encode("latin-1", "replace")), self._digest)
        return is_same and scheme.lower() == "bearer"


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
