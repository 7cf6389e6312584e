"""Consumers that follow a blob while it comes: what they see, when they must start anew, how long the file stays."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from imageprepull.oci.descriptor import OCI_LAYER, Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.oci.reference import Reference
from imageprepull.pulling.blobs import Spool, Wanted
from imageprepull.pulling.connection import Order
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.growing import Growing, SharedBlob, SpoolRestarted
from imageprepull.pulling.limiter import Limiter
from imageprepull.pulling.settings import PullSettings
from imageprepull.pulling.spool import SpoolFile
from imageprepull.registry.client import RegistryClient
from imageprepull.registry.hosts import HostsConfig
from imageprepull.runtime.errors import NotFound
from tests.testbed.faulty_registry import Fault
from tests.testbed.ranged_registry import RangedRegistry

RANGE = 256 * 1024
BODY = random.Random(4).randbytes(8 * RANGE + 77)
BLOB = Descriptor(OCI_LAYER, sha256_digest(BODY), len(BODY))
SETTINGS = PullSettings(
    backoff_base=0.001,
    backoff_cap=0.005,
    attempts_without_progress=2,
    range_size=RANGE,
    write_batch=64 * 1024,
    source_stall=0.5,
)


class Bench:
    """A spool over a fake registry."""

    def __init__(self, registry: RangedRegistry, client: RegistryClient, folder: Path) -> None:
        self.registry = registry
        self.folder = folder
        self.spool = Spool(client, folder, Limiter(8), SETTINGS, "boot")
        self.received = 0
        registry.blobs[BLOB.digest] = BODY

    def wanted(self, repository: str = "a/b", *, keep: bool = False) -> Wanted:
        return Wanted(
            reference=Reference.parse(f"{self.registry.address}/{repository}:1"),
            descriptor=BLOB,
            lease="lease",
            priority=0,
            owner="lease" if keep else "",
            advanced=lambda held: None,
            received=self._count,
        )

    def _count(self, host: str, count: int) -> None:
        self.received += count

    def left(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with (
        RangedRegistry() as registry,
        RegistryClient(HostsConfig([tmp_path / "certs.d"]), stall_timeout=1) as client,
    ):
        bench = Bench(registry, client, tmp_path / "spool")
        yield bench
        assert bench.left() == []
        assert bench.spool.in_use == frozenset()
        assert open_spools() == []


def open_spools() -> list[str]:
    targets = [str(fd.resolve()) for fd in Path("/proc/self/fd").iterdir()]
    return [target for target in targets if "/spool/" in target]


async def read_all(growing: Growing) -> bytes:
    """What a consumer sees that reads as far as it may."""
    seen = b""
    fd, frontier = growing.fd, growing.frontier
    while len(seen) < frontier.size:
        held = await frontier.beyond(len(seen))
        part = os.pread(fd, held - len(seen), len(seen))
        assert part, "bytes below the frontier are there"
        seen += part
    return seen


async def test_a_consumer_reads_while_the_rest_is_held_back(bench: Bench) -> None:
    release = asyncio.Event()
    bench.registry.faults[BLOB.digest] = [Fault(hold_after=100_000, release=release)]
    async with bench.spool.growing(bench.wanted()) as growing:
        assert await growing.frontier.beyond(0) > 0
        assert not growing.frontier.complete
        release.set()
        assert await read_all(growing) == BODY
        assert (await growing.verified()).read_bytes() == BODY
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(growing.fd, b"x")


async def test_ranges_that_come_out_of_order_show_when_the_gap_is_closed(bench: Bench) -> None:
    release = asyncio.Event()
    bench.registry.faults[BLOB.digest] = [Fault(), Fault(hold_after=0, release=release)]
    async with bench.spool.growing(bench.wanted()) as growing:
        async with asyncio.timeout(30):
            while bench.received < len(BODY) - RANGE:  # noqa: ASYNC110 - a count has no event.
                await asyncio.sleep(0.005)
        assert growing.frontier.held == RANGE
        release.set()
        assert await read_all(growing) == BODY
        await growing.verified()


async def test_wrong_bytes_are_followed_by_a_new_file_and_the_old_one_stays_readable(bench: Bench) -> None:
    wrong = BODY[:-1] + bytes([BODY[-1] ^ 1])
    bench.registry.blobs[BLOB.digest] = wrong
    async with bench.spool.growing(bench.wanted()) as growing:
        fd, frontier = growing.fd, growing.frontier
        assert await read_all(growing) == wrong
        bench.registry.blobs[BLOB.digest] = BODY
        with pytest.raises(SpoolRestarted):
            await growing.verified()
        with pytest.raises(SpoolRestarted):
            await frontier.beyond(0)
        await growing.again()
        assert growing.fd != fd
        assert growing.frontier is not frontier
        assert await read_all(growing) == BODY
        await growing.verified()
        assert os.pread(fd, len(wrong), 0) == wrong


async def test_who_comes_while_a_new_file_is_made_for_wrong_bytes_starts_anew_as_well(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    making, go_on = asyncio.Event(), threading.Event()
    loop, real = asyncio.get_running_loop(), SpoolFile._open_file

    def slow(self: SpoolFile) -> tuple[int, int]:
        if self.held.complete:
            loop.call_soon_threadsafe(making.set)
            assert go_on.wait(30)
        return real(self)

    monkeypatch.setattr(SpoolFile, "_open_file", slow)
    wrong = BODY[:-1] + bytes([BODY[-1] ^ 1])
    bench.registry.blobs[BLOB.digest] = wrong
    async with bench.spool.growing(bench.wanted()):
        await making.wait()
        bench.registry.blobs[BLOB.digest] = BODY
        try:
            async with bench.spool.growing(bench.wanted()) as growing:
                assert await read_all(growing) == wrong
                go_on.set()
                with pytest.raises(SpoolRestarted):
                    await growing.verified()
                await growing.again()
                assert await read_all(growing) == BODY
                await growing.verified()
        finally:
            go_on.set()


async def test_a_download_that_fails_ends_the_frontier_with_its_error(bench: Bench) -> None:
    bench.registry.faults[BLOB.digest] = [Fault(cut_after=200_000), *[Fault(status=503) for _ in range(40)]]
    async with bench.spool.growing(bench.wanted()) as growing:
        with pytest.raises(PullError) as read:
            await read_all(growing)
        with pytest.raises(PullError) as verified:
            await growing.verified()
    assert read.value is verified.value
    assert not verified.value.permanent


async def test_a_blob_that_cannot_be_had_is_refused_on_entering_or_when_read(bench: Bench) -> None:
    del bench.registry.blobs[BLOB.digest]
    with pytest.raises(PullError) as caught:
        async with bench.spool.growing(bench.wanted()) as growing:
            await growing.verified()
    assert caught.value.reason == "NotFound"


async def test_another_repositorys_failure_is_a_new_start_with_ours(bench: Bench) -> None:
    bench.registry.faults[BLOB.digest] = [Fault(cut_after=200_000), Fault(status=403)]

    async def first() -> None:
        async with bench.spool.growing(bench.wanted("private/x")) as growing:
            await growing.verified()

    failing = asyncio.create_task(first())
    await asyncio.sleep(0)
    assert bench.spool.in_use
    async with bench.spool.growing(bench.wanted()) as growing:
        with pytest.raises(SpoolRestarted):
            await read_all(growing)
        await growing.again()
        assert await read_all(growing) == BODY
        await growing.verified()
    with pytest.raises(PullError):
        await failing


async def test_several_who_share_a_view_start_anew_together(bench: Bench) -> None:
    bench.registry.faults[BLOB.digest] = [Fault(cut_after=200_000), Fault(status=403)]

    async def first() -> None:
        async with bench.spool.growing(bench.wanted("private/x")) as growing:
            await growing.verified()

    async def consume(growing: Growing) -> bytes:
        while True:
            frontier = growing.frontier
            try:
                seen = await read_all(growing)
                await growing.verified()
                if growing.frontier is frontier:
                    return seen
            except SpoolRestarted:
                await growing.again()

    failing = asyncio.create_task(first())
    await asyncio.sleep(0)
    async with bench.spool.growing(bench.wanted()) as growing:
        assert await asyncio.gather(*(consume(growing) for _ in range(3))) == [BODY] * 3
    with pytest.raises(PullError):
        await failing


async def test_a_new_start_that_fails_too_is_an_error_for_all_and_no_endless_loop(bench: Bench) -> None:
    bench.registry.faults[BLOB.digest] = [Fault(cut_after=200_000), *[Fault(status=403) for _ in range(9)]]
    failing = asyncio.create_task(whole(bench, "private/x"))
    await asyncio.sleep(0)
    async with bench.spool.growing(bench.wanted()) as growing:
        with pytest.raises(SpoolRestarted):
            await read_all(growing)
        await growing.again()
        with pytest.raises(PullError):
            await read_all(growing)
        for _ in range(3):
            with pytest.raises(PullError):
                await growing.again()
        with pytest.raises(PullError):
            await growing.verified()
    with pytest.raises(PullError):
        await failing


async def test_who_only_waits_sees_another_repositorys_failure_through(bench: Bench) -> None:
    bench.registry.faults[BLOB.digest] = [Fault(cut_after=200_000), Fault(status=403)]
    both = await asyncio.gather(
        *(whole(bench, repository) for repository in ("private/x", "a/b")), return_exceptions=True
    )
    assert isinstance(both[0], PullError)
    assert both[1] == BODY


async def whole(bench: Bench, repository: str) -> bytes:
    async with bench.spool.blob(bench.wanted(repository)) as path:
        return path.read_bytes()


async def test_the_file_stays_for_a_user_who_came_before_the_others_left(bench: Bench) -> None:
    async with bench.spool.growing(bench.wanted()) as extractor:
        await extractor.verified()
        ingest = bench.spool.growing(bench.wanted())
        held = await ingest.__aenter__()
    assert len(bench.registry.gets(BLOB.digest)) == 9, "one download"
    assert (await held.verified()).read_bytes() == BODY
    assert held.frontier.complete
    await ingest.__aexit__(None, None, None)


async def test_a_pull_that_fails_after_one_of_its_users_got_the_blob_still_comes_for_it(bench: Bench) -> None:
    """As one whose blob was ingested, and whose layer was not made of it."""
    wanted = bench.wanted(keep=True)

    async def fail() -> None:
        async with bench.spool.growing(wanted):
            async with bench.spool.blob(wanted):
                pass
            raise ConnectionError

    with pytest.raises(ConnectionError):
        await fail()
    assert len(bench.left()) == 2
    async with bench.spool.blob(wanted) as path:
        assert path.read_bytes() == BODY
    assert bench.received == len(BODY)


async def test_a_blob_of_the_runtime_needs_no_registry(bench: Bench) -> None:
    async def content(offset: int) -> AsyncIterator[bytes]:
        for start in range(offset, len(BODY), 100_000):
            yield BODY[start : start + 100_000]

    async with bench.spool.growing(replace(bench.wanted(), source=content)) as growing:
        assert await read_all(growing) == BODY
        await growing.verified()
    assert bench.registry.requests == []
    assert bench.received == 0


@pytest.mark.parametrize("how", ["fails", "stalls", "lies", "ends early"])
async def test_where_the_runtime_does_not_give_it_the_registry_does(bench: Bench, how: str) -> None:
    async def content(offset: int) -> AsyncIterator[bytes]:
        yield bytes(100_000) if how == "lies" else BODY[:100_000]
        match how:
            case "fails":
                raise NotFound("read", "collected meanwhile")
            case "stalls":
                await asyncio.Event().wait()
            case "lies":
                yield BODY[100_000:]

    async with bench.spool.blob(replace(bench.wanted(), source=content)) as path:
        assert path.read_bytes() == BODY
    if how != "lies":
        assert bench.received == len(BODY) - 100_000


async def test_a_blob_without_bytes(bench: Bench) -> None:
    empty = Descriptor(OCI_LAYER, sha256_digest(b""), 0)
    bench.registry.blobs[empty.digest] = b""
    async with bench.spool.growing(replace(bench.wanted(), descriptor=empty)) as growing:
        assert await growing.frontier.beyond(0) == 0
        assert (await growing.verified()).read_bytes() == b""


@dataclass
class Closing:
    """A download that fails while a user follows it, and whose file takes until `end` to be closed."""

    user: asyncio.Task[None]
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Its descriptors are; who waits for the failure is not told yet."""
    last: threading.Event = field(default_factory=threading.Event)

    async def end(self) -> None:
        self.last.set()
        with pytest.raises(PullError):
            await self.user


