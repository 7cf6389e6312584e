"""One call of `imageprepull pull`: looks what is present, and fetches the rest; pull.py prints what comes of it.

What talks to registries is imported only where an image is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprepull.oci.platform import Platform
from imageprepull.oci.reference import Reference

if TYPE_CHECKING:
    from imageprepull.cli.pull_display import Display, Outcome
    from imageprepull.pulling.puller import Puller
    from imageprepull.runtime.connection import Containerd
    from imageprepull.unpacking.workers import Workers

OWNER = "cli"


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that could not be pulled."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Found:
    """An image that was there: an `Outcome` without any work."""

    digest: str
    layers: tuple[Any, ...]
    seconds_ready: float = 0.0
    seconds_kept: float | None = 0.0
    seconds_done: float | None = 0.0
    bytes_downloaded: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """Where missing images go, and how registries are found."""

    snapshotter: str
    root: Path
    content_root: Path | None
    hosts_dirs: list[str]
    discards: bool
    """The runtime drops the blobs of unpacked layers: keeping them would work against its owner."""


class Session:
    """One call of the command, once its arguments are understood."""

    def __init__(
        self,
        args: argparse.Namespace,
        references: list[Reference],
        platform: Platform,
        workers: Workers | None,
    ) -> None:
        """Nothing is asked yet. The session closes the workers."""
        self._args = args
        self._workers = workers
        self._references = references
        self._platform = platform
        self._results: dict[int, Outcome | Failure] = {}

    async def run(self) -> list[Outcome | Failure]:
        """One result per image, in the order given."""
        from imageprepull.runtime.connection import connect  # noqa: PLC0415
        from imageprepull.runtime.errors import RuntimeFault  # noqa: PLC0415

        try:
            async with connect(self._args.address, namespace=self._args.namespace) as containerd:
                await self._run(containerd)
        except RuntimeFault as fault:
            for number in range(len(self._references)):
                self._results.setdefault(number, Failure(fault.reason, str(fault)))
        finally:
            if self._workers is not None:
                await self._workers.close()
        return [self._results[number] for number in range(len(self._references))]

    async def _run(self, containerd: Containerd) -> None:
        from imageprepull.runtime.discovery import discover  # noqa: PLC0415
        from imageprepull.runtime.errors import Unsupported  # noqa: PLC0415

        runtime = await discover(containerd)
        snapshotter = self._args.snapshotter or runtime.snapshotter
        hosts = self._args.hosts_dir or runtime.registry_config_path or ""
        root = await _root(containerd, snapshotter)
        digests = await self._look(containerd, snapshotter, root)
        missing = [number for number in range(len(self._references)) if number not in self._results]
        if missing:
            if root is None:
                raise Unsupported(
                    f"look up the snapshotter {snapshotter!r}",
                    "the runtime does not offer it, or not its folder",
                )
            target = Target(
                snapshotter,
                root,
                Path(runtime.content_root) if runtime.content_root else None,
                hosts.split(":"),
                bool(runtime.discard_unpacked_layers),
            )
            await self._fetch(containerd, target, missing, digests)

    async def _look(self, containerd: Containerd, snapshotter: str, root: Path | None) -> dict[int, str]:
        """Settle what is present; the digests of images that lack nothing but their pin."""
        from imageprepull.pulling.chain_folders import ChainFolders  # noqa: PLC0415
        from imageprepull.pulling.durability import read_boot_id  # noqa: PLC0415
        from imageprepull.pulling.presence import presence  # noqa: PLC0415
        from imageprepull.pulling.processes import process_lease_labels  # noqa: PLC0415
        from imageprepull.pulling.progress import LayerProgress  # noqa: PLC0415
        from imageprepull.resources.nodeprepull import LayerState  # noqa: PLC0415

        digests: dict[int, str] = {}
        boot_id = read_boot_id()
        folders = ChainFolders(root) if root is not None else None
        for number, reference in enumerate(self._references):
            if self._args.always and reference.digest is None:
                continue
            found = await presence(
                containerd,
                reference,
                None,
                self._platform,
                snapshotter,
                self._args.pin,
                boot_id=boot_id,
                folders=folders,
                lease_labels=process_lease_labels(OWNER, boot_id),
            )
            if found.complete:
                digests[number] = found.digest
            # A pin of agents is to become this person's: only the records are written for it.
            if found.present and not (self._args.pin and found.our_pin):
                layers = tuple(LayerProgress.of(layer, LayerState.EXISTS) for layer in found.layers)
                self._results[number] = Found(found.digest, layers)
        return digests

    async def _fetch(
        self,
        containerd: Containerd,
        target: Target,
        missing: list[int],
        digests: dict[int, str],
    ) -> None:
        from imageprepull.pulling.durability import read_boot_id  # noqa: PLC0415
        from imageprepull.pulling.private_folder import private_folder  # noqa: PLC0415
        from imageprepull.pulling.processes import discard_dead, process_lease_labels  # noqa: PLC0415
        from imageprepull.pulling.puller import Puller  # noqa: PLC0415
        from imageprepull.pulling.unsynced import remove_unsynced  # noqa: PLC0415
        from imageprepull.registry.client import RegistryClient  # noqa: PLC0415
        from imageprepull.registry.hosts import HostsConfig  # noqa: PLC0415
        from imageprepull.telemetry.logs import configure  # noqa: PLC0415

        args = self._args
        configure(level=logging.INFO if args.verbose else logging.CRITICAL)
        try:
            boot_id = read_boot_id()
            await discard_dead(containerd, OWNER, boot_id)
            # No agent may ever run here, and a pull cannot stand on such layers.
            await remove_unsynced(
                containerd,
                target.snapshotter,
                boot_id,
                process_lease_labels(OWNER, boot_id),
            )
            credentials = self._credentials()
            folders = [Path(folder) for folder in target.hosts_dirs if folder]
            hosts = HostsConfig(folders) if folders else HostsConfig()
            with contextlib.ExitStack() as stack:
                spool = stack.enter_context(
                    private_folder(args.spool_dir or target.root.parent / "imageprepull-spool")
                )
                display = stack.enter_context(self._display())
                async with (
                    RegistryClient(hosts, credentials, stall_timeout=args.stall_timeout) as registry,
                    Puller(
                        containerd,
                        registry,
                        spool,
                        snapshotter_root=target.root,
                        content_root=target.content_root,
                        parallel_downloads=args.parallel_downloads,
                        workers=self._workers,
                        path=args.path,
                    ) as puller,
                    asyncio.TaskGroup() as group,
                ):
                    for number in missing:
                        group.create_task(self._pull(puller, display, number, target, digests.get(number)))
        except (OSError, ValueError) as error:  # the files that the command was told to use.
            for number in missing:
                self._results.setdefault(number, Failure("LocalFileError", str(error)))

    async def _pull(
        self, puller: Puller, display: Display, number: int, target: Target, digest: str | None
    ) -> None:
        from imageprepull.pulling.durability import read_boot_id  # noqa: PLC0415
        from imageprepull.pulling.errors import PullError  # noqa: PLC0415
        from imageprepull.pulling.processes import process_lease_labels  # noqa: PLC0415
        from imageprepull.pulling.progress import ImageProgress  # noqa: PLC0415
        from imageprepull.pulling.request import PullRequest  # noqa: PLC0415

        args = self._args
        request = PullRequest(
            reference=self._references[number],
            platform=self._platform,
            snapshotter=target.snapshotter,
            digest=digest,
            pin=args.pin,
            by_hand=True,
            keep_blobs="never" if target.discards else args.keep_blobs,
            sync=args.sync,
            lease_labels=process_lease_labels(OWNER, read_boot_id()),
            urgent=not args.polite,
            always=args.always,
        )
        progress = ImageProgress(reference=args.images[number])
        display.watch(progress)
        try:
            self._results[number] = await puller.pull(request, progress, until=args.until)
        except PullError as error:
            self._results[number] = Failure(error.reason, error.message)

    def _credentials(self) -> Any:
        from imageprepull.registry.credentials import DockerConfig, NoCredentials  # noqa: PLC0415

        return DockerConfig.load(self._args.docker_config) if self._args.docker_config else NoCredentials()

    def _display(self) -> Display:
        from imageprepull.cli.pull_display import Bars, Lines, Silence  # noqa: PLC0415

        if self._args.output == "json":
            return Silence()
        if sys.stdout.isatty():
            from rich.console import Console  # noqa: PLC0415

            return Bars(Console())
        return Lines(lambda line: print(line, flush=True))


async def _root(containerd: Containerd, snapshotter: str) -> Path | None:
    """The snapshotter's folder, as the runtime names it; None where it names none."""
    plugins = await containerd.introspection.plugins(["type==io.containerd.snapshotter.v1"])
    chosen = next((plugin for plugin in plugins if plugin.id == snapshotter), None)
    folder = chosen.exports.get("root") if chosen is not None else None
    return Path(folder) if folder else None
