"""Downloads through the real registry client, against a fake registry that fails as told."""

from __future__ import annotations

import asyncio
import errno
import random
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from imageprepull.oci.descriptor import OCI_LAYER, Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.oci.reference import Reference
from imageprepull.pulling.blobs import Spool, Wanted
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.limiter import Limiter
from imageprepull.pulling.settings import PullSettings
from imageprepull.pulling.sidecars import digests_of, read_sidecar, sidecar_path
from imageprepull.pulling.spool import SpoolFile
from imageprepull.registry.client import RegistryClient
from imageprepull.registry.hosts import HostsConfig
from tests.testbed.faulty_registry import Fault, FaultyRegistry

BODY = random.Random(1).randbytes(3_000_000)
BLOB = Descriptor(OCI_LAYER, sha256_digest(BODY), len(BODY))
SETTINGS = PullSettings(
    backoff_base=0.001,
    backoff_cap=0.005,
    attempts_without_progress=2,
    write_batch=64 * 1024,
    checkpoint=500_000,
)


class Bench:
    """A spool over a fake registry, and what its downloads told."""

    def __init__(self, registry: FaultyRegistry, client: RegistryClient, folder: Path) -> None:
        self.registry = registry
        self.folder = folder
        self.limiter = Limiter(8)
        self.spool = Spool(client, folder, self.limiter, SETTINGS, "boot")
        self.received = 0
        self.held: list[int] = []
        registry.blobs[BLOB.digest] = BODY

    def wanted(
        self, *, repository: str = "a/b", keep: bool = False, owner: str = "lease", priority: int = 0
    ) -> Wanted:
        return Wanted(
            reference=Reference.parse(f"{self.registry.address}/{repository}:1"),
            descriptor=BLOB,
            lease="lease",
            priority=priority,
            owner=owner if keep else "",
            advanced=self.held.append,
            received=self._count,
        )

    def _count(self, host: str, count: int) -> None:
        self.received += count

    async def fetch(self, wanted: Wanted | None = None) -> bytes:
        async with self.spool.blob(wanted or self.wanted()) as path:
            return path.read_bytes()

    def left(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with (
        FaultyRegistry() as registry,
        RegistryClient(HostsConfig([tmp_path / "certs.d"]), stall_timeout=1) as client,
    ):
        yield Bench(registry, client, tmp_path / "spool")


async def test_a_blob_is_fetched_verified_and_gone_from_the_spool_after_use(bench: Bench) -> None:
    assert await bench.fetch() == BODY
    assert bench.received == len(BODY)
    assert bench.held == sorted(bench.held)
    assert bench.held[-1] == len(BODY)
    assert bench.left() == []
    assert bench.limiter.held == 0


async def test_a_cut_connection_is_resumed_where_it_ended(bench: Bench) -> None:
    bench.registry.faults[BLOB.digest] = [Fault(cut_after=1_000_000), Fault(cut_after=700_000)]
    assert await bench.fetch() == BODY
    assert bench.received == len(BODY), "no byte twice"
    spans = bench.registry.gets(BLOB.digest)
    assert len(spans) == 3
    assert all(span.startswith("bytes=") for span in spans[1:])


async def test_a_host_that_ignores_the_range_still_ends_in_the_right_blob(bench: Bench) -> None:
    bench.registry.faults[BLOB.digest] = [Fault(cut_after=1_000_000), Fault(ignore_range=True)]
    assert await bench.fetch() == BODY


async def test_a_stalled_connection_is_given_up_and_resumed(bench: Bench) -> None:
    bench.registry.faults[BLOB.digest] = [Fault(hold_after=500_000)]
    assert await bench.fetch() == BODY
    assert len(bench.registry.gets(BLOB.digest)) == 2


async def test_bytes_gained_reset_the_count_of_failures(bench: Bench) -> None:
    bench.registry.faults[BLOB.digest] = [Fault(cut_after=400_000) for _ in range(6)]
    assert await bench.fetch() == BODY


async def test_failures_without_progress_end_it_and_leave_nothing(bench: Bench) -> None:
    bench.registry.faults[BLOB.digest] = [Fault(status=503) for _ in range(50)]
    with pytest.raises(PullError) as caught:
        await bench.fetch()
    assert not caught.value.permanent
    assert bench.left() == []


async def test_what_is_kept_for_the_next_attempt_is_not_fetched_again(bench: Bench) -> None:
    bench.registry.faults[BLOB.digest] = [Fault(cut_after=2_000_000), *[Fault(status=503) for _ in range(50)]]
    with pytest.raises(PullError):
        await bench.fetch(bench.wanted(keep=True))
    assert len(bench.left()) == 2
    gained = bench.received
    assert gained > 1_000_000, "what came before the cut, but for the last buffer"
    bench.registry.faults.clear()
    assert await bench.fetch(bench.wanted(keep=True)) == BODY
    assert bench.received == len(BODY)
    assert bench.left() == []


async def test_what_two_images_share_stays_for_the_one_that_still_comes(bench: Bench) -> None:
    """One of them ends, the other waits between two attempts: whoever ends, and however it does."""
    a, b = (bench.wanted(keep=True, owner=owner) for owner in "ab")
    bench.registry.faults[BLOB.digest] = [Fault(cut_after=2_000_000), *[Fault(status=503) for _ in range(50)]]
    with pytest.raises(PullError):
        await bench.fetch(b)
    with pytest.raises(PullError):
        await bench.fetch(a)
    gained = bench.received
    await bench.spool.give_up("a")
    assert len(bench.left()) == 2, "b still comes for it"
    bench.registry.faults.clear()
    assert await bench.fetch(a) == BODY
    assert len(bench.left()) == 2, "b still comes for it"
    assert gained < bench.received == len(BODY)
    assert await bench.fetch(b) == BODY
    assert bench.received == len(BODY)
    assert bench.left() == []


async def test_who_joins_a_download_comes_for_it_too_whatever_becomes_of_the_other(bench: Bench) -> None:
    """Also if everybody dies right then."""
    release = asyncio.Event()
    bench.registry.faults[BLOB.digest] = [Fault(hold_after=100_000, release=release)]
    a = asyncio.create_task(bench.fetch(bench.wanted(keep=True, owner="a")))
    await bench_until(lambda: bool(bench.held))
    b = asyncio.create_task(bench.fetch(bench.wanted(keep=True, owner="b")))
    await bench_until(lambda: len(bench.held) > 1)
    found = read_sidecar(sidecar_path(bench.folder, BLOB.digest))
    assert found is not None
    assert found.all_owners == {"a", "b"}
    release.set()
    assert [await a, await b] == [BODY, BODY]
    assert bench.left() == []


async def test_one_who_gives_up_while_another_downloads_leaves_nothing_behind(bench: Bench) -> None:
    a, b = (bench.wanted(keep=True, owner=owner) for owner in "ab")
    bench.registry.faults[BLOB.digest] = [Fault(cut_after=2_000_000), *[Fault(status=503) for _ in range(50)]]
    with pytest.raises(PullError):
        await bench.fetch(a)
    release = asyncio.Event()
    bench.registry.faults[BLOB.digest] = [Fault(hold_after=100_000, release=release)]
    bench.held.clear()
    downloading = asyncio.create_task(bench.fetch(b))
    await bench_until(lambda: bool(bench.held))
    await bench.spool.give_up("a")
    downloading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await downloading
    assert len(bench.left()) == 2, "b comes again"
    await bench.spool.give_up("b")
    assert bench.left() == []


async def test_one_who_gives_up_a_file_that_names_nobody_yet_leaves_nothing_behind(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both came before it was opened, and so little of it is there that nothing is noted."""
    opening, real = threading.Event(), SpoolFile.open

    def slow(self: SpoolFile) -> None:
        assert opening.wait(30)
        real(self)

    monkeypatch.setattr(SpoolFile, "open", slow)
    release = asyncio.Event()
    bench.registry.faults[BLOB.digest] = [Fault(hold_after=100_000, release=release)]
    a, b = (asyncio.create_task(bench.fetch(bench.wanted(keep=True, owner=owner))) for owner in "ab")
    await asyncio.wait([a, b], timeout=0.05)
    opening.set()
    await bench_until(lambda: bool(bench.held))
    a.cancel()
    with pytest.raises(asyncio.CancelledError):
        await a
    await bench.spool.give_up("a")
    release.set()
    assert await b == BODY
    assert bench.left() == []


@pytest.mark.parametrize("others", [(), ("c",)])
async def test_one_who_gives_up_what_another_is_yet_to_open_leaves_nothing_behind(
    bench: Bench, others: tuple[str, ...]
) -> None:
    """The other has waited for a connection in vain."""
    bench.registry.faults[BLOB.digest] = [Fault(cut_after=2_000_000), *[Fault(status=503) for _ in range(50)]]
    for owner in ("a", *others):
        with pytest.raises(PullError):
            await bench.fetch(bench.wanted(keep=True, owner=owner))
    bench.limiter.limit = 1
    async with bench.limiter.slot():
        waiting = asyncio.create_task(bench.fetch(bench.wanted(keep=True, owner="b")))
        await bench_until(lambda: bool(bench.spool.in_use))
        await bench.spool.give_up("a")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    found = read_sidecar(sidecar_path(bench.folder, BLOB.digest))
    assert found is not None
    assert found.all_owners == {"b", *others}
    assert found.ranges == [(0, 2_000_000)], "who still comes finds all of it"
    for owner in ("b", *others):
        assert len(bench.left()) == 2
        await bench.spool.give_up(owner)
    assert bench.left() == []


async def closing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> tuple[asyncio.Task[bytes], threading.Event]:
    """The last user, `a`, has been cancelled and is about to close the file; and what lets it."""
    about_to, go_on, real = asyncio.Event(), threading.Event(), SpoolFile.close
    loop = asyncio.get_running_loop()

    def slow(self: SpoolFile, **options: Any) -> None:
        loop.call_soon_threadsafe(about_to.set)
        assert go_on.wait(30)
        real(self, **options)

    monkeypatch.setattr(SpoolFile, "close", slow)
    bench.registry.faults[BLOB.digest] = [Fault(hold_after=100_000)]
    fetching = asyncio.create_task(bench.fetch(bench.wanted(keep=True, owner="a")))
    await bench_until(lambda: bool(bench.held))
    fetching.cancel()
    await about_to.wait()
    return fetching, go_on


async def test_one_who_gives_up_while_the_last_user_closes_the_file_leaves_nothing_behind(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetching, go_on = await closing(bench, monkeypatch)
    giving_up = asyncio.create_task(bench.spool.give_up("a"))
    await asyncio.wait([giving_up], timeout=0.05)
    go_on.set()
    await giving_up
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert bench.left() == []


async def test_one_who_gives_up_just_before_the_file_is_noted_and_closed_leaves_nothing_behind(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetching, go_on = await closing(bench, monkeypatch)

    def looking(folder: Path, owner: str) -> list[str]:
        found = digests_of(folder, owner)
        go_on.set()
        while bench.spool.in_use:
            time.sleep(0.001)
        return found

    monkeypatch.setattr("imageprepull.pulling.blobs.digests_of", looking)
    await bench.spool.give_up("a")
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert bench.left() == []


async def test_a_file_that_cannot_be_closed_is_in_nobodys_way(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SpoolFile.close

    def failing(self: SpoolFile, **options: Any) -> None:
        monkeypatch.undo()
        real(self, **options)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(SpoolFile, "close", failing)
    assert await bench.fetch() == BODY
    assert bench.spool.in_use == frozenset()
    assert await bench.fetch() == BODY
    assert bench.left() == []


async def test_a_missing_blob_is_not_asked_for_again(bench: Bench) -> None:
    del bench.registry.blobs[BLOB.digest]
    with pytest.raises(PullError, match=BLOB.digest[:20]) as caught:
        await bench.fetch()
    assert caught.value.permanent
    assert caught.value.reason == "NotFound"
    assert len(bench.registry.gets(BLOB.digest)) == 1


async def test_corrupt_bytes_are_fetched_once_more(bench: Bench) -> None:
    bench.registry.faults[BLOB.digest] = [Fault(change=lambda body: b"x" + body[1:])]
    assert await bench.fetch() == BODY
    assert bench.received == 2 * len(BODY)


async def test_bytes_corrupt_twice_are_the_registrys_fault(bench: Bench) -> None:
    bench.registry.faults[BLOB.digest] = [Fault(change=lambda body: b"x" + body[1:]) for _ in range(2)]
    with pytest.raises(PullError) as caught:
        await bench.fetch(bench.wanted(keep=True))
    assert (caught.value.reason, caught.value.permanent) == ("CorruptUpstream", True)
    assert bench.registry.address in caught.value.message
    assert len(bench.registry.gets(BLOB.digest)) == 2, "no endless retry"
    assert bench.left() == [] or read_held(bench.folder) == 0


async def test_row_59_what_this_node_held_is_not_the_registrys_fault(bench: Bench) -> None:
    bench.registry.faults[BLOB.digest] = [Fault(cut_after=2_000_000), *[Fault(status=503) for _ in range(50)]]
    with pytest.raises(PullError):
        await bench.fetch(bench.wanted(keep=True))
    (spooled,) = [path for path in bench.folder.glob("sha256-*") if path.suffix != ".json"]
    spooled.write_bytes(b"x" + spooled.read_bytes()[1:])
    bench.registry.faults[BLOB.digest] = [
        Fault(),  # the rest
        Fault(change=lambda body: b"x" + body[1:]),
    ]
    assert await bench.fetch() == BODY, "the registry has its two chances still"


def read_held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("sha256-*") if path.suffix != ".json")


@pytest.mark.parametrize("change", [lambda body: body + b"more", lambda body: body[:-1]])
async def test_a_blob_of_another_size_is_refused(bench: Bench, change: object) -> None:
    bench.registry.faults[BLOB.digest] = [Fault(change=change) for _ in range(50)]  # type: ignore[arg-type]
    with pytest.raises(PullError):
        await bench.fetch()
    assert bench.left() == []


async def test_two_who_want_the_same_blob_share_one_download(bench: Bench) -> None:
    both = await asyncio.gather(bench.fetch(), bench.fetch(bench.wanted(repository="c/d")))
    assert list(both) == [BODY, BODY]
    assert len(bench.registry.gets(BLOB.digest)) == 1
    assert bench.received == len(BODY)


async def test_one_who_leaves_does_not_stop_the_other(bench: Bench) -> None:
    release = asyncio.Event()
    bench.registry.faults[BLOB.digest] = [Fault(hold_after=100_000, release=release)]
    first = asyncio.create_task(bench.fetch())
    second = asyncio.create_task(bench.fetch())
    await bench_until(lambda: bool(bench.held) and bench.held[-1] > 0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    release.set()
    assert await second == BODY
    assert len(bench.registry.gets(BLOB.digest)) == 1


async def test_the_last_who_leaves_stops_the_download_and_removes_its_bytes(bench: Bench) -> None:
    bench.registry.faults[BLOB.digest] = [Fault(hold_after=100_000)]
    only = asyncio.create_task(bench.fetch())
    await bench_until(lambda: bool(bench.held) and bench.held[-1] > 0)
    only.cancel()
    with pytest.raises(asyncio.CancelledError):
        await only
    assert bench.left() == []
    assert bench.limiter.held == 0
    assert bench.spool.in_use == frozenset()


async def test_another_repositorys_refusal_is_not_ours(bench: Bench) -> None:
    # The first download, of another repository, is refused; whoever waited for it tries with its own.
    bench.registry.faults[BLOB.digest] = [Fault(status=403)]
    results = await asyncio.gather(
        bench.fetch(bench.wanted(repository="private/x")), bench.fetch(), return_exceptions=True
    )
    assert isinstance(results[0], PullError)
    assert results[1] == BODY


async def bench_until(true: object) -> None:
    async with asyncio.timeout(30):
        while not true():  # type: ignore[operator]  # noqa: ASYNC110 - the fake's socket has no event for us.
            await asyncio.sleep(0.005)
