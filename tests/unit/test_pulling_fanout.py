"""Large blobs over several connections, through the real registry client and a registry that fails as told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imageprepull.oci.descriptor import OCI_LAYER, Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.oci.reference import Reference
from imageprepull.pulling.blobs import Spool, Wanted
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.limiter import Limiter
from imageprepull.pulling.settings import PullSettings
from imageprepull.registry.client import RegistryClient
from imageprepull.registry.hosts import HostsConfig
from tests.testbed.faulty_registry import Fault
from tests.testbed.ranged_registry import RangedRegistry

RANGE = 256 * 1024
BODY = random.Random(2).randbytes(12 * RANGE + 1000)
BLOB = Descriptor(OCI_LAYER, sha256_digest(BODY), len(BODY))
SETTINGS = PullSettings(
    backoff_base=0.001,
    backoff_cap=0.005,
    attempts_without_progress=2,
    range_size=RANGE,
    small_blob=1000,
    write_batch=64 * 1024,
    checkpoint=500_000,
    hash_step=100_000,
)


class Bench:
    """A spool over a fake registry, and what its downloads told."""

    def __init__(
        self, registry: RangedRegistry, client: RegistryClient, folder: Path, about: PullSettings = SETTINGS
    ) -> None:
        self.registry = registry
        self.folder = folder
        self.limiter = Limiter(8)
        self.spool = Spool(client, folder, self.limiter, about, "boot")
        self.received = 0
        self.add(BODY)

    def add(self, body: bytes) -> Descriptor:
        blob = Descriptor(OCI_LAYER, sha256_digest(body), len(body))
        self.registry.blobs[blob.digest] = body
        return blob

    def wanted(self, blob: Descriptor = BLOB, *, keep: bool = False, priority: int = 0) -> Wanted:
        return Wanted(
            reference=Reference.parse(f"{self.registry.address}/a/b:1"),
            descriptor=blob,
            lease="lease",
            priority=priority,
            owner="lease" if keep else "",
            advanced=lambda held: None,
            received=self._count,
        )

    def _count(self, host: str, count: int) -> None:
        self.received += count

    async def fetch(self, wanted: Wanted | None = None) -> bytes:
        async with self.spool.blob(wanted or self.wanted()) as path:
            return path.read_bytes()

    def spans(self, blob: Descriptor = BLOB) -> list[tuple[int, int]]:
        """The ranges asked for, half open."""
        spans = []
        for text in self.registry.gets(blob.digest):
            first, _, last = text.removeprefix("bytes=").partition("-")
            spans.append((int(first), int(last) + 1) if text else (0, blob.size))
        return spans

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
        assert bench.limiter.held == 0
        assert bench.left() == []
        assert bench.spool.in_use == frozenset()


async def until(true: object) -> None:
    async with asyncio.timeout(30):
        while not true():  # type: ignore[operator]  # noqa: ASYNC110 - the fake's socket has no event for us.
            await asyncio.sleep(0.005)


async def test_each_byte_is_asked_for_once_in_closed_ranges_after_one_probe(bench: Bench) -> None:
    bench.registry.gate = asyncio.Event()
    fetching = asyncio.create_task(bench.fetch())
    await until(lambda: bench.registry.waiting)
    await asyncio.sleep(0.05)
    assert bench.registry.waiting == 1, "no second request before the first was answered"
    bench.registry.gate.set()
    assert await fetching == BODY
    assert bench.received == len(BODY)
    assert sorted(bench.spans()) == [
        (start, min(start + RANGE, len(BODY))) for start in range(0, len(BODY), RANGE)
    ]


async def test_a_range_that_is_held_back_does_not_hold_the_others(bench: Bench) -> None:
    release = asyncio.Event()
    bench.registry.faults[BLOB.digest] = [Fault(), Fault(hold_after=1000, release=release)]
    fetching = asyncio.create_task(bench.fetch())
    await until(lambda: bench.received > 11 * RANGE)
    release.set()
    assert await fetching == BODY
    assert bench.received == len(BODY)


async def test_a_fault_costs_its_own_range_only(bench: Bench) -> None:
    bench.registry.faults[BLOB.digest] = [Fault(), Fault(), Fault(cut_after=100_000), Fault(status=503)]
    assert await bench.fetch() == BODY
    assert bench.received == len(BODY), "no byte twice"
    asked = bench.spans()
    again = [span for span in asked if span[0] % RANGE]
    assert len(again) == 1, "where it was cut, up to where that range ended"
    assert again[0][1] % RANGE == 0
    assert len(asked) == 13 + 2


async def test_connections_that_are_all_cut_at_once_count_as_one_fault_each(bench: Bench) -> None:
    bench.registry.faults[BLOB.digest] = [Fault(), *[Fault(cut_after=0) for _ in range(4)]]
    assert await bench.fetch() == BODY


async def test_one_range_that_cannot_be_had_ends_the_blob_and_the_rest_is_kept(bench: Bench) -> None:
    bench.registry.refused[BLOB.digest, 2 * RANGE] = 503
    with pytest.raises(PullError) as caught:
        await bench.fetch(bench.wanted(keep=True))
    assert not caught.value.permanent
    asked = len(bench.spans())
    assert bench.received >= 2 * RANGE
    bench.registry.refused.clear()
    assert await bench.fetch(bench.wanted(keep=True)) == BODY
    assert bench.received == len(BODY), "holes are filled, nothing is fetched twice"
    assert (2 * RANGE, 3 * RANGE) in bench.spans()[asked:]


async def test_a_permanent_error_of_a_range_ends_the_blob_at_once(bench: Bench) -> None:
    bench.registry.faults[BLOB.digest] = [Fault(), Fault(status=404)]
    with pytest.raises(PullError) as caught:
        await bench.fetch()
    assert caught.value.permanent


async def test_a_host_that_answers_the_probe_with_the_whole_blob_is_read_to_the_end(bench: Bench) -> None:
    other = bench.add(BODY[::-1])
    bench.registry.faults[BLOB.digest] = [Fault(ignore_range=True)]
    assert await bench.fetch() == BODY
    assert bench.spans() == [(0, RANGE)], "what came was kept, and nothing asked for again"
    assert bench.received == len(BODY)
    assert await bench.fetch(bench.wanted(other)) == BODY[::-1]
    assert bench.registry.gets(other.digest) == [""], "the host is not asked for ranges for a while"


async def test_a_later_range_that_brings_the_whole_blob_stops_the_other_connections(bench: Bench) -> None:
    hold = [Fault(hold_after=10_000) for _ in range(2)]
    bench.registry.faults[BLOB.digest] = [Fault(), *hold, Fault(ignore_range=True)]
    assert await bench.fetch() == BODY
    assert len(bench.spans()) == 4


async def test_without_ranges_a_cut_stream_goes_on_where_it_ended(bench: Bench) -> None:
    bench.registry.faults[BLOB.digest] = [Fault(ignore_range=True, cut_after=5 * RANGE)]
    assert await bench.fetch() == BODY
    first, second = bench.spans()
    assert first == (0, RANGE)
    assert 2 * RANGE < second[0] <= 5 * RANGE, "but for the last buffer"
    assert second[1] == len(BODY), "one stream to the end"


async def test_bytes_that_are_held_are_not_written_over(bench: Bench) -> None:
    """The hash and consumers have seen them: other bytes in their place would never be noticed."""
    wrong = bytes(RANGE) + BODY[RANGE:]
    bench.registry.faults[BLOB.digest] = [
        Fault(),
        Fault(status=503),
        Fault(ignore_range=True, change=lambda body: wrong),
    ]
    assert await bench.fetch() == BODY


async def test_the_registry_is_left_alone_for_as_long_as_it_asks(bench: Bench) -> None:
    loop = asyncio.get_running_loop()
    bench.registry.faults[BLOB.digest] = [Fault(), Fault(status=429, headers={"Retry-After": "1"})]
    started = loop.time()
    assert await bench.fetch() == BODY
    assert loop.time() - started >= 1
    assert "careful" in repr(bench.spool._pool)


async def test_the_cap_holds_and_lower_layers_come_first(bench: Bench) -> None:
    bench.limiter.limit = 3
    blobs = [bench.add(random.Random(number).randbytes(5 * RANGE)) for number in range(10, 14)]
    most = 0
    wanted = [bench.wanted(blob, priority=number) for number, blob in enumerate(blobs)]

    def watch(held: int) -> None:
        nonlocal most
        most = max(most, bench.limiter.held)

    await asyncio.gather(*(bench.fetch(replace(one, advanced=watch)) for one in wanted))
    assert most <= 3
    asked = [path.rpartition("/")[2] for _, path, _ in bench.registry.requests]
    # They begin in order; threads open their files, so that requests begun at once may arrive in any.
    assert {*asked[:3]} == {blob.digest for blob in blobs[:3]}


async def test_cancelling_leaves_nothing_while_many_ranges_run(bench: Bench) -> None:
    bench.registry.faults[BLOB.digest] = [Fault(), *[Fault(hold_after=1000) for _ in range(20)]]
    fetching = asyncio.create_task(bench.fetch())
    await until(lambda: len(bench.spans()) > 3)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching


FAULTS = st.one_of(
    st.just(Fault()),
    st.builds(Fault, cut_after=st.integers(0, RANGE)),
    st.builds(Fault, status=st.sampled_from([500, 503, 429])),
    st.builds(Fault, ignore_range=st.just(True), cut_after=st.one_of(st.none(), st.integers(0, 4 * RANGE))),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(FAULTS, max_size=25))
def test_whatever_happens_on_the_way_the_blob_is_right(
    tmp_path_factory: pytest.TempPathFactory, faults: list[Fault]
) -> None:
    async def run(folder: Path) -> None:
        async with (
            RangedRegistry() as registry,
            RegistryClient(HostsConfig([folder / "certs.d"]), stall_timeout=5) as client,
        ):
            patient = replace(SETTINGS, attempts_without_progress=60)
            bench = Bench(registry, client, folder / "spool", patient)
            registry.faults[BLOB.digest] = list(faults)
            assert await bench.fetch() == BODY
            assert bench.left() == []
            assert bench.limiter.held == 0

    asyncio.run(run(tmp_path_factory.mktemp("fanout")))
