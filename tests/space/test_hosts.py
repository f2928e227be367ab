"""Allowed hosts of the server."""

import pytest

from cmfah_hf.errors import CMFAHError
from cmfah_hf.space.hosts import AllowedHosts, host_name


@pytest.mark.parametrize(
    ("bound", "host", "answered"),
    [
        ("127.0.0.1", "127.0.0.1:7860", True),
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "LOCALHOST.:7860", True),
        ("127.0.0.1", "[::1]:7860", True),
        ("127.0.0.1", "192.168.1.7:7860", False),
        ("127.0.0.1", "evil.example", False),
        ("127.0.0.1", "localhost.evil.example", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("127.0.0.1", "evil.example:7860", False),
        ("127.0.0.1", "localhost:99999999", False),
        ("127.0.0.1", "localhost@evil.example", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", None, False),
        ("0.0.0.0", "192.168.1.7:7860", True),
        ("0.0.0.0", "[fe80::1]:7860", True),
        ("0.0.0.0", "localhost:7860", True),
        ("0.0.0.0", "evil.example:7860", False),
        ("::", "10.0.0.3", True),
        ("192.168.1.7", "192.168.1.7:7860", True),
        ("192.168.1.7", "192.168.1.8", False),
        ("box.home", "box.home:80", True),
    ],
)
def test_names_are_allowed_by_list_and_addresses_by_the_listening_address(bound, host, answered):
    assert AllowedHosts(bound).answers(host) is answered


def test_additional_hosts_and_the_hub_space_are_allowed(monkeypatch):
    monkeypatch.setenv("SPACE_HOST", "Owner-Search.hf.space")
    hosts = AllowedHosts("0.0.0.0", ["search.example.org"])
    for host in ("owner-search.hf.space", "search.example.org:443", "10.1.2.3:7860"):
        assert hosts.answers(host)
    assert not hosts.answers("other.hf.space")
    # Their pages may call this server behind a proxy, which sets another host.
    assert hosts.answers("10.1.2.3", "https://owner-search.hf.space")
    assert hosts.answers("localhost:7860", "https://search.example.org")


@pytest.mark.parametrize(
    ("host", "origin", "answered"),
    [
        ("127.0.0.1:7860", "http://127.0.0.1:7860", True),
        ("localhost:7860", "http://localhost:7860", True),
        ("127.0.0.1:7860", "https://evil.example", False),
        ("192.168.1.7", "http://6.6.6.6", False),
        ("192.168.1.7", "http://192.168.1.7:7860", True),
        ("evil.example", "http://evil.example", False),
        ("127.0.0.1", "null", False),
        ("127.0.0.1", "http://[x", False),
        ("127.0.0.1", "", False),
    ],
)
def test_pages_of_other_hosts_may_not_call(host, origin, answered):
    assert AllowedHosts("0.0.0.0").answers(host, origin) is answered


@pytest.mark.parametrize("name", ["http://x", "x:80", "", "a b", "*", "x/y", "é"])
def test_invalid_hosts_are_refused_in_one_line(name):
    with pytest.raises(CMFAHError, match="is not a host; give a name") as refused:
        host_name(name)
    assert "\n" not in str(refused.value)
