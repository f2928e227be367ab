"""The storage behind the Hub: objects under their SHA-256, at addresses signed by the Hub."""

import hashlib
import hmac
import re
import secrets
from urllib.parse import urlencode

from hub_server.connection import Answer, Handler
from hub_server.store import HubError


class Signer:
    """Signs a method and a path, so that the address works without a token."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(16)

    def sign(self, method: str, path: str) -> str:
        return hmac.new(self._key, f"{method} {path}".encode(), "sha256").hexdigest()

    def address(self, base: str, method: str, path: str) -> str:
        return f"{base}{path}?{urlencode({'X-Signature': self.sign(method, path)})}"


class StorageHandler(Handler):
    listener = "storage"

    def answer(self) -> Answer:
        if self.headers.get("Authorization"):
            raise HubError(400, "Only one auth mechanism allowed: a signed address came with an Authorization header")
        method = "GET" if self.command == "HEAD" else self.command
        signature = self.query.get("X-Signature", [""])[0]
        if not hmac.compare_digest(signature, self.hub.signer.sign(method, self.raw_path)):
            raise HubError(403, "SignatureDoesNotMatch")
        if match := re.fullmatch(r"/objects/([0-9a-f]{64})", self.raw_path):
            return self._object(match[1])
        if (match := re.fullmatch(r"/uploads/(\w+)/(\d+)", self.raw_path)) and method == "PUT":
            return self._part(match[1], int(match[2]))
        raise HubError(404, "NoSuchKey")

    def _object(self, sha256: str) -> Answer:
        store = self.hub.store
        if self.command == "PUT":
            store.put_object(sha256, self.body)
            return Answer()
        if sha256 not in store.objects:
            raise HubError(404, "NoSuchKey")
        return Answer(store.objects[sha256], headers={"ETag": f'"{sha256}"'}, ranges=True)

    def _part(self, upload: str, number: int) -> Answer:
        parts = self.hub.store.uploads.get(upload)
        if parts is None:
            raise HubError(404, "NoSuchUpload")
        parts[number] = self.body
        return Answer(headers={"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})
