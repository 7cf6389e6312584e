"""What the operator counts. Labels are bounded: results and queues, never an image, a node or an object."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from imageprepull import __version__

SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2, 10)


class Metrics:
    """The operator's numbers, in a registry of their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        build = Gauge("imageprepull_build_info", "The version that runs", ["version"], registry=self.registry)
        build.labels(__version__).set(1)
        self.leading = Gauge("imageprepull_leading", "Whether this replica leads", registry=self.registry)
        self.image_prepulls = Gauge("imageprepull_objects", "ImagePrepulls known", registry=self.registry)
        self.nodes = Gauge("imageprepull_nodes", "Nodes known", registry=self.registry)
        self.pulling = Gauge("imageprepull_nodes_pulling", "Nodes that pull an image", registry=self.registry)
        self.removals_held = Gauge(
            "imageprepull_removals_held",
            "ImagePrepulls that vanished unseen, too many at once to let their images go",
            registry=self.registry,
        )
        self.writes = Counter(
            "imageprepull_writes", "Writes to the API server", ["kind"], registry=self.registry
        )
        self.plan_seconds = Histogram(
            "imageprepull_plan_seconds", "Seconds to plan all", buckets=SECONDS, registry=self.registry
        )
        self.aggregate_seconds = Histogram(
            "imageprepull_aggregate_seconds", "Seconds for a status", buckets=SECONDS, registry=self.registry
        )
