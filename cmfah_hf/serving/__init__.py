"""Search as an HTTP service, and its client. The names load on first use, so that a client pays for no server."""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "SearchClient": "client",
        "ServedRetriever": "served",
        "ServiceLimits": "limits",
        "build_service": "app",
        "read_token": "tokens",
        "ServedSources": "server",
        "serve": "server",
    },
)