@asynccontextmanager
async def closing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Closing]:
    loop, real = asyncio.get_running_loop(), SpoolFile.close

    def close(self: SpoolFile, **how: Any) -> None:
        real(self, **how)
        if not made.closed.is_set():
            loop.call_soon_threadsafe(made.closed.set)
            made.last.wait(30)

    async def use() -> None:
        async with bench.spool.growing(bench.wanted(keep=True)) as growing:
            await growing.verified()

    monkeypatch.setattr(SpoolFile, "close", close)
    bench.registry.faults[BLOB.digest] = [Fault(cut_after=200_000), Fault(status=403)]
    made = Closing(asyncio.create_task(use()))
    try:
        yield made
    finally:
        made.last.set()
        await asyncio.wait([made.user])


@pytest.mark.parametrize("owner", ["lease", "other", ""])
async def test_who_comes_while_a_failed_download_is_closed_begins_one_of_its_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    async def come() -> bytes:
        async with bench.spool.growing(replace(bench.wanted(), owner=owner)) as growing:
            return await read_all(growing)

    async with closing(bench, monkeypatch) as failed, asyncio.timeout(30):
        await failed.closed.wait()
        coming = asyncio.create_task(come())
        await asyncio.wait([coming], timeout=0.05)
        await failed.end()
        assert await coming == BODY
    await bench.spool.give_up("lease", entirely=True)


