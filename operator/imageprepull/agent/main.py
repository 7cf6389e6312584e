"""The agent's life: port, lock, runtime, sweep, watches, loops, and an orderly end. Called by cli/agent.py.

Everything runs in one TaskGroup: a loop that fails ends the process, and the kubelet starts it anew. SIGTERM cancels
the group; pulls clean up and keep their leases, so that the next agent resumes them.
"""

from __future__ import annotations

import asyncio
import signal

import structlog

from imageprepull import __version__
from imageprepull.agent.disk import DiskGuard
from imageprepull.agent.health_port import served
from imageprepull.agent.loops import serve_node
from imageprepull.agent.losses import follow_losses
from imageprepull.agent.runtime_start import opened_runtime, swept
from imageprepull.agent.settings import AgentSettings
from imageprepull.agent.spool_lock import locked
from imageprepull.kube.client import ApiClient
from imageprepull.telemetry.health import Health
from imageprepull.telemetry.metrics import AgentMetrics
from imageprepull.unpacking.workers import Workers

logger = structlog.get_logger(__name__)


class Waits:
    """What start-up waits for at the moment, for /readyz; empty texts when it does not wait."""

    def __init__(self) -> None:
        self.port = ""
        self.lock = "not reached yet"
        self.runtime = "not reached yet"

    def note_port(self, why: str) -> None:
        """Log a new reason once. Nobody can ask /readyz for it."""
        if why and why != self.port:
            logger.warning("waiting for the health port", reason=why)
        self.port = why

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


async def run(settings: AgentSettings, workers: Workers | None = None) -> None:
    """Serve one node until SIGTERM or SIGINT. `workers` unpack layers; they are closed in the end.

    Raises:
        BaseExceptionGroup: a loop failed; the process should end with an error.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    logger.info("agent starts", version=__version__, node=settings.node_name, address=settings.address)
    life = asyncio.create_task(live(settings, workers))
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
        if workers is not None:
            await workers.close()
    if life.done() and not life.cancelled():
        life.result()
    logger.info("agent stopped")


async def live(settings: AgentSettings, workers: Workers | None = None) -> None:
    """From the health port to the loops; ends by cancellation or failure."""
    metrics = AgentMetrics()
    health = Health(metrics.registry)
    waits = Waits()
    health.ready["spool"] = lambda: waits.lock or None
    health.ready["runtime"] = lambda: waits.runtime or None
    async with (
        # The port first: whoever waits for it holds nothing. It does not exclude anybody, since another release may have
        # another port; the lock does.
        served(
            health,
            settings.health_port,
            settings.health_host,
            retry=settings.reconnect,
            on_wait=waits.note_port,
        ),
        locked(settings.spool_dir, retry=settings.reconnect, on_wait=waits.note_lock),
        opened_runtime(settings, workers, waits.note_runtime) as node,
        ApiClient(settings.access, user_agent=f"imageprepull-agent/{__version__}") as api,
    ):
        await serve_node(
            settings,
            node,
            api,
            health=health,
            metrics=metrics,
            disk=DiskGuard(node.puller.rooms, settings.margins, settings.disk_interval),
            sweep=lambda wanted: swept(node, wanted, waits.note_runtime),
            follow=lambda on_loss, on_freed, on_changed: follow_losses(
                node.subscribe,
                on_loss,
                on_freed,
                on_changed,
                namespace=node.containerd.namespace,
                settle=settings.event_settle,
                reconnect=settings.reconnect,
            ),
        )
