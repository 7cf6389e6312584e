"""A pull while a kubelet pulls the same image: what is left to the kubelet, that it is not for long, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from imageprepull.oci.descriptor import Descriptor
from imageprepull.pulling.chain import Chain
from imageprepull.pulling.documents import ChainLayer
from imageprepull.pulling.extraction import PathWish
from imageprepull.pulling.layers import LayerWork
from imageprepull.pulling.leases import short_lease
from imageprepull.pulling.others import NOTE
from imageprepull.pulling.staging import Staged, Staging
from imageprepull.runtime.connection import Containerd
from imageprepull.unpacking.workers import Workers
from tests.containerd.conftest import Leftovers, leftovers
from tests.containerd.pull_bench import (
    FAST,
    PullBench,
    Watched,
    fake_serve,
    layer,
    pull_as_the_kubelet,
    pull_bench,
)
from tests.testbed.daemon import ContainerdDaemon
from tests.testbed.faulty_registry import Fault, FaultyRegistry
from tests.testbed.images import BuiltImage, Compression, build_image

LAYERS = 6
SETTINGS = replace(FAST, wanted_poll=0.02, aside_poll=0.02, aside_stall=60.0)


@pytest.fixture(params=["fast", "portable"])
def path(request: pytest.FixtureRequest) -> PathWish:
    chosen: PathWish = request.param
    return chosen


@pytest.fixture
async def bench(
    containerd: Containerd, daemon: ContainerdDaemon, workers: Workers, path: PathWish
) -> AsyncIterator[PullBench]:
    async with pull_bench(
        containerd, daemon, settings=SETTINGS, workers=workers, path=path, stall=60
    ) as bench:
        yield bench


class Told(Watched):
    """Remembers each note that a reader could see, and none twice in a row."""

    def __init__(self, reference: str) -> None:
        self.notes = [""]
        super().__init__(reference)

    def _note(self) -> None:
        super()._note()
        if self.note != self.notes[-1]:
            self.notes.append(self.note)


def small(name: str) -> BuiltImage:
    return build_image([layer(f"{name}-{number}") for number in range(LAYERS)])


def held_back(fake: FaultyRegistry, image: BuiltImage, number: int, times: int) -> asyncio.Event:
    """The registry keeps a layer from so many who ask, until the event."""
    release = asyncio.Event()
    fake.faults[image.layers[number].blob.digest] = [
        Fault(hold_after=10, release=release) for _ in range(times)
    ]
    return release


@asynccontextmanager
async def somebody_elses_lease(containerd: Containerd, image: BuiltImage) -> AsyncIterator[None]:
    """As of a runtime that was killed in a pull; it must end with the block."""
    await containerd.leases.create("theirs", {}, 3600)
    await containerd.leases.add_resource("theirs", "content", image.manifest.digest)
    try:
        yield
    finally:
        await containerd.leases.delete("theirs")


async def forgotten(bench: PullBench) -> None:
    """Until the runtime has cleaned up after a kubelet that gave its pull up."""
    async with asyncio.timeout(60):
        while await leftovers(bench.containerd) != Leftovers():  # noqa: ASYNC110 - the runtime tells nobody.
            await asyncio.sleep(0.02)


def aside(progress: Watched) -> bool:
    return progress.note == NOTE


@pytest.mark.parametrize("urgent", [False, True])
async def test_what_the_kubelet_pulls_is_left_to_it(
    bench: PullBench, fake: FaultyRegistry, daemon: ContainerdDaemon, urgent: bool
) -> None:
    image = small(f"left-{urgent}")
    # Ours has made a layer, and waits for the next; of the kubelet's requests one waits too.
    release = held_back(fake, image, 1, times=2)
    reference = fake_serve(fake, image)
    daemon.trust(reference.partition("/")[0])
    progress = Watched(reference)
    ours = asyncio.create_task(bench.pull(reference, progress, urgent=urgent))
    await progress.until(lambda found: found.states()[:1] == ["Applied"])
    theirs = asyncio.create_task(pull_as_the_kubelet(daemon, reference))
    try:
        await progress.until(aside)
        assert not theirs.done()
    finally:
        release.set()
    outcome, _ = await asyncio.gather(ours, theirs)
    assert progress.note == ""
    assert progress.states() == ["Applied", *["Exists"] * (LAYERS - 1)]
    assert len(outcome.layers) == LAYERS
    assert (await bench.presence(reference)).present
    await bench.assert_clean()


async def test_ours_goes_on_when_the_other_ends_without_the_image(
    bench: PullBench, fake: FaultyRegistry, containerd: Containerd
) -> None:
    image = small("ended")
    release = held_back(fake, image, 1, times=1)
    reference = fake_serve(fake, image)
    progress = Watched(reference)
    async with somebody_elses_lease(containerd, image):
        ours = asyncio.create_task(bench.pull(reference, progress))
        await progress.until(aside)
        release.set()
    await ours
    assert "Applied" in progress.states()
    assert (await bench.presence(reference)).present
    await bench.assert_clean()


async def test_a_lease_under_which_nothing_comes_is_waited_for_once_and_not_long(
    fake: FaultyRegistry, containerd: Containerd, daemon: ContainerdDaemon, workers: Workers, path: PathWish
) -> None:
    image = small("stale")
    reference = fake_serve(fake, image)
    progress = Told(reference)
    settings = replace(SETTINGS, aside_stall=0.2)
    async with pull_bench(containerd, daemon, settings=settings, workers=workers, path=path) as bench:
        async with somebody_elses_lease(containerd, image):
            await bench.pull(reference, progress)
        assert progress.notes == ["", NOTE, ""]
        assert progress.states() == ["Applied"] * LAYERS
        assert (await bench.presence(reference)).present
        await bench.assert_clean()


async def test_layers_that_are_worth_it_are_not_left(
    fake: FaultyRegistry, containerd: Containerd, daemon: ContainerdDaemon, workers: Workers, path: PathWish
) -> None:
    image = small("worth")
    progress = Told(fake_serve(fake, image))
    average = sum(layer.blob.size for layer in image.layers) // LAYERS
    settings = replace(SETTINGS, aside_small=average - 1)
    async with pull_bench(containerd, daemon, settings=settings, workers=workers, path=path) as bench:
        async with somebody_elses_lease(containerd, image):
            await bench.pull(progress.reference, progress)
        assert progress.notes == [""]
        assert progress.states() == ["Applied"] * LAYERS
        await bench.assert_clean()


async def test_who_is_stopped_while_it_stands_aside_leaves_nothing(
    bench: PullBench, fake: FaultyRegistry, containerd: Containerd
) -> None:
    image = small("stopped")
    reference = fake_serve(fake, image)
    progress = Watched(reference)
    async with somebody_elses_lease(containerd, image):
        ours = asyncio.create_task(bench.pull(reference, progress))
        await progress.until(aside)
        ours.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ours
    assert progress.note == ""
    await bench.assert_clean()


LARGE = replace(SETTINGS, aside_small=0)


@pytest.fixture
async def large(
    containerd: Containerd, daemon: ContainerdDaemon, workers: Workers, path: PathWish
) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon, settings=LARGE, workers=workers, path=path, stall=60) as bench:
        yield bench


@dataclass
class Shared:
    """An image whose lowest layer comes to ours as far as `HELD`, and drips to who asks next until `dripped`."""

    image: BuiltImage
    reference: str
    dripped: asyncio.Event

    @property
    def lowest(self) -> str:
        return self.image.layers[0].blob.digest


HELD = 300_000


def shared(fake: FaultyRegistry, name: str) -> Shared:
    image = build_image(
        [layer(f"{name}-low", 5_500_000, compression=Compression.PLAIN), layer(f"{name}-high", 50_000)]
    )
    dripped = asyncio.Event()
    fake.faults[image.layers[0].blob.digest] = [
        Fault(hold_after=HELD),
        # The runtime writes in pieces of a MiB.
        Fault(hold_after=1000, release=dripped, drip=10_000),
    ]
    return Shared(image, fake_serve(fake, image), dripped)


async def begun(progress: Watched) -> None:
    """Until ours has of the lowest layer what the registry gives it."""
    await progress.until(lambda found: bool(found.layers) and found.layers[0].done >= HELD // 2)


async def test_a_layer_that_the_kubelet_fetches_is_left_to_it_and_the_others_are_not(
    large: PullBench, fake: FaultyRegistry, daemon: ContainerdDaemon
) -> None:
    both = shared(fake, "both")
    daemon.trust(both.reference.partition("/")[0])
    progress = Watched(both.reference)
    ours = asyncio.create_task(large.pull(both.reference, progress, keep_lease_on_failure=True))
    await begun(progress)
    theirs = asyncio.create_task(pull_as_the_kubelet(daemon, both.reference))
    try:
        await progress.until(lambda found: aside(found) and found.states()[0] == "Waiting")
        # Ours goes on with what the kubelet has not begun, or what is here.
        await progress.until(lambda found: found.states()[1] in ("Downloaded", "Extracted"))
        assert not theirs.done()
    finally:
        both.dripped.set()
    await asyncio.gather(ours, theirs)
    assert len(fake.gets(both.lowest)) == 2, "ours asked for it again"
    assert progress.states()[0] == "Exists"
    assert progress.note == ""
    assert (await large.presence(both.reference)).present
    await large.assert_clean()


@pytest.mark.parametrize("resumes", [True, False])
async def test_a_layer_that_the_kubelet_does_not_bring_is_fetched_on_from_where_ours_was(
    large: PullBench, fake: FaultyRegistry, daemon: ContainerdDaemon, resumes: bool
) -> None:
    both = shared(fake, f"on-{resumes}")
    daemon.trust(both.reference.partition("/")[0])
    progress = Watched(both.reference)
    ours = asyncio.create_task(large.pull(both.reference, progress, keep_lease_on_failure=resumes))
    await begun(progress)
    theirs = asyncio.create_task(pull_as_the_kubelet(daemon, both.reference))
    await progress.until(aside)
    theirs.cancel()
    with pytest.raises(asyncio.CancelledError):
        await theirs
    await ours
    starts = [int(span.removeprefix("bytes=").partition("-")[0]) for span in fake.gets(both.lowest)[2:]]
    assert starts
    assert min(starts) >= HELD // 2
    assert progress.states() == ["Applied", "Applied"]
    assert (await large.presence(both.reference)).present
    await forgotten(large)
    await large.assert_clean()


async def test_who_is_stopped_while_its_work_is_being_left_stops(
    bench: PullBench, fake: FaultyRegistry, containerd: Containerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = small("stopped-stopping")
    held_back(fake, image, 1, times=1)
    work, on, stopping = LayerWork._layer, asyncio.Event(), asyncio.Event()

    async def stopped_slowly(self: LayerWork, number: int) -> None:
        try:
            await work(self, number)
        except asyncio.CancelledError:
            stopping.set()
            await on.wait()
            raise

    monkeypatch.setattr(LayerWork, "_layer", stopped_slowly)
    progress = Watched(fake_serve(fake, image))
    ours = asyncio.create_task(bench.pull(progress.reference, progress))
    await progress.until(lambda found: found.states()[:1] == ["Applied"])
    async with somebody_elses_lease(containerd, image):
        async with asyncio.timeout(10):
            await stopping.wait()
        ours.cancel()
        await asyncio.sleep(0.1)
        on.set()
        await asyncio.wait([ours], timeout=20)
        assert ours.cancelled(), "it goes on"
    await bench.assert_clean()


async def test_a_layer_of_ours_is_ours_while_its_commit_is_being_answered(
    large: PullBench, fake: FaultyRegistry, containerd: Containerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there already for who looks; taken for the other's, what follows its commit would be cut off."""
    commit, count = Chain._commit, LayerWork._count
    committed, looked, looks = asyncio.Event(), asyncio.Event(), []

    async def answered_late(self: Chain, layer: ChainLayer, key: str) -> None:
        await commit(self, layer, key)
        committed.set()
        await looked.wait()

    async def noted(self: LayerWork) -> int:
        if committed.is_set():
            looks.append(self)
        if len(looks) > 1:  # what the first leads to has come.
            looked.set()
        return await count(self)

    monkeypatch.setattr(Chain, "_commit", answered_late)
    monkeypatch.setattr(LayerWork, "_count", noted)
    image = build_image([layer("answered-late")])
    progress = Watched(fake_serve(fake, image))
    async with somebody_elses_lease(containerd, image):
        await large.pull(progress.reference, progress)
    assert progress.states() == ["Applied"]
    await large.assert_clean()