async def test_who_came_just_before_a_failed_download_is_closed_learns_of_the_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SharedBlob.readable

    async def readable(self: SharedBlob) -> None:
        if len(self.users) > 1:
            await failed.closed.wait()
        await real(self)

    async def come() -> None:
        async with bench.spool.growing(bench.wanted()) as growing:
            await growing.verified()

    monkeypatch.setattr(SharedBlob, "readable", readable)
    async with closing(bench, monkeypatch) as failed, asyncio.timeout(30):
        await asyncio.sleep(0)
        coming = asyncio.create_task(come())
        await failed.closed.wait()
        await asyncio.wait([coming], timeout=0.05)
        await failed.end()
        with pytest.raises(PullError):
            await coming
    await bench.spool.give_up("lease", entirely=True)


async def test_who_gives_up_while_a_failed_download_is_closed_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with closing(bench, monkeypatch) as failed, asyncio.timeout(30):
        await failed.closed.wait()
        giving_up = asyncio.create_task(bench.spool.give_up("lease", entirely=True))
        await asyncio.wait([giving_up], timeout=0.05)
        await failed.end()
        await giving_up
    assert bench.left() == []


async def test_who_gives_up_in_the_moment_in_which_a_download_fails_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, closed = asyncio.Event(), threading.Event()
    loop, close, disown = asyncio.get_running_loop(), SpoolFile.close, SpoolFile.disown

    async def download(order: Order, _: object) -> None:
        await asyncio.to_thread(order.spool.open)
        order.listener.opened()
        await failing.wait()
        raise PullError("Refused", "no")

    def closing(self: SpoolFile, **how: Any) -> None:
        close(self, **how)
        closed.set()

    def late(self: SpoolFile, owner: str) -> None:
        loop.call_soon_threadsafe(failing.set)
        assert closed.wait(30)
        disown(self, owner)

    monkeypatch.setattr("imageprepull.pulling.blobs.download", download)
    monkeypatch.setattr(SpoolFile, "close", closing)
    monkeypatch.setattr(SpoolFile, "disown", late)
    async with bench.spool.growing(bench.wanted(keep=True)):
        await bench.spool.give_up("lease")
    assert bench.left() == []
