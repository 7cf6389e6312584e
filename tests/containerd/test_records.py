"""Records that others write at the same moment: whose they are afterwards, and whose their pins are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.oci.reference import Reference
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.labels import CRI_PINNED, MANAGED, PINNED
from imageprepull.pulling.records import pin, unpin
from imageprepull.pulling.removal import remove_image
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.images import ImageRecord, Images
from tests.containerd.conftest import SNAPSHOTTER
from tests.containerd.pull_bench import PullBench, layer, pull_as_the_kubelet, pull_bench, serve
from tests.testbed.daemon import ContainerdDaemon, DockerRegistry
from tests.testbed.images import build_image


@pytest.fixture
async def bench(containerd: Containerd, daemon: ContainerdDaemon) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon) as bench:
        yield bench
        await bench.assert_clean()


@contextmanager
def just_after_the_look(name: str, act: Callable[[], Awaitable[object]]) -> Iterator[None]:
    """`act` once, between the first look at a record and whatever follows from it."""
    acted = False
    get = Images.get

    async def looked(self: Images, asked: str) -> ImageRecord | None:
        nonlocal acted
        found = await get(self, asked)
        if asked == name and not acted:
            acted = True
            await act()
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Images, "get", looked)
        yield
    assert acted


async def labels_of(bench: PullBench, name: str) -> set[str]:
    record = await bench.containerd.images.get(name)
    assert record is not None
    return {MANAGED, PINNED, CRI_PINNED} & record.labels.keys()


@pytest.mark.parametrize("raced", ["id", "tag", "digest"])
async def test_a_record_that_the_kubelet_makes_after_we_looked_is_not_ours_but_our_pin_on_it_is(
    bench: PullBench, registry: DockerRegistry, raced: str
) -> None:
    image = build_image([layer(f"raced-{raced}")])
    by_tag = serve(registry, image, f"records/raced-{raced}")
    by_digest = f"{by_tag.rpartition(':')[0]}@{image.digest}"
    name = {"id": image.config.digest, "tag": by_tag, "digest": by_digest}[raced]
    theirs = by_digest if raced == "digest" else by_tag

    with just_after_the_look(name, lambda: pull_as_the_kubelet(bench.daemon, theirs)):
        await bench.pull(by_tag, pin=True)
    assert await labels_of(bench, name) == {PINNED, CRI_PINNED}

    verdict = await remove_image(
        bench.containerd, image.digest, snapshotter=SNAPSHOTTER, wanted=lambda: (), lease_labels={}
    )
    assert verdict.kept.endswith("was made by somebody else")
    assert name in await unpin(bench.containerd, Reference.parse(by_tag), image.digest)
    assert await labels_of(bench, name) == set()
    assert (await bench.presence(theirs)).present


async def test_a_pin_that_the_kubelet_takes_off_after_we_looked_is_set_again_as_ours(
    bench: PullBench, registry: DockerRegistry
) -> None:
    image = build_image([layer("pin-raced")])
    reference = serve(registry, image, "records/pin-raced")
    await bench.pull(reference, pin=True)
    with just_after_the_look(reference, lambda: pull_as_the_kubelet(bench.daemon, reference)):
        await bench.pull(reference, pin=True)
    assert await labels_of(bench, reference) == {PINNED, CRI_PINNED}


async def test_a_record_that_vanishes_after_we_looked_is_made_anew_and_ours(
    bench: PullBench, registry: DockerRegistry
) -> None:
    image = build_image([layer("vanished")])
    reference = serve(registry, image, "records/vanished")
    await pull_as_the_kubelet(bench.daemon, reference)
    with just_after_the_look(reference, lambda: bench.containerd.images.delete(reference)):
        await bench.pull(reference)
    assert await labels_of(bench, reference) == {MANAGED}
    assert (await bench.presence(reference)).present


async def test_a_record_that_never_settles_ends_the_pull_with_a_reason(
    bench: PullBench, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = serve(registry, build_image([layer("unsettled")]), "records/unsettled")
    await bench.pull(reference)
    get = Images.get

    async def looked(self: Images, name: str) -> ImageRecord | None:
        return None if name == reference else await get(self, name)

    monkeypatch.setattr(Images, "get", looked)
    with pytest.raises(PullError, match=reference) as caught:
        await bench.pull(reference)
    assert (caught.value.reason, caught.value.permanent) == ("RecordUnsettled", False)


async def test_a_tag_that_moves_while_a_pin_is_set_again_stays_where_it_is(
    bench: PullBench, registry: DockerRegistry
) -> None:
    """As an `Always` pull of the kubelet does it: we had read what the tag meant before."""
    image, newer = (build_image([layer(f"pin-moved-{number}")]) for number in range(2))
    reference = serve(registry, image, "records/pin-moved")
    await bench.pull(reference)
    other = serve(registry, newer, "records/pin-moved-newer")
    await bench.pull(other)
    target = (await target_of(bench, other)).target

    async def move() -> None:
        await bench.containerd.images.update(reference, target, {})

    with just_after_the_look(reference, move):
        await pin(bench.containerd, Reference.parse(reference), image.digest, image.config.digest)
    assert (await target_of(bench, reference)).target == target


async def test_the_pin_of_another_image_with_the_same_config_is_not_this_ones(
    bench: PullBench, registry: DockerRegistry
) -> None:
    """The ID's record is one for both: to take the pin away again and again would change nothing."""
    image = build_image([layer("pin-of-another")])
    reference = serve(registry, image, "records/pin-of-another")
    await bench.pull(reference, pin=True)
    assert (await bench.presence(reference, image.digest)).our_pin
    another = Descriptor("application/vnd.oci.image.index.v1+json", sha256_digest(b"another"), 7)
    await unpin(bench.containerd, Reference.parse(reference), image.digest)
    pinned = {CRI_PINNED: "pinned", PINNED: "true"}
    await bench.containerd.images.update(image.config.digest, another, pinned)
    found = await bench.presence(reference, image.digest)
    assert (found.present, found.our_pin) == (True, False)


async def target_of(bench: PullBench, name: str) -> ImageRecord:
    record = await bench.containerd.images.get(name)
    assert record is not None
    return record
