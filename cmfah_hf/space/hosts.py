"""Allowed hosts and origins, against DNS rebinding."""

import ipaddress
import os
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from cmfah_hf.errors import CMFAHError

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]{1,253})(:\d{1,5})?", re.IGNORECASE)
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class AllowedHosts:
    """Accepts or refuses requests by their `Host` and `Origin` headers.

    Allowed are this machine's own name, `localhost`; the address `bound` that the server listens at, where that is all
    of them any IP address; on the Hub the Space's own host (`SPACE_HOST`); and the `further` ones, without scheme and
    port. An attacker can let any name point to this machine, but no IP address, so addresses are safe where names are
    not.
    """

    def __init__(self, bound: str, further: Iterable[str] = ()):
        own = os.environ.get("SPACE_HOST", "")
        # Hosts whose pages may call this server across origins.
        self._callers = {host_name(name) for name in (*further, *own.split(",")) if name}
        self._names = {"localhost", bound.lower(), *self._callers}
        address = _address(bound)
        self._any_address = bound == "" or (address is not None and address.is_unspecified)

    def answers(self, host: str | None, origin: str | None = None) -> bool:
        """True if a request with these `Host` and `Origin` headers is accepted.

        Browsers send an origin where a page calls: allowed is a page of this server or of a host that was named.
        """
        found = _HOST.fullmatch(host or "")
        if found is None:
            return False
        name = _plain(found["name"])
        address = _address(name)
        if name not in self._names and not (
            address is not None and (self._any_address or address.is_loopback or address.is_unspecified)
        ):
            return False
        return origin is None or _host_of(origin) in {name, *self._callers}


def host_name(value: str) -> str:
    """A normalized host name or IP address; `CMFAHError` if it is neither."""
    name = _plain(value.strip())
    if _address(name) is None and re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", name) is None:
        raise CMFAHError(f"{value[:80]!r} is not a host; give a name or an IP address, without scheme and port.")
    return name


def is_loopback(host: str) -> bool:
    """Whether an address or name leads to this machine only."""
    address = _address(host)
    return address.is_loopback if address is not None else _plain(host) == "localhost"


def _host_of(origin: str) -> str | None:
    """The host of an `Origin` header; None without one, as in `null`."""
    try:
        name = urlsplit(origin).hostname
    except ValueError:  # brackets that hold no address
        return None
    return _plain(name) if name else None


def _plain(name: str) -> str:
    return name.lower().strip("[]").rstrip(".")


def _address(name: str) -> _Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
