"""The agent's life: lock, runtime, sweep, watches, loops, and an orderly end. Called by cli/agent.py.

Everything runs in one TaskGroup: a loop that fails ends the process, and the kubelet starts it anew. SIGTERM cancels
the group; pulls clean up and keep their leases, so that the next agent resumes them.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from imageprepull import __version__
from imageprepull.agent.clock import Clock
from imageprepull.agent.containerd_node import ContainerdNode
from imageprepull.agent.reconciler import Reconciler
from imageprepull.agent.reporter import Reporter
from imageprepull.agent.runtime_start import follow_events, opened_runtime, swept
from imageprepull.agent.settings import AgentSettings
from imageprepull.agent.spool_lock import locked
from imageprepull.agent.status import Report
from imageprepull.agent.watch import PaceWatch, SpecWatch
from imageprepull.kube.client import ApiClient
from imageprepull.kube.kinds import NODEPREPULLS
from imageprepull.resources.nodeprepull import NodePrepull
from imageprepull.telemetry.health import Health
from imageprepull.telemetry.metrics import AgentMetrics

logger = structlog.get_logger(__name__)


class Waits:
    """What start-up waits for at the moment, for /readyz; empty texts when it does not wait."""

    def __init__(self) -> None:
        self.lock = "not reached yet"
        self.runtime = "not reached yet"

    def note_lock(self, why: str) -> None:
        """Log a new reason once."""
        if why and why != self.lock:
            logger.warning("waiting for the spool", reason=why)
        self.lock = why

    def note_runtime(self, why: str) -> None:
        """Log a new reason once."""
        if why and why != self.runtime:
            logger.warning("waiting for the runtime", reason=why)
        self.runtime = why


async def run(settings: AgentSettings) -> None:
    """Serve one node until SIGTERM or SIGINT.

    Raises:
        BaseExceptionGroup: a loop failed; the process should end with an error.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    logger.info("agent starts", version=__version__, node=settings.node_name, address=settings.address)
    life = asyncio.create_task(live(settings))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([life, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not life.done():
            logger.info("agent stops")
            life.cancel()
            await asyncio.wait([life], timeout=settings.stop_timeout)
    finally:
        stopping.cancel()
        life.cancel()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    if life.done() and not life.cancelled():
        life.result()
    logger.info("agent stopped")


async def live(settings: AgentSettings) -> None:
    """From the health port to the loops; ends by cancellation or failure."""
    metrics = AgentMetrics()
    health = Health(metrics.registry)
    waits = Waits()
    health.ready["spool"] = lambda: waits.lock or None
    health.ready["runtime"] = lambda: waits.runtime or None
    async with (
        health.serve(settings.health_port, settings.health_host),
        locked(settings.spool_dir, retry=settings.reconnect, on_wait=waits.note_lock),
        opened_runtime(settings, waits.note_runtime) as node,
        ApiClient(settings.access, user_agent=f"imageprepull-agent/{__version__}") as api,
    ):
        await serve_node(settings, node, api, health=health, metrics=metrics, waits=waits)


async def serve_node(
    settings: AgentSettings,
    node: ContainerdNode,
    api: ApiClient,
    *,
    health: Health,
    metrics: AgentMetrics,
    waits: Waits,
) -> None:
    """Run the loops over a runtime that answers."""
    clock = Clock()
    generation: list[NodePrepull | None] = [None]

    def collect() -> Report | None:
        current = generation[0]
        if current is None:
            return None
        views = list(reconciler.views.values())
        metrics.layers.set(sum(layers_in_work(view.progress) for view in views if view.running))
        return Report(current.metadata.generation, node.about(), node.disk(), views)

    async def write(patch: dict[str, object]) -> object:
        return await api.merge_patch(NODEPREPULLS, settings.node_name, patch, subresource="status")

    reporter = Reporter(write, collect, pace=settings.pace, clock=clock, metrics=metrics)

    def on_spec(new: NodePrepull | None) -> None:
        old, generation[0] = generation[0], new
        if new is None:
            logger.warning("the NodePrepull is gone: starting nothing, removing nothing")
            reconciler.freeze()
            return
        if old is None or old.metadata.uid != new.metadata.uid:
            reporter.forget()
        reconciler.take_spec(new.spec.images)

    async def reconcile() -> None:
        await spec.seen.wait()
        await swept(
            node, lambda: {view.desired.digest for view in reconciler.views.values()}, waits.note_runtime
        )
        add_liveness(health, settings, reconciler)
        await reconciler.run()

    async with stopping_with(reporter, settings.stop_timeout / 4), asyncio.TaskGroup() as tasks:
        reconciler = Reconciler(
            node, tasks, clock=clock, metrics=metrics, on_change=reporter.changed, delays=settings.delays
        )
        spec = SpecWatch(api, settings.node_name, settings.watch, on_spec)
        pace = PaceWatch(
            api, settings.namespace, settings.watch, settings.pace, lambda new: setattr(reporter, "pace", new)
        )
        add_checks(health, settings, spec, reconciler, reporter)
        tasks.create_task(spec.informer.run())
        tasks.create_task(pace.informer.run())
        tasks.create_task(reconcile())
        tasks.create_task(reporter.run())
        tasks.create_task(follow_events(node.containerd, settings, reconciler.suspect_all))


def add_checks(
    health: Health, settings: AgentSettings, spec: SpecWatch, reconciler: Reconciler, reporter: Reporter
) -> None:
    """What /livez and /readyz ask from now on."""

    def follows() -> str | None:
        if spec.informer.problem or spec.informer.synced.is_set():
            return None  # it is trying, or it is through: a restart would not help an absent API server.
        quiet = spec.informer.age
        return f"the API server was not heard for {quiet:.0f} s" if quiet > settings.live_after else None

    health.live["watch"] = follows
    health.ready["containerd"] = lambda: reconciler.problem or None
    health.ready["nodeprepull"] = lambda: (
        spec.informer.problem or spec.problem or (None if spec.informer.synced.is_set() else "not listed yet")
    )
    health.ready["report"] = lambda: (
        f"the last write failed: {reporter.problem}" if reporter.problem else None
    )


def add_liveness(health: Health, settings: AgentSettings, reconciler: Reconciler) -> None:
    """From the first step on the reconcile loop must move."""

    def moves() -> str | None:
        # The resync wakes the loop at least this often; an event loop that hangs does not answer at all.
        quiet = time.monotonic() - reconciler.last_step
        limit = settings.delays.resync * 1.2 + settings.live_after
        return f"no reconcile step for {quiet:.0f} s" if quiet > limit else None

    reconciler.last_step = time.monotonic()
    health.live["reconcile"] = moves


@asynccontextmanager
async def stopping_with(reporter: Reporter, timeout: float) -> AsyncIterator[None]:  # noqa: ASYNC109
    """After the loops: one last status, so that nobody believes in pulls that have stopped."""
    try:
        yield
    except asyncio.CancelledError:
        try:
            async with asyncio.timeout(timeout):
                await reporter.last_words()
        except TimeoutError:
            logger.warning("no last status: the API server did not answer in time")
        raise


def layers_in_work(progress: object) -> int:
    """Layers of one pull that are being downloaded or unpacked."""
    layers = getattr(progress, "layers", [])
    return sum(layer.state in ("Downloading", "Downloaded", "Extracting", "Extracted") for layer in layers)
