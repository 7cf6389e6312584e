"""`imageprepull pull IMAGE…`: into a running containerd, without any Kubernetes.

An image that is present is found with the runtime's answers alone: what talks to registries is imported only when
one is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprepull.cli.start import raise_file_limit, start_workers
from imageprepull.oci.platform import InvalidPlatform, Platform
from imageprepull.oci.reference import InvalidReference, Reference

if TYPE_CHECKING:
    from imageprepull.cli.pull_display import Display, Outcome
    from imageprepull.pulling.puller import Puller
    from imageprepull.runtime.connection import Containerd
    from imageprepull.unpacking.workers import Workers

DEFAULT_ADDRESS = "unix:///run/containerd/containerd.sock"
OWNER = "cli"
FAILED = 1
USAGE = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `imageprepull pull` understands."""
    add = parser.add_argument
    add(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="reference, as in a pod: nginx, ghcr.io/a/b:tag, a/b@sha256:…",
    )
    add("--address", default=DEFAULT_ADDRESS, help="containerd's socket (default: %(default)s)")
    add("--namespace", default="k8s.io", help="containerd namespace (default: %(default)s, the kubelet's)")
    add("--snapshotter", default="", help="where to unpack (default: the one the CRI uses)")
    add("--platform", default="", help="for example linux/arm64 (default: this machine's)")
    add(
        "--hosts-dir",
        default="",
        help="folders of hosts.toml files, joined by ':' (default: the runtime's own)",
    )
    add("--docker-config", type=Path, metavar="FILE", help="credentials in docker's config.json format")
    add("--always", action="store_true", help="ask the registry what the tag means even if it is present")
    add("--polite", action="store_true", help="let what else runs on this machine go first")
    add("--pin", action="store_true", help="keep the image from the kubelet's garbage collection")
    add(
        "--keep-blobs",
        choices=("after", "before", "never"),
        default="after",
        help="the compressed layers: kept, or dropped when they are unpacked (default: %(default)s)",
    )
    add(
        "--sync",
        choices=("background", "before"),
        default="background",
        help="write the layers to disk after or before the image becomes visible (default: %(default)s)",
    )
    add(
        "--until",
        choices=("ready", "done"),
        default="done",
        help="return when the image is visible, or when it is on disk too (default: %(default)s)",
    )
    add(
        "--path",
        choices=("auto", "fast", "portable"),
        default="auto",
        help="unpack here while layers download, or let containerd do it; fast never falls back (default: %(default)s)",
    )
    add("--output", choices=("text", "json"), default="text", help="(default: %(default)s)")
    add("--parallel-downloads", type=positive, default=8, metavar="N", help="(default: %(default)s)")
    add(
        "--stall-timeout",
        type=positive,
        default=180,
        metavar="SECONDS",
        help="give a connection up after so long without a byte (default: %(default)s)",
    )
    add("--verbose", action="store_true", help="log retries and the like on stderr")
    add("--spool-dir", type=Path, metavar="DIR", help="(default: beside the snapshotter's folder)")


def positive(text: str) -> int:
    """An argument that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


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


def run(args: argparse.Namespace) -> int:
    """Pull, print, and say by the exit code: 0 everything is there, 1 something failed, 2 usage."""
    try:
        references = [Reference.parse(text) for text in args.images]
        platform = Platform.parse(args.platform) if args.platform else Platform.host()
    except (InvalidReference, InvalidPlatform) as error:
        print(f"imageprepull pull: {error}", file=sys.stderr)
        return USAGE
    workers, _ = start_workers() if args.path != "portable" else (None, "")
    raise_file_limit()
    try:
        results = asyncio.run(_interruptible(Session(args, references, platform, workers).run()))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("imageprepull pull: interrupted; nothing unfinished was left behind", file=sys.stderr)
        return FAILED
    return report(args, results)


def report(args: argparse.Namespace, results: list[Outcome | Failure]) -> int:
    """Print what became of each image: JSON gives one object for one image and a list for several."""
    from imageprepull.cli.pull_display import document, failure_document, summary  # noqa: PLC0415

    documents = []
    for image, result in zip(args.images, results, strict=True):
        if isinstance(result, Failure):
            print(f"imageprepull pull: {image}: {result.message} ({result.reason})", file=sys.stderr)
            documents.append(failure_document(image, result.reason, result.message))
            continue
        documents.append(document(image, result))
        if args.output == "text":
            print(summary(image, result))
    if args.output == "json":
        print(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2))
    return FAILED if any(isinstance(result, Failure) for result in results) else 0


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


async def _interruptible(work: Any) -> Any:
    """Run `work`; SIGTERM cancels it as SIGINT does (asyncio.run sees to that one)."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await work
