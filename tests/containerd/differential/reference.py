"""Chains through containerd itself, sequentially as a pull of its own does it, on both versions at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from imageprepull.oci.descriptor import Descriptor
from imageprepull.runtime.connection import Containerd, connect
from imageprepull.runtime.errors import RuntimeFault
from imageprepull.runtime.mounts import Mount
from tests.containerd.differential.layers import Chain, Layer, Outcome
from tests.containerd.differential.trees import scan
from tests.testbed.daemon import ContainerdDaemon, binary_of, disk, run, spawn

SNAPSHOTTER = "overlayfs"
VERSIONS = ("1.6", "2.4")
_CHAINS_PER_LEASE = 40


class GoDaemon(ContainerdDaemon):
    """A daemon that decompresses by itself: whether unpigz or igzip are installed must not decide the outcome."""

    def start(self, *, patience: float = 20.0) -> None:
        self.folder.mkdir(exist_ok=True)
        config = self.folder / "config.toml"
        config.write_text(self._config())
        self.process = spawn(
            [
                "env", "CONTAINERD_DISABLE_PIGZ=1", "CONTAINERD_DISABLE_IGZIP=1",
                binary_of(self.version), "--config", config, "--log-level", "error",
                "--address", self.socket, "--root", self.root, "--state", self.folder / "state",
            ],
            self.log,
        )  # fmt: skip
        self._wait(patience)


@dataclass
class Runtime:
    """A connection, and the lease that holds what the last chains left."""

    version: str
    containerd: Containerd
    numbers: Iterator[int]
    lease: str = ""
    chains: int = 0

    async def apply(self, chain: Chain, directories: list[Path] | None = None) -> list[Outcome]:
        """What became of each layer; ends with the first that was refused.

        `directories` gets the layers' directories, which last until some chains later.
        """
        leased = await self._leased()
        since = time.time()
        outcomes: list[Outcome] = []
        parent = ""
        for layer in chain:
            key, name = f"key-{next(self.numbers)}", f"layer-{next(self.numbers)}"
            descriptor = await self._put(leased, layer)
            mounts = await leased.snapshots.prepare(SNAPSHOTTER, key, parent, {})
            outcome = await _apply(leased, descriptor, mounts, since)
            outcomes.append(outcome)
            if directories is not None:
                directories.append(directory_of(mounts))
            if not outcome.accepted:
                break
            if len(outcomes) < len(chain):
                await leased.snapshots.commit(SNAPSHOTTER, name, key, {})
                parent = name
        return outcomes

    async def _leased(self) -> Containerd:
        """Everything of a chain hangs on the lease: one deletion for many chains, and a collection."""
        if not self.lease or self.chains == _CHAINS_PER_LEASE:
            if self.lease:
                await self.containerd.leases.delete(self.lease, sync=True)
            self.lease, self.chains = f"lease-{next(self.numbers)}", 0
            await self.containerd.leases.create(self.lease, {}, 3600)
        self.chains += 1
        return self.containerd.with_lease(self.lease)

    async def _put(self, leased: Containerd, layer: Layer) -> Descriptor:
        descriptor = Descriptor(layer.media_type, layer.digest, len(layer.blob))
        await leased.content.put(f"put-{next(self.numbers)}", descriptor, layer.blob, {})
        return descriptor


async def _apply(leased: Containerd, descriptor: Descriptor, mounts: list[Mount], since: float) -> Outcome:
    try:
        applied = await leased.diff.apply(descriptor, mounts, deadline=60)
    except RuntimeFault as fault:
        return Outcome(refusal=fault.detail, reason=fault.reason)
    return Outcome(scan(directory_of(mounts), since), applied.digest, applied.size)


def directory_of(mounts: list[Mount]) -> Path:
    """Where a prepared snapshot's files are."""
    (mount,) = mounts
    for option in mount.options:
        if option.startswith("upperdir="):
            return Path(option.removeprefix("upperdir="))
    return Path(mount.source)


class Reference:
    """Both runtimes, for tests that are not coroutines. One event loop for the whole session."""

    def __init__(self, folder: Path, runner: asyncio.Runner, runtimes: list[Runtime]) -> None:
        self.folder = folder
        self._runner = runner
        self.runtimes = runtimes

    def apply(self, chain: Chain) -> dict[str, list[Outcome]]:
        """The outcome of each layer, by version."""
        return self._runner.run(self._apply(chain))

    def lay_out(self, chain: Chain) -> dict[str, list[Path]]:
        """The directories of the layers, from the bottom up, by version; for a chain that nobody refuses."""
        found: dict[str, list[Path]] = {}
        for runtime in self.runtimes:
            outcomes = self._runner.run(runtime.apply(chain, found.setdefault(runtime.version, [])))
            assert outcomes[-1].accepted, outcomes[-1].refusal
        return found

    async def _apply(self, chain: Chain) -> dict[str, list[Outcome]]:
        outcomes = await asyncio.gather(*(runtime.apply(chain) for runtime in self.runtimes))
        return {runtime.version: outcome for runtime, outcome in zip(self.runtimes, outcomes, strict=True)}


@contextlib.asynccontextmanager
async def _connected(daemons: list[ContainerdDaemon]) -> AsyncIterator[list[Runtime]]:
    async with contextlib.AsyncExitStack() as stack:
        numbers = itertools.count(1)
        yield [
            Runtime(daemon.version, await stack.enter_async_context(connect(daemon.address)), numbers)
            for daemon in daemons
        ]


def remount(folder: Path) -> None:
    """Make the disk one for this: small trees come and go, reading must not change what is compared, and nothing has
    to survive a power cut.

    A journal, as ext4 looks at each lately deleted inode before it takes a new one where it has none.
    """
    image = folder.with_name("disk")
    run("umount", str(folder))
    run("tune2fs", "-O", "has_journal", str(image))
    run("mount", "-o", "loop,noatime,nobarrier", str(image), str(folder))


@contextlib.contextmanager
def reference() -> Iterator[Reference]:
    """Both daemons on one file system, which other things may be compared on, too."""
    with disk() as folder, contextlib.ExitStack() as stack:
        remount(folder)
        daemons: list[ContainerdDaemon] = []
        for version in VERSIONS:
            daemon = GoDaemon(version, folder / version, cri=False)
            stack.callback(daemon.stop)
            daemon.start()
            daemons.append(daemon)
        runner = stack.enter_context(asyncio.Runner())
        connection = _connected(daemons)
        runtimes = runner.run(connection.__aenter__())
        try:
            yield Reference(folder, runner, runtimes)
        finally:
            runner.run(connection.__aexit__(None, None, None))
