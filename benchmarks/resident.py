"""`python -m benchmarks.resident SOCKET`: pulls what it is told on standard input, politely, as an agent that is up does.

An agent is there before a pod comes; a command that had to start first would cost the pod's pull its own start. It prints
a line when it is ready to be told, and one after each image; an image that fails ends it with the reason.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from imageprepull.cli.start import raise_file_limit, start_workers

if TYPE_CHECKING:
    from imageprepull.unpacking.workers import Workers


def say(word: str) -> None:
    """To whoever started it."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


async def serve(address: str, workers: Workers | None) -> None:
    """Until the end of standard input."""
    # Only now: grpc and whatever else has threads comes after the workers' fork.
    from imageprepull.oci.platform import Platform  # noqa: PLC0415
    from imageprepull.oci.reference import Reference  # noqa: PLC0415
    from imageprepull.pulling.durability import read_boot_id  # noqa: PLC0415
    from imageprepull.pulling.processes import process_lease_labels  # noqa: PLC0415
    from imageprepull.pulling.progress import ImageProgress  # noqa: PLC0415
    from imageprepull.pulling.puller import Puller  # noqa: PLC0415
    from imageprepull.pulling.request import PullRequest  # noqa: PLC0415
    from imageprepull.registry.client import RegistryClient  # noqa: PLC0415
    from imageprepull.registry.hosts import HostsConfig  # noqa: PLC0415
    from imageprepull.runtime.connection import connect  # noqa: PLC0415
    from imageprepull.runtime.discovery import discover  # noqa: PLC0415
    from imageprepull.telemetry.logs import configure  # noqa: PLC0415

    configure(level=logging.WARNING)
    loop = asyncio.get_running_loop()
    async with connect(address) as containerd:
        runtime = await discover(containerd)
        plugins = await containerd.introspection.plugins(["type==io.containerd.snapshotter.v1"])
        root = Path(next(found.exports["root"] for found in plugins if found.id == runtime.snapshotter))
        hosts = HostsConfig([Path(folder) for folder in (runtime.registry_config_path or "").split(":")])
        async with (
            RegistryClient(hosts) as registry,
            Puller(
                containerd,
                registry,
                root.parent / "imageprepull-spool",
                snapshotter_root=root,
                content_root=Path(runtime.content_root) if runtime.content_root else None,
                workers=workers,
                path="fast",
            ) as puller,
        ):
            say("ready")
            while line := await loop.run_in_executor(None, sys.stdin.readline):
                request = PullRequest(
                    reference=Reference.parse(line.strip()),
                    platform=Platform.host(),
                    snapshotter=runtime.snapshotter,
                    lease_labels=process_lease_labels("bench", read_boot_id()),
                    keep_lease_on_failure=True,
                    urgent=False,
                )
                await puller.pull(request, ImageProgress(line.strip()))
                say("pulled")


if __name__ == "__main__":
    unpackers, _ = start_workers()
    raise_file_limit()
    asyncio.run(serve(sys.argv[1], unpackers))
