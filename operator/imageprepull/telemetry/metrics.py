"""The agent's and operator's common Prometheus pieces. Labels stay bounded: never an image, a digest or a layer."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from imageprepull import __version__

SECONDS = (0.1, 0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280)
LABEL_VALUES = 64
OTHER = "other"


class BoundedLabel:
    """Passes the first `limit` values of a label and then says `other`: a hostile redirect must not fill memory."""

    def __init__(self, limit: int = LABEL_VALUES) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        """`value`, or `other` once too many different ones were seen."""
        if value not in self._known:
            if len(self._known) >= self._limit:
                return OTHER
            self._known.add(value)
        return value


class AgentMetrics:
    """What one agent counts, in a registry of its own so that tests do not share numbers."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._host = BoundedLabel()
        self._reason = BoundedLabel()
        build = Gauge("imageprepull_build_info", "The version that runs", ["version"], registry=self.registry)
        build.labels(__version__).set(1)
        self._pulls = Counter(
            "imageprepull_pulls", "Ended pulls", ["result", "reason"], registry=self.registry
        )
        self._bytes = Counter(
            "imageprepull_downloaded_bytes",
            "Compressed bytes by answering host",
            ["host"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "imageprepull_pull_seconds",
            "Wall seconds of pulls that succeeded, by phase",
            ["phase"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.retries = Counter(
            "imageprepull_retries", "Pulls that followed a failure", registry=self.registry
        )
        self.working = Gauge(
            "imageprepull_images_in_work", "Images that are being pulled", registry=self.registry
        )
        self.layers = Gauge(
            "imageprepull_layers_in_work", "Layers that are being pulled or unpacked", registry=self.registry
        )
        self._writes = Counter(
            "imageprepull_status_writes", "Writes of the node's status", ["result"], registry=self.registry
        )

    def pull_ended(self, result: str, reason: str = "") -> None:
        """Count a pull: `succeeded`, `failed` or `cancelled`."""
        self._pulls.labels(result, self._reason(reason)).inc()

    def downloaded(self, by_host: dict[str, int]) -> None:
        """Count bytes by the host that sent them."""
        for host, amount in by_host.items():
            self._bytes.labels(self._host(host)).inc(amount)

    def took(self, phase: str, seconds: float) -> None:
        """Observe a phase of a pull that succeeded."""
        self._seconds.labels(phase).observe(seconds)

    def status_written(self, result: str) -> None:
        """Count a status write: `ok`, or the HTTP status it failed with (0: no answer)."""
        self._writes.labels(result).inc()