async def test_a_layer_that_is_unpacked_as_the_other_has_made_it_exists(
    fake: FaultyRegistry,
    containerd: Containerd,
    daemon: ContainerdDaemon,
    workers: Workers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unpack, count = Staging.unpack, LayerWork._count
    unpacked, found = asyncio.Event(), asyncio.Event()

    async def at_that_moment(self: Staging, *what: Any, **options: Any) -> Staged:
        staged = await unpack(self, *what, **options)
        unpacked.set()
        await found.wait()
        return staged

    async def noted(self: LayerWork) -> int:
        there = await count(self)
        if there:
            found.set()
        return there

    monkeypatch.setattr(Staging, "unpack", at_that_moment)
    monkeypatch.setattr(LayerWork, "_count", noted)
    image = build_image([layer("both-unpacked")])
    progress = Watched(fake_serve(fake, image))
    daemon.trust(progress.reference.partition("/")[0])
    async with pull_bench(containerd, daemon, settings=LARGE, workers=workers, path="fast") as bench:
        async with somebody_elses_lease(containerd, image):
            ours = asyncio.create_task(bench.pull(progress.reference, progress))
            async with asyncio.timeout(60):
                await unpacked.wait()
            await pull_as_the_kubelet(daemon, progress.reference)
            await ours
        assert progress.states() == ["Exists"]
        await bench.assert_clean()


async def test_a_blob_that_is_a_layer_of_ours_and_one_of_the_kubelets(
    bench: PullBench, fake: FaultyRegistry, daemon: ContainerdDaemon
) -> None:
    twice = layer("twice")
    image = build_image([twice, layer("twice-between"), twice])
    release = held_back(fake, image, 1, times=2)
    reference = fake_serve(fake, image)
    daemon.trust(reference.partition("/")[0])
    progress = Watched(reference)
    ours = asyncio.create_task(bench.pull(reference, progress))
    await progress.until(lambda found: found.states()[:1] == ["Applied"])
    theirs = asyncio.create_task(pull_as_the_kubelet(daemon, reference))
    try:
        await progress.until(aside)
    finally:
        release.set()
    await asyncio.gather(ours, theirs)
    assert progress.states() == ["Applied", "Exists", "Exists"]
    assert (await bench.presence(reference)).present
    await bench.assert_clean()


async def test_a_blob_that_the_kubelet_brought_without_its_layer_is_not_fetched_again(
    large: PullBench, fake: FaultyRegistry, daemon: ContainerdDaemon, tmp_path: Path
) -> None:
    both = shared(fake, "blob")
    daemon.trust(both.reference.partition("/")[0])
    progress = Watched(both.reference)
    ours = asyncio.create_task(large.pull(both.reference, progress, keep_lease_on_failure=True))
    await begun(progress)
    theirs = asyncio.create_task(pull_as_the_kubelet(daemon, both.reference))
    await progress.until(lambda found: aside(found) and found.states()[0] == "Waiting")
    # As if the kubelet's download had ended: nobody can be killed just between that and its layer.
    blob = both.image.layers[0].blob
    (tmp_path / "blob").write_bytes(blob.read())
    descriptor = Descriptor(blob.media_type, blob.digest, blob.size)
    async with short_lease(large.containerd, "brought", {}) as leased:
        await leased.content.ingest("brought", descriptor, tmp_path / "blob", {}, lambda _: None)
        theirs.cancel()
        with pytest.raises(asyncio.CancelledError):
            await theirs
        await ours
    assert len(fake.gets(both.lowest)) == 2
    assert progress.states() == ["Applied", "Applied"]
    assert (await large.presence(both.reference)).present
    await forgotten(large)
    await large.assert_clean()
