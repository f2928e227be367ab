"""A Hub on the loopback that speaks the protocol of `huggingface_hub`'s client, for models, data sets and Spaces.

    with HubServer() as hub:
        environment = hub.environment(token="hf_writer", home=tmp_path)   # of a process that uses it
        api = HfApi(endpoint=hub.endpoint, token="hf_writer")             # or in this process

There are two listeners, as on the real Hub: the Hub itself (`endpoint`), and the storage behind it for uploads and
downloads of large files, by redirects to signed addresses. The storage rejects requests with an `Authorization`
header: a client must not send its token anywhere but to the Hub.

**State** (`store.py`), all in memory:

- A repository is absent or has commits: the first, from its creation, holds `.gitattributes`. Commits are atomic, have
  their parent's id, and their own id is that of the Git object. Branches move with commits, tags do not.
- A large object is unknown or stored, under its SHA-256. A complete PUT or a completed multipart upload stores it,
  also if no commit uses it, so a second upload of it gets the response "nothing to do". Partial PUTs are discarded.
- A repository is public, private or gated; a user, identified by a token, may write below the own name and those of
  the user's organizations.

**Faults** (`faults.py`): `hub.fail(...)`, `hub.cut(...)`, `hub.slow(...)`, `hub.mute(...)`, `hub.endless(...)`,
`hub.reply(...)`, `hub.change(...)`, for the requests that match a pattern and a number of times.
**Requests** are in `hub.log`, one `Request` each.

Xet, the Hub's newer protocol for large files, is not supported: the server does not offer it for downloads, and
uploads need `HF_HUB_DISABLE_XET=1`, because the client decides by its installed packages.
"""

from hub_server.connection import Answer
from hub_server.faults import Request
from hub_server.server import HubServer
from hub_server.store import User

__all__ = ["Answer", "HubServer", "Request", "User"]
