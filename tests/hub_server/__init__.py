"""A Hub on the loopback that speaks the protocol of `huggingface_hub`'s client, for models, data sets and Spaces alike.

    with HubServer() as hub:
        environment = hub.environment(token="hf_writer", home=tmp_path)   # of a process that is to use it
        api = HfApi(endpoint=hub.endpoint, token="hf_writer")             # or in this process

There are two listeners, as there are two hosts in earnest: the Hub itself (`endpoint`), and the storage behind it, to
which large files go and from which they come by redirects to signed addresses. The storage refuses a request that
brings an `Authorization` header: a token that leaves the Hub is a fault of the client.

**What it holds** (`store.py`), all in memory:

- A repository is absent, or has commits: one from its creation on, which holds `.gitattributes`. A commit is whole or
  not there, has its parent's id, and its own is that of the Git object. Branches move with commits, tags do not.
- A large object is unknown or stored, under its SHA-256; it comes to be stored by a whole PUT or by a completed
  multipart upload, and stays without any commit, so a second upload of it is answered with "nothing to do". A part of
  a PUT is nothing.
- A repository is public, private or gated; a user, known by a token, writes below the own name and organisations.

**What it can be made to do wrong** (`faults.py`): `hub.fail(...)`, `hub.cut(...)`, `hub.slow(...)`, `hub.mute(...)`,
`hub.endless(...)`, `hub.reply(...)`, `hub.change(...)`, for the requests that a pattern names and so many times.
**What it was asked** is in `hub.log`, a `Request` each.

Xet, the Hub's newer way to move large files, is not spoken: the server offers none for downloads, and for uploads the
client has to be told so by `HF_HUB_DISABLE_XET=1`, because it decides on what is installed and does not ask.
"""

from hub_server.connection import Answer
from hub_server.faults import Request
from hub_server.server import HubServer
from hub_server.store import User

__all__ = ["Answer", "HubServer", "Request", "User"]
