"""A lease that grows old: replaced before it expires, under whoever dies meanwhile, and in the middle of a long pull."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from imageprepull.pulling.durability import WriteBack
from imageprepull.pulling.labels import LEASE, LEASE_IMAGE
from imageprepull.pulling.leases import (
    LeaseTerms,
    discard_image_lease,
    expires_at,
    find_lease,
    open_lease,
    terms_of,
)
from imageprepull.pulling.sweep import Swept, sweep
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.leases import Leases
from tests.containerd.conftest import SNAPSHOTTER, collect_garbage, leftovers
from tests.containerd.pull_bench import BOOT, FAST, OWNER, PullBench, Watched, fake_serve, layer, pull_bench
from tests.testbed.daemon import ContainerdDaemon
from tests.testbed.faulty_registry import Fault, FaultyRegistry
from tests.testbed.images import build_image, sha256

IMAGE = sha256(b"an image")
TERMS = LeaseTerms("imageprepull-old", IMAGE, {LEASE: OWNER}, 1000)
HELD = "chain-0"


class DiedError(Exception):
    """The agent ends here."""


async def held(containerd: Containerd, lease: str) -> set[str]:
    return {resource.id for resource in await containerd.leases.resources(lease)}


@pytest.fixture
async def old(containerd: Containerd) -> AsyncIterator[Containerd]:
    """A lease with a tenth of its time left, which alone holds a layer and an active snapshot."""
    await containerd.leases.create(TERMS.id, TERMS.all_labels, TERMS.seconds / 10)
    leased = containerd.with_lease(TERMS.id)
    await leased.snapshots.prepare(SNAPSHOTTER, "extract-old one", "", {})
    await leased.snapshots.prepare(SNAPSHOTTER, "making", "", {})
    await leased.snapshots.commit(SNAPSHOTTER, HELD, "making", {})
    yield containerd
    await collect_garbage(containerd)
    assert await containerd.snapshots.list(SNAPSHOTTER) == []


def dying(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """After so many changes of leases the next one is not made."""
    done = 0

    def until_death(name: str) -> None:
        change: Callable[..., object] = getattr(Leases, name)

        async def changed(self: Leases, *arguments: object, **more: object) -> object:
            nonlocal done
            if done == after:
                raise DiedError
            found = await change(self, *arguments, **more)  # type: ignore[misc]
            done += 1
            return found

        monkeypatch.setattr(Leases, name, changed)

    for name in ("create", "delete", "add_resource"):
        until_death(name)


async def run_sweep(containerd: Containerd, daemon: ContainerdDaemon, wanted: set[str] | None) -> Swept:
    return await sweep(
        containerd,
        owner=OWNER,
        snapshotter=SNAPSHOTTER,
        writes=WriteBack(daemon.root),
        spool_dir=daemon.folder / "spool",
        boot_id=BOOT,
        wanted=wanted,
        lease_of=lambda digest: replace(TERMS, image=digest),
    )


# Create the bridge, hold by it what the lease holds, delete the lease; the same back again. Two things are held: the layer,
# and the name of the active snapshot that an earlier attempt has left.
STEPS = range(8)


async def died_after(containerd: Containerd, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    with monkeypatch.context() as patched:
        dying(patched, steps)
        with pytest.raises(DiedError):
            await open_lease(containerd, TERMS)
    # Whatever nobody holds is gone now.
    await collect_garbage(containerd)
    assert await containerd.snapshots.stat(SNAPSHOTTER, HELD) is not None


async def assert_one_lease(containerd: Containerd, *, left: float) -> None:
    await collect_garbage(containerd)
    assert await leftovers(containerd) == replace(await leftovers(containerd), leases=[TERMS.id])
    assert await held(containerd, TERMS.id) >= {HELD}
    assert await containerd.snapshots.stat(SNAPSHOTTER, HELD) is not None
    found = await find_lease(containerd, TERMS.id)
    assert found is not None
    assert {LEASE: OWNER, LEASE_IMAGE: IMAGE}.items() <= found.labels.items()
    assert left - 30 < (expires_at(found) or 0) - time.time() <= left + 1


async def test_an_old_lease_is_replaced_with_all_that_it_holds(old: Containerd) -> None:
    assert await open_lease(old, TERMS) == TERMS.seconds
    await assert_one_lease(old, left=TERMS.seconds)
    assert (await leftovers(old)).active_snapshots == []
    assert TERMS.seconds - 30 < await open_lease(old, TERMS) <= TERMS.seconds, "a young one is adopted"
    await discard_image_lease(old, TERMS.id)


@pytest.mark.parametrize("steps", STEPS)
async def test_the_next_attempt_goes_on_where_a_replacement_died(
    old: Containerd, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    await died_after(old, monkeypatch, steps)
    await open_lease(old, TERMS)
    await assert_one_lease(old, left=TERMS.seconds)
    await discard_image_lease(old, TERMS.id)


@pytest.mark.parametrize("known", [True, False], ids=["wanted", "not known"])
@pytest.mark.parametrize("steps", STEPS)
async def test_the_next_agents_sweep_goes_on_where_a_replacement_died(
    old: Containerd, daemon: ContainerdDaemon, monkeypatch: pytest.MonkeyPatch, steps: int, known: bool
) -> None:
    await died_after(old, monkeypatch, steps)
    swept = await run_sweep(old, daemon, {IMAGE} if known else None)
    assert (swept.kept_leases, swept.leases) == ([TERMS.id], [])
    # A lease that was not deleted yet is as old as it was; the next attempt replaces it.
    await assert_one_lease(old, left=TERMS.seconds / 10 if steps < len(STEPS) / 2 else TERMS.seconds)
    await discard_image_lease(old, TERMS.id)


@pytest.mark.parametrize("how", ["swept", "abandoned"])
@pytest.mark.parametrize("steps", STEPS)
async def test_of_an_image_that_nobody_wants_a_replacement_that_died_leaves_nothing(
    old: Containerd, daemon: ContainerdDaemon, monkeypatch: pytest.MonkeyPatch, steps: int, how: str
) -> None:
    await died_after(old, monkeypatch, steps)
    if how == "swept":
        await run_sweep(old, daemon, set())
    else:
        await discard_image_lease(old, TERMS.id)
    assert (await leftovers(old)).leases == []


@pytest.fixture
async def short(containerd: Containerd, daemon: ContainerdDaemon) -> AsyncIterator[PullBench]:
    """Whose leases last some seconds."""
    async with pull_bench(containerd, daemon, settings=replace(FAST, lease_seconds=12)) as bench:
        yield bench
        await bench.assert_clean()


async def test_a_pull_that_outlives_its_lease_goes_on_under_a_new_one_and_repeats_nothing(
    short: PullBench, fake: FaultyRegistry
) -> None:
    image = build_image([layer("outlives-0", 50_000), layer("outlives-1", 400_000)])
    first, second = (built.blob for built in image.layers)
    release = asyncio.Event()
    fake.faults[second.digest] = [Fault(hold_after=100_000, release=release) for _ in range(3)]
    reference = fake_serve(fake, image)
    request = short.request(reference, digest=image.digest, keep_lease_on_failure=True)
    lease = terms_of(request, image.digest, 1).id
    progress = Watched("x")
    pulling = asyncio.create_task(
        short.pull(reference, progress, digest=image.digest, keep_lease_on_failure=True)
    )
    await progress.until(lambda seen: seen.states()[:1] == ["Applied"])
    began = await find_lease(short.containerd, lease)
    assert began is not None

    async def replaced() -> bool:
        found = await find_lease(short.containerd, lease)
        return found is not None and (expires_at(found) or 0) > (expires_at(began) or 0)

    async with asyncio.timeout(60):
        while not await replaced():
            assert not pulling.done()
            await asyncio.sleep(0.05)
    await collect_garbage(short.containerd)
    release.set()
    outcome = await pulling
    assert [str(found.state) for found in outcome.layers] == ["Exists", "Applied"]
    assert len(fake.gets(first.digest)) == 1
    starts = [int(one.removeprefix("bytes=").partition("-")[0] or 0) for one in fake.gets(second.digest)]
    assert starts[0] == 0
    assert all(start > 0 for start in starts[1:]), "it goes on where it was"
    assert (await short.presence(reference)).present
