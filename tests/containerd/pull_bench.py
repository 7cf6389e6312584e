"""What the tests of the pull share: a puller over a real daemon, requests, and the question whether all is clean."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from imageprepull.oci.platform import Platform
from imageprepull.oci.reference import Reference
from imageprepull.pulling.labels import LEASE
from imageprepull.pulling.leases import LeaseTerms, terms_of
from imageprepull.pulling.presence import Presence, presence
from imageprepull.pulling.progress import ImageProgress
from imageprepull.pulling.puller import Puller
from imageprepull.pulling.request import PullOutcome, PullRequest, Until
from imageprepull.pulling.settings import PullSettings
from imageprepull.pulling.sweep import Swept, sweep
from imageprepull.registry.client import RegistryClient
from imageprepull.registry.hosts import HostsConfig
from imageprepull.resources.nodeprepull import LayerState
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import Unavailable
from tests.containerd.conftest import SNAPSHOTTER, Leftovers, leftovers
from tests.testbed import binaries
from tests.testbed.daemon import ContainerdDaemon, DockerRegistry
from tests.testbed.faulty_registry import FaultyRegistry
from tests.testbed.images import BuiltImage, BuiltIndex, LayerSpec, push

AMD64 = Platform("linux", "amd64")
BOOT = "the-boot-of-this-test"
OWNER = "test-node"
FAST = PullSettings(
    attempts_without_progress=2,
    backoff_base=0.01,
    backoff_cap=0.05,
    visible_timeout=20,
    cleanup_timeout=20,
    write_batch=64 * 1024,
    checkpoint=256 * 1024,
)


@dataclass
class Watched(ImageProgress):
    """Progress that remembers the order in which things happened: (layer number, state)."""

    history: list[tuple[int, LayerState]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.on_change = self._note

    def _note(self) -> None:
        last: dict[int, LayerState] = dict(self.history)
        for number, layer in enumerate(self.layers):
            if last.get(number) != layer.state:
                self.history.append((number, layer.state))
        self.changed.set()

    def states(self) -> list[str]:
        return [str(layer.state) for layer in self.layers]

    async def until(self, true: Callable[[Watched], bool], seconds: float = 60) -> None:
        """Wait until the record says so."""
        async with asyncio.timeout(seconds):
            while not true(self):
                self.changed.clear()
                await self.changed.wait()


@dataclass
class PullBench:
    """A puller as the agent or the CLI would have it."""

    containerd: Containerd
    client: RegistryClient
    puller: Puller
    spool: Path
    daemon: ContainerdDaemon

    def request(self, reference: str, **changes: Any) -> PullRequest:
        request = PullRequest(
            reference=Reference.parse(reference),
            platform=AMD64,
            snapshotter=SNAPSHOTTER,
            lease_labels={LEASE: OWNER},
        )
        return replace(request, **changes)

    async def pull(
        self, reference: str, progress: ImageProgress | None = None, *, until: Until = "done", **changes: Any
    ) -> PullOutcome:
        request = self.request(reference, **changes)
        return await self.puller.pull(request, progress or Watched(reference), until=until)

    async def presence(
        self, reference: str, digest: str | None = None, *, pin: bool = False, keep_layers: bool = False
    ) -> Presence:
        return await presence(
            self.containerd,
            Reference.parse(reference),
            digest,
            AMD64,
            SNAPSHOTTER,
            pin,
            boot_id=BOOT,
            folders=self.puller.folders,
            keep_layers=keep_layers,
        )

    async def sweep(self, wanted: Collection[str] | None = (), *, boot_id: str = BOOT) -> Swept:
        """As an agent at its start."""

        def lease_of(digest: str) -> LeaseTerms:
            return terms_of(self.request("any.registry/image:1", keep_lease_on_failure=True), digest, 3600)

        return await sweep(
            self.containerd,
            owner=OWNER,
            snapshotter=SNAPSHOTTER,
            writes=self.puller.writes,
            spool_dir=self.spool,
            boot_id=boot_id,
            wanted=wanted,
            lease_of=lease_of,
        )

    def spooled(self) -> list[str]:
        return sorted(path.name for path in self.spool.iterdir()) if self.spool.exists() else []

    @asynccontextmanager
    async def held(
        self, *, content: Iterable[str] = (), snapshots: Iterable[str] = ()
    ) -> AsyncIterator[None]:
        """Nothing of these is collected because what named it is gone; what is deleted itself goes.

        After the block, what nothing else holds has been collected.
        """
        leases = self.containerd.leases
        await leases.create("held", {}, 600)
        for kind, names in (("content", content), (f"snapshots/{SNAPSHOTTER}", snapshots)):
            for name in names:
                await leases.add_resource("held", kind, name)
        yield
        await leases.delete("held", sync=True)

    async def assert_clean(self) -> None:
        """No lease, ingest, active snapshot or spool file."""
        assert await leftovers(self.containerd) == Leftovers()
        assert self.spooled() == [], self.spooled()


@asynccontextmanager
async def pull_bench(
    containerd: Containerd,
    daemon: ContainerdDaemon,
    *,
    settings: PullSettings = FAST,
    stall: float = 10,
    root: Path | None = None,
    boot_id: str = BOOT,
    **options: Any,
) -> AsyncIterator[PullBench]:
    """`options` are more of `Puller`'s: its workers, its path. Without workers the path is the portable one.

    `root`: the snapshotter's, as the puller sees it.
    """
    spool = daemon.folder / "spool"
    root = root or daemon.root / f"io.containerd.snapshotter.v1.{SNAPSHOTTER}"
    async with (
        RegistryClient(
            HostsConfig([daemon.certs_d]), stall_timeout=stall, attempts=2, backoff=0.01
        ) as client,
        Puller(
            containerd,
            client,
            spool,
            snapshotter_root=root,
            content_root=daemon.root / "io.containerd.content.v1.content",
            boot_id=boot_id,
            settings=settings,
            **options,
        ) as puller,
    ):
        yield PullBench(containerd, client, puller, spool, daemon)


def serve(registry: DockerRegistry, image: BuiltImage | BuiltIndex, repository: str, tag: str = "1") -> str:
    """Push to the real registry; the reference."""
    push(image, registry.url, repository, tag)
    return f"{registry.host}/{repository}:{tag}"


def fake_serve(registry: FaultyRegistry, image: BuiltImage | BuiltIndex, tag: str = "1") -> str:
    """Put an image into the fake registry; the reference."""
    top = image.index if isinstance(image, BuiltIndex) else image.manifest
    for built in image.images if isinstance(image, BuiltIndex) else (image,):
        registry.manifests[built.manifest.digest] = (built.manifest.media_type, built.manifest.read())
        for blob in (built.config, *(layer.blob for layer in built.layers)):
            registry.blobs[blob.digest] = blob.read()
    registry.manifests[top.digest] = (top.media_type, top.read())
    registry.manifests[tag] = registry.manifests[top.digest]
    return f"{registry.address}/fake/image:{tag}"


def layer(name: str, size: int = 2000, **options: Any) -> LayerSpec:
    """A layer with one file that says whose it is; `size` bytes that do not compress well."""
    data = "".join(f"{name} {number * 2654435761 % 4294967296:x}\n" for number in range(size // 16))
    return LayerSpec({f"layers/{name}": data.encode()}, **options)


# A daemon dies with the thread that started it (PR_SET_PDEATHSIG), and a loop's own threads die with the test.
KEEPER = ThreadPoolExecutor(1)


async def start_daemon(daemon: ContainerdDaemon) -> None:
    """Start a killed daemon again while the loop goes on."""
    await asyncio.get_running_loop().run_in_executor(KEEPER, daemon.start)


async def answering(containerd: Containerd) -> None:
    """Wait for the connection to heal: the agent's backoff does that for the product."""
    async with asyncio.timeout(60):
        while True:
            try:
                await containerd.ask_version()
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                return


async def pull_as_the_kubelet(daemon: ContainerdDaemon, reference: str) -> None:
    """By the CRI: somebody else's pull."""
    endpoints = [f"--runtime-endpoint={daemon.address}", f"--image-endpoint={daemon.address}"]
    command = [str(binaries.path("crictl")), *endpoints, "--timeout=20s", "pull", reference]
    crictl = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        async with asyncio.timeout(60):
            _, said = await crictl.communicate()
    except asyncio.CancelledError:
        crictl.kill()
        await crictl.wait()
        raise
    assert crictl.returncode == 0, said.decode()
