"""The agent's loops over one node: watches in, pulls, status out, and what /livez and /readyz say of them.

main.py makes what they run on; nothing here knows containerd.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import structlog

from imageprepull.agent.clock import Clock
from imageprepull.agent.disk import UNGUARDED, Unguarded
from imageprepull.agent.image import ImageView
from imageprepull.agent.node import Node
from imageprepull.agent.operator_lease import OperatorLease
from imageprepull.agent.orders import order_in
from imageprepull.agent.reconciler import Reconciler
from imageprepull.agent.reporter import Reporter
from imageprepull.agent.settings import AgentSettings
from imageprepull.agent.sightings import Sightings
from imageprepull.agent.status import Report
from imageprepull.agent.watch import PaceWatch, SpecWatch
from imageprepull.kube.client import ApiClient
from imageprepull.kube.kinds import NODEPREPULLS
from imageprepull.resources.nodeprepull import LayerState, NodePrepull
from imageprepull.telemetry.health import Health
from imageprepull.telemetry.metrics import AgentMetrics

logger = structlog.get_logger(__name__)

Sweep = Callable[[Callable[[], Collection[str]] | None], Awaitable[None]]
"""Takes a callable that names the digests still wanted; None while nobody knows them."""
Follow = Callable[
    [Callable[[Collection[str]], None], Callable[[], None], Callable[[Collection[str]], None]],
    Coroutine[Any, Any, None],
]
"""Takes the listeners for losses, for containers that went, and for image records that changed."""

IN_WORK = (LayerState.DOWNLOADING, LayerState.DOWNLOADED, LayerState.EXTRACTING, LayerState.EXTRACTED)


async def serve_node(
    settings: AgentSettings,
    node: Node,
    api: ApiClient,
    *,
    health: Health,
    metrics: AgentMetrics,
    sweep: Sweep,
    follow: Follow,
    disk: Unguarded = UNGUARDED,
) -> None:
    """Run the loops until cancelled, over a runtime that answered once.

    `sweep` cleans up after earlier agents, `follow` reports losses as long as it runs. `disk` says who waits
    for room.
    """
    clock = Clock()
    sightings = Sightings(clock)

    def collect() -> Report | None:
        current = spec.current
        if current is None:
            return None
        views = list(reconciler.views.values())
        metrics.layers.set(layers_in_work(views))
        return Report(
            current.metadata.generation,
            node.about(),
            disk.report(reconciler.pins_left, reconciler.unfinished_left) or node.disk(),
            views,
            node.registries(),
            reconciler.stray_pins,
            current.spec.kubelet_without_pins,
        )

    async def write(patch: dict[str, object]) -> object:
        return await api.merge_patch(NODEPREPULLS, settings.node_name, patch, subresource="status")

    reporter = Reporter(write, collect, pace=settings.pace, clock=clock, metrics=metrics)

    def on_spec(old: NodePrepull | None, new: NodePrepull | None) -> None:
        if new is None:
            logger.warning("the NodePrepull is gone: starting nothing, removing nothing")
            sightings.take("", ())
            reconciler.freeze()
            return
        if old is None or old.metadata.uid != new.metadata.uid:
            reporter.forget()
        node.hold(new.spec.registries)
        sightings.take(new.metadata.uid, new.spec.images)
        reconciler.take_spec(disk.effective(new.spec.images), new.status.images)

    async def reconcile() -> None:
        # At once, whether the API server answers or not: pods may be started on layers that another boot left unsynced,
        # and staging snapshots or expired leases of a process that died serve nobody. A lease that a pull could still go
        # on with, and its spool, wait for a word of the API server: they hold bytes that would be fetched again.
        await sweep(None)
        await spec.known()
        # A node that nobody chose wants nothing; what earlier agents kept for their pulls goes from there as well.
        await sweep(lambda: {view.desired.digest for view in reconciler.views.values()})
        add_liveness(health, settings, reconciler)
        await reconciler.run()

    operator = OperatorLease(
        api,
        namespace=settings.namespace,
        name=settings.operator_lease,
        poll=settings.lease_poll,
        margin=settings.lease_margin,
        clock=clock,
    )
    async with stopping_with(reporter, settings.stop_timeout / 4), asyncio.TaskGroup() as tasks:
        reconciler = Reconciler(
            node,
            tasks,
            clock=clock,
            metrics=metrics,
            on_change=reporter.changed,
            delays=settings.delays,
            confirm=order_in(api, settings.node_name, sightings.of, operator.prove),
            gate=disk.gate,
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
        tasks.create_task(disk.run(lambda: take_again(spec, reconciler, disk), reconciler.wake))
        tasks.create_task(follow(reconciler.suspect_lost, reconciler.retry_used, reconciler.suspect_named))


def take_again(spec: SpecWatch, reconciler: Reconciler, disk: Unguarded) -> None:
    """Pressure began or ended: the same spec means something else now."""
    if spec.current is not None:
        reconciler.take_spec(disk.effective(spec.current.spec.images))


def add_checks(
    health: Health, settings: AgentSettings, spec: SpecWatch, reconciler: Reconciler, reporter: Reporter
) -> None:
    """What /livez and /readyz ask from now on."""

    def follows() -> str | None:
        if spec.informer.sight.problem:
            return None  # it is trying: a restart would not bring an absent API server back.
        quiet = spec.informer.sight.age
        return f"the API server was not heard for {quiet:.0f} s" if quiet > settings.live_after else None

    health.live["watch"] = follows
    health.ready["containerd"] = lambda: reconciler.problem or None
    health.ready["nodeprepull"] = lambda: (
        spec.informer.sight.problem
        or spec.problem
        or (None if spec.informer.synced.is_set() else "not listed yet")
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


def layers_in_work(views: Collection[ImageView]) -> int:
    """Layers that are being downloaded or unpacked at the moment."""
    pulls = [view.progress for view in views if view.running and view.progress is not None]
    return sum(layer.state in IN_WORK for progress in pulls for layer in progress.layers)
