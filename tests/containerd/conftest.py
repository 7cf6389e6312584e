"""Real runtimes for the tests of this folder: Debian's containerd 1.6 and the testbed's 2.4, and a real registry.

Daemons live as long as the session; every test gets an empty namespace and must leave no lease, ingest or active
snapshot behind, which the `containerd` fixture checks at its end.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from imageprepull.pulling.given_tags import GIVEN
from imageprepull.pulling.labels import LEASE_IMAGE
from imageprepull.runtime.connection import Containerd, connect
from imageprepull.runtime.errors import TimedOut
from imageprepull.runtime.leases import Leases
from imageprepull.runtime.snapshots import SnapshotKind
from imageprepull.unpacking.messages import Settings
from imageprepull.unpacking.workers import Workers
from tests.testbed.daemon import ContainerdDaemon, DockerRegistry, containerd_daemon, docker_registry
from tests.testbed.faulty_registry import FaultyRegistry
from tests.unit.unpacking_zygotes import zygote

VERSIONS = ("1.6", "2.4")
SNAPSHOTTER = "overlayfs"
# A shell that runs us in the background has us ignore it, and every process that we start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# What is not named test_ would say of a failed assertion only that there was one.
pytest.register_assert_rewrite("tests.containerd.pull_bench")


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What a pull must not leave behind, by name."""

    leases: list[str] = field(default_factory=list)
    ingests: list[str] = field(default_factory=list)
    active_snapshots: list[str] = field(default_factory=list)


async def leftovers(containerd: Containerd) -> Leftovers:
    """Also what is remembered of a tag, when the image that was given it is not there."""
    there = {record.target.digest for record in await containerd.images.list()}
    return Leftovers(
        [
            lease.id
            for lease in await containerd.leases.list()
            if GIVEN not in lease.labels or lease.labels[LEASE_IMAGE] not in there
        ],
        [ingest.ref for ingest in await containerd.content.list_ingests()],
        [
            found.name
            for found in await containerd.snapshots.list(SNAPSHOTTER)
            if found.kind is not SnapshotKind.COMMITTED
        ],
    )


async def collect_garbage(containerd: Containerd) -> None:
    """Run a collection and wait for it: the synchronous deletion of a lease does."""
    await containerd.leases.create("collect-garbage", {}, 60)
    await containerd.leases.delete("collect-garbage", sync=True)


def fail_collections(patch: pytest.MonkeyPatch) -> None:
    """A lease that is deleted goes, but the collection that was to be waited for does not come to an end."""
    plain = Leases.delete

    async def delete(self: Leases, id: str, *, sync: bool = False) -> None:  # noqa: A002
        await plain(self, id)
        if sync:
            raise TimedOut(f"delete lease {id}", "no answer")

    patch.setattr(Leases, "delete", delete)


async def wipe(containerd: Containerd) -> None:
    """Empty the namespace."""
    for lease in await containerd.leases.list():
        await containerd.leases.delete(lease.id)
    for ref in (await leftovers(containerd)).ingests:
        await containerd.content.abort(ref)
    for record in await containerd.images.list():
        await containerd.images.delete(record.name)
    await collect_garbage(containerd)


@pytest.fixture(scope="session", params=VERSIONS)
def daemon(request: pytest.FixtureRequest) -> Iterator[ContainerdDaemon]:
    """A running containerd of each version in turn."""
    with containerd_daemon(request.param) as running:
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the end of the daemon's log beside the report of a test that failed."""
    report = yield
    daemon = getattr(item, "funcargs", {}).get("daemon")
    if report.failed and isinstance(daemon, ContainerdDaemon):
        report.sections.append((f"log of containerd {daemon.version}", daemon.log_tail()))
    return report


@pytest.fixture
async def containerd(daemon: ContainerdDaemon) -> AsyncIterator[Containerd]:
    """A connection to each version in turn; the test must leave nothing half done."""
    if not daemon.running:  # a test that killed it has failed before it could start it again
        daemon.start()
    async with connect(daemon.address) as connection:
        try:
            yield connection
            assert await leftovers(connection) == Leftovers()
        finally:
            await wipe(connection)
            # What a defect has left in one test's spool is not every later test's failure.
            shutil.rmtree(daemon.folder / "spool", ignore_errors=True)


@pytest.fixture
async def leased(containerd: Containerd) -> AsyncIterator[Containerd]:
    """The same under a lease: without one the daemon may collect what a test makes between two calls."""
    await containerd.leases.create("test", {}, 600)
    yield containerd.with_lease("test")
    await containerd.leases.delete("test")


@pytest.fixture
async def assert_clean(containerd: Containerd) -> Callable[[], Awaitable[None]]:
    """For a look in the middle of a test."""

    async def look() -> None:
        assert await leftovers(containerd) == Leftovers()

    return look


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """The parent of confined workers; who kills it must have one of their own."""
    with zygote(Settings()) as workers:
        yield workers


@pytest.fixture(params=["fast", "portable"])
def path(request: pytest.FixtureRequest, workers: Workers) -> dict[str, Any]:
    """Options of a puller for each path."""
    return {"path": "fast", "workers": workers} if request.param == "fast" else {"path": "portable"}


@pytest.fixture(scope="session")
def registry() -> Iterator[DockerRegistry]:
    """A real registry on a free loopback port, shared by the session: use a repository of your own."""
    if shutil.which("docker-registry") is None:
        pytest.fail("docker-registry is not installed: python -m tests.testbed packages")
    with docker_registry() as running:
        yield running


@pytest.fixture
async def fake() -> AsyncIterator[FaultyRegistry]:
    async with FaultyRegistry() as registry:
        yield registry
