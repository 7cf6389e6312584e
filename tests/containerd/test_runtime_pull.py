"""Row 66: answers that our HTTP client refuses and Go's takes. The runtime pulls such an image itself, once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

import pytest

from imageprepull.pulling.errors import PullError
from imageprepull.pulling.labels import UNSYNCED
from imageprepull.runtime.connection import Containerd
from tests.containerd.conftest import SNAPSHOTTER, collect_garbage
from tests.containerd.pull_bench import (
    PullBench,
    Watched,
    fake_serve,
    layer,
    pull_as_the_kubelet,
    pull_bench,
)
from tests.testbed.daemon import ContainerdDaemon
from tests.testbed.faulty_registry import Fault, FaultyRegistry
from tests.testbed.images import build_image

Lengths = Literal["twice", "chunked"]


@pytest.fixture
async def bench(containerd: Containerd, daemon: ContainerdDaemon) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon) as bench:
        yield bench
        await bench.assert_clean()


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("lengths", ["twice", "chunked"])
async def test_row_66_the_runtime_pulls_what_only_our_client_refuses(
    bench: PullBench, fake: FaultyRegistry, daemon: ContainerdDaemon, lengths: Lengths, keep: bool
) -> None:
    image = build_image([layer(f"ill-0-{lengths}-{keep}"), layer(f"ill-1-{lengths}-{keep}")])
    fake.faults[image.layers[1].blob.digest] = [Fault(lengths=lengths) for _ in range(20)]
    reference = fake_serve(fake, image)
    daemon.trust(fake.address)
    progress = Watched(reference)
    outcome = await bench.pull(
        reference, progress, until="ready", digest=image.manifest.digest, pin=True, keep_lease_on_failure=keep
    )
    assert "runtime's own pull" in progress.note
    assert "not valid HTTP" in progress.note
    assert (outcome.digest, outcome.config_digest) == (image.manifest.digest, image.config.digest)
    assert progress.states() == ["Applied", "Applied"]
    found = await bench.presence(reference, image.manifest.digest, pin=True)
    assert found.complete, found.missing
    assert found.present, found.missing
    assert found.our_pin
    unsynced = [
        one.name for one in await bench.containerd.snapshots.list(SNAPSHOTTER) if UNSYNCED in one.labels
    ]
    assert unsynced == [], "layers that our attempt had committed are durable, too"
    await bench.assert_clean()


async def test_row_66_a_manifest_that_our_client_refuses_is_the_runtimes_too(
    bench: PullBench, fake: FaultyRegistry, daemon: ContainerdDaemon
) -> None:
    image = build_image([layer("ill-manifest")])
    reference = fake_serve(fake, image)
    for name in ("1", image.manifest.digest):
        fake.faults[name] = [Fault(lengths="twice") for _ in range(20)]
    daemon.trust(fake.address)
    progress = Watched(reference)
    await bench.pull(reference, progress, digest=image.manifest.digest)
    assert progress.note
    assert [found.digest for found in progress.layers] == [image.layers[0].blob.digest]
    assert (await bench.presence(reference, image.manifest.digest)).present


async def test_row_66_what_the_runtime_cannot_pull_either_is_final(
    bench: PullBench, fake: FaultyRegistry, daemon: ContainerdDaemon
) -> None:
    image = build_image([layer("ill-and-gone")])
    digest = image.layers[0].blob.digest
    # The daemon's hosts.toml names the registry as a host and as the server: ours asks both.
    fake.faults[digest] = [
        *[Fault(lengths="twice") for _ in range(2)],
        *[Fault(status=404) for _ in range(20)],
    ]
    reference = fake_serve(fake, image)
    daemon.trust(fake.address)
    with pytest.raises(PullError) as caught:
        await bench.pull(reference, digest=image.manifest.digest)
    assert (caught.value.reason, caught.value.permanent) == ("ProtocolError", True)
    assert "the runtime's own pull failed, too" in caught.value.message
    # What the runtime's own attempt has left is for its collector.
    await collect_garbage(bench.containerd)
    await bench.assert_clean()


async def test_row_66_another_failure_is_not_the_runtimes(
    bench: PullBench, fake: FaultyRegistry, daemon: ContainerdDaemon
) -> None:
    image = build_image([layer("ill-no")])
    reference = fake_serve(fake, image)
    del fake.blobs[image.layers[0].blob.digest]
    daemon.trust(fake.address)
    progress = Watched(reference)
    with pytest.raises(PullError) as caught:
        await bench.pull(reference, progress, digest=image.manifest.digest)
    assert (caught.value.reason, progress.note) == ("NotFound", "")


async def test_row_66_who_wants_our_path_or_none_gets_none(
    containerd: Containerd, daemon: ContainerdDaemon, fake: FaultyRegistry
) -> None:
    image = build_image([layer("ill-fast")])
    fake.faults[image.manifest.digest] = [Fault(lengths="twice") for _ in range(20)]
    reference = fake_serve(fake, image)
    daemon.trust(fake.address)
    async with pull_bench(containerd, daemon, path="fast") as bench:
        with pytest.raises(PullError, match="not valid HTTP") as caught:
            await bench.pull(reference, digest=image.manifest.digest)
        assert "runtime" not in caught.value.message
        assert await containerd.images.list() == []


@pytest.mark.parametrize("moved", ["before", "after"])
async def test_a_tag_that_somebody_moves_is_left_when_the_runtime_pulls_the_image(
    bench: PullBench, fake: FaultyRegistry, daemon: ContainerdDaemon, moved: str
) -> None:
    old, new = (build_image([layer(f"ill-{moved}-{number}")]) for number in range(2))
    reference = fake_serve(fake, old)
    by_digest = f"{reference.rpartition(':')[0]}@{old.digest}"
    daemon.trust(fake.address)

    async def move() -> None:
        fake_serve(fake, new)
        await pull_as_the_kubelet(daemon, reference)

    async def pull() -> str:
        progress = Watched(reference)
        await bench.pull(reference, progress, digest=old.digest, pin=True, tag_once=True)
        return progress.note

    if moved == "before":
        assert await pull() == ""
        await move()
        for name in (by_digest, old.config.digest):
            await bench.containerd.images.delete(name)
        await collect_garbage(bench.containerd)
    fake.faults[old.layers[0].blob.digest] = [Fault(lengths="twice") for _ in range(20)]
    assert "runtime's own pull" in await pull()
    if moved == "after":
        assert (await bench.presence(reference, old.digest, pin=True)).tag_means == "", "it was given it"
        await move()
    found = await bench.presence(reference, old.digest, pin=True)
    assert found.present, found.missing
    assert (found.tag_noted, found.tag_means) == (True, new.digest)
    tag = await bench.containerd.images.get(reference)
    assert tag is not None
    assert tag.target.digest == new.digest
