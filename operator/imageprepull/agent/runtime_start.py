"""From nothing to a node whose containerd answers, swept of what earlier agents left. Called by main.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog

from imageprepull.agent.containerd_node import ContainerdNode, snapshotter_root
from imageprepull.agent.settings import AgentSettings
from imageprepull.oci.platform import Platform
from imageprepull.pulling import durability
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.puller import Puller
from imageprepull.pulling.sweep import sweep
from imageprepull.registry.client import RegistryClient
from imageprepull.registry.credentials import NoCredentials
from imageprepull.registry.hosts import DEFAULT_DIRS, HostsConfig
from imageprepull.runtime.connection import connect
from imageprepull.runtime.discovery import RuntimeInfo, discover
from imageprepull.runtime.errors import RuntimeFault
from imageprepull.unpacking.workers import Workers

logger = structlog.get_logger(__name__)


@asynccontextmanager
async def opened_runtime(
    settings: AgentSettings, workers: Workers | None, on_wait: Callable[[str], None]
) -> AsyncIterator[ContainerdNode]:
    """The node's runtime, however long it takes to answer, and the path that layers take; not yet swept."""
    async with AsyncExitStack() as stack:
        while True:
            try:
                containerd = await stack.enter_async_context(connect(settings.address))
                info = await discover(containerd)
                break
            except RuntimeFault as fault:
                on_wait(f"{fault.reason}: {fault}")
                await stack.aclose()
                await asyncio.sleep(settings.reconnect)
        on_wait("")
        logger.info("runtime found", version=info.version, snapshotter=info.snapshotter)
        registry = await stack.enter_async_context(
            RegistryClient(HostsConfig(hosts_dirs(settings, info)), NoCredentials())
        )
        boot_id = read_boot_id(settings.boot_id_file)
        puller = await stack.enter_async_context(
            Puller(
                containerd,
                registry,
                settings.spool_dir,
                snapshotter_root=snapshotter_root(info),
                content_root=Path(info.content_root) if info.content_root else None,
                workers=workers,
                path=settings.extraction,
                boot_id=boot_id,
                settings=settings.pull,
                thresholds=settings.thresholds,
            )
        )
        node = ContainerdNode(containerd, puller, registry, info, settings, Platform.host(), boot_id)
        await _examined(node, on_wait)
        yield node


async def _examined(node: ContainerdNode, on_wait: Callable[[str], None]) -> None:
    while True:
        try:
            await node.examine()
        except RuntimeFault as fault:
            on_wait(f"cannot find out how to unpack layers: {fault}")
            await asyncio.sleep(node.settings.reconnect)
        else:
            on_wait("")
            return


async def swept(
    node: ContainerdNode, wanted: Callable[[], Collection[str]] | None, note: Callable[[str], None]
) -> None:
    """Clean up after earlier agents, for as many tries as it takes; what `wanted` names stays resumable.

    With None only what no pull can go on with, for as long as nobody knows whose leases still serve.
    """
    while True:
        try:
            await sweep(
                node.containerd,
                owner=node.settings.node_name,
                snapshotter=node.runtime.snapshotter,
                writes=node.puller.writes,
                spool_dir=node.settings.spool_dir,
                boot_id=node.boot_id,
                wanted=wanted() if wanted is not None else None,
                lease_of=node.lease_of,
            )
        except (RuntimeFault, PullError) as fault:
            note(f"cannot clean up after an earlier agent: {fault}")
            await asyncio.sleep(node.settings.reconnect)
        else:
            note("")
            return


def hosts_dirs(settings: AgentSettings, info: RuntimeInfo) -> tuple[Path, ...]:
    """What was asked for, else what the runtime itself reads, else containerd's usual place."""
    if settings.hosts_dirs:
        return settings.hosts_dirs
    configured = tuple(Path(part) for part in (info.registry_config_path or "").split(":") if part)
    return configured or tuple(DEFAULT_DIRS)


def read_boot_id(path: Path) -> str:
    """Which boot of the node this is; layers that another boot left unsynced are not believed."""
    try:
        return durability.read_boot_id(path)
    except OSError as error:
        logger.warning("cannot tell the boot, unsynced layers will be believed", error=str(error))
        return durability.UNKNOWN_BOOT
