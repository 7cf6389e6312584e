"""The operator's process: waits for the CRDs, follows the cluster, takes the Lease, and only then writes.

A standby replica follows Nodes, NodePrepulls and agents too, so that taking over takes no time. Whatever task
fails takes the process with it: a restart reads everything back from the objects.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from imageprepull.controller.groups import leaf
from imageprepull.controller.health import add_checks
from imageprepull.controller.leader import Leader
from imageprepull.controller.lease import Lease, LeaseLost, start_watchdog
from imageprepull.controller.settings import OperatorSettings
from imageprepull.controller.standby import Standby
from imageprepull.kube.client import ApiClient
from imageprepull.registry.client import RegistryClient
from imageprepull.registry.credentials import NoCredentials
from imageprepull.registry.hosts import HostsConfig
from imageprepull.telemetry.health import Health

logger = structlog.get_logger(__name__)


class Stopped(Exception):
    """SIGTERM or SIGINT came: an end without a fault."""


async def run(settings: OperatorSettings) -> None:
    """Run until told to stop.

    Raises:
        CrdsMissing: the CRDs did not come in time.
        LeaseLost: another replica may lead; this process must end.
        Exception: the first of what failed.
    """
    async with (
        ApiClient(settings.access, user_agent="imageprepull-operator") as api,
        _registry(settings) as registry,
    ):
        standby = Standby(api, settings)
        health = Health(standby.metrics.registry)
        lease = Lease(
            api,
            namespace=settings.namespace,
            name=settings.lease_name,
            identity=settings.identity,
            seconds=settings.lease_seconds,
        )
        leader = Leader(api, registry, standby, settings)
        lease.voucher = leader.vouching
        add_checks(health, standby, leader, lease, settings)
        async with health.serve(settings.health_port, settings.health_host or None):
            watchdog = start_watchdog(lease)
            try:
                await _until_stopped(standby, leader, lease, settings)
            finally:
                await lease.release()
                watchdog.set()


async def _until_stopped(standby: Standby, leader: Leader, lease: Lease, settings: OperatorSettings) -> None:
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_stop_on_signal(), name="signals")
            await standby.trust.wait(settings.crd_timeout)
            for informer in standby.informers:
                tasks.create_task(informer.run(), name=f"informer {informer.kind.plural}")
            await standby.synced()
            await lease.acquire()
            standby.metrics.leading.set(1)
            tasks.create_task(lease.keep(), name="lease")
            tasks.create_task(leader.run(), name="leader")
    except BaseExceptionGroup as group:
        lost = group.subgroup(LeaseLost)
        if lost is not None:
            # Whatever else failed with it is a consequence; reason and exit code are the lease's.
            raise leaf(lost) from None
        _, failed = group.split(Stopped)
        if failed is not None:
            raise leaf(failed) from group
        logger.info("stopped")


async def _stop_on_signal() -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    try:
        await told.wait()
        raise Stopped
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@asynccontextmanager
async def _registry(settings: OperatorSettings) -> AsyncIterator[RegistryClient]:
    hosts = HostsConfig(settings.hosts_dirs) if settings.hosts_dirs else HostsConfig()
    async with RegistryClient(hosts, NoCredentials()) as client:
        yield client
