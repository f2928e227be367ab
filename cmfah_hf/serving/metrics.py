"""Metrics of the search service in Prometheus' text format, by the library prometheus_client."""

from typing import Any

from cmfah_hf.serving.served import ServedRetriever
from cmfah_hf.serving.workers import Workers

# Upper bounds of the histogram of seconds.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counts requests and times them. Without prometheus_client, it does nothing, and `text` is None."""

    def __init__(self, served: ServedRetriever, workers: Workers):
        try:
            import prometheus_client as prometheus
        except ImportError:
            self._registry: Any = None
            return
        self._registry = prometheus.CollectorRegistry()
        self._write = prometheus.generate_latest
        own: dict[str, Any] = {"namespace": "cmfah", "registry": self._registry}
        self._requests = prometheus.Counter(
            "requests", "Requests by endpoint and status.", ["endpoint", "status"], **own
        )
        self._seconds = prometheus.Histogram(
            "request_seconds", "Seconds from the headers of a request to its reply.", ["endpoint"],
            buckets=_SECONDS, **own,
        )  # fmt: skip
        prometheus.Gauge("calls", "Calls that run or wait.", **own).set_function(lambda: workers.count)
        items = prometheus.Gauge("items", "Items of an index.", ["target"], **own)
        unsaved = prometheus.Gauge("unsaved", "1 if an index has changes that are not in its file.", ["target"], **own)
        items.labels("images").set_function(lambda: len(served.index("images")))
        items.labels("texts").set_function(lambda: len(served.index("texts")))
        unsaved.labels("images").set_function(lambda: not served.is_saved("images"))
        unsaved.labels("texts").set_function(lambda: not served.is_saved("texts"))
        prometheus.ProcessCollector(registry=self._registry)

    def count(self, endpoint: str, status: int, seconds: float) -> None:
        """Counts a request."""
        if self._registry is not None:
            self._requests.labels(endpoint, status).inc()
            self._seconds.labels(endpoint).observe(seconds)

    def text(self) -> bytes | None:
        """All metrics, or None without the library."""
        return None if self._registry is None else self._write(self._registry)
