"""The machine that faults happen on: a daemon on a disk of its own, and what is left on it."""

from __future__ import annotations

import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from imageprepull.runtime.connection import Containerd, connect
from tests.containerd.conftest import SNAPSHOTTER, wipe
from tests.containerd.differential.layers import Layer
from tests.containerd.differential.reference import Runtime, remount
from tests.containerd.differential.trees import Tree
from tests.containerd.pull_bench import answering
from tests.testbed.daemon import ContainerdDaemon, disk
from tests.testbed.images import BuiltImage


@dataclass
class Machine:
    """`boot`: a file with the boot's ID, so that a test may start another one."""

    daemon: ContainerdDaemon
    reference: list[Tree] = field(default_factory=list, repr=False)

    @property
    def folder(self) -> Path:
        return self.daemon.folder

    @property
    def spool(self) -> Path:
        return self.daemon.root / "imageprepull"

    @property
    def blobs(self) -> Path:
        return self.daemon.root / "io.containerd.content.v1.content/blobs/sha256"

    @property
    def snapshots(self) -> Path:
        return self.daemon.root / f"io.containerd.snapshotter.v1.{SNAPSHOTTER}/snapshots"

    @property
    def ingests(self) -> Path:
        return self.daemon.root / "io.containerd.content.v1.content/ingest"

    @property
    def boot(self) -> Path:
        return self.folder / "boot_id"

    def reboot(self) -> None:
        """Say that the machine has started anew."""
        self.boot.write_text(f"{uuid.uuid4()}\n")

    def start(self) -> None:
        self.daemon.start()
        assert self.daemon.process is not None
        (self.folder / "containerd.pid").write_text(str(self.daemon.process.pid))

    def spooled(self) -> list[str]:
        """Files of the spool."""
        return sorted(path.name for path in self.spool.iterdir()) if self.spool.exists() else []


@contextlib.contextmanager
def machine(version: str) -> Iterator[Machine]:
    """A running daemon whose files keep the times they were given: reading must not change what is compared."""
    with disk(4) as folder:
        remount(folder)
        # Not the mount point itself, so that its size does not change with lost+found.
        found = Machine(ContainerdDaemon(version, folder))
        found.reboot()
        found.start()
        try:
            yield found
        finally:
            found.daemon.stop()


@contextlib.asynccontextmanager
async def connected(machine: Machine) -> AsyncIterator[Containerd]:
    async with connect(machine.daemon.address) as containerd:
        await answering(containerd)
        yield containerd


async def lay_out_reference(machine: Machine, image: BuiltImage) -> None:
    """Let the daemon apply the layers one after the other, in a namespace of its own, and remember the trees."""
    async with connect(machine.daemon.address, namespace="reference") as containerd:
        runtime = Runtime(machine.daemon.version, containerd, itertools.count(1))
        chain = tuple(Layer(layer.blob.read(), layer.blob.media_type) for layer in image.layers)
        outcomes = await runtime.apply(chain)
        assert [outcome.refusal for outcome in outcomes] == [""] * len(chain)
        machine.reference = [outcome.tree for outcome in outcomes]
        await containerd.leases.delete(runtime.lease, sync=True)
        for found in await containerd.snapshots.list(SNAPSHOTTER):
            await containerd.snapshots.remove(SNAPSHOTTER, found.name)
        await wipe(containerd)
