"""Bad input and faults: each ends in a typed error and leaves no lease, ingest, active snapshot or spool file.

The FAKE registry serves what a real one refuses to store or cannot be made to do.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from imageprepull.pulling import placing
from imageprepull.pulling.chain import Chain
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.labels import LEASE, LEASE_IMAGE
from imageprepull.pulling.steps import Step
from imageprepull.runtime.connection import Containerd, connect
from imageprepull.runtime.content import private_ref
from tests.containerd.conftest import SNAPSHOTTER, leftovers, wipe
from tests.containerd.pull_bench import (
    OWNER,
    PullBench,
    Watched,
    answering,
    fake_serve,
    layer,
    pull_bench,
    serve,
    start_daemon,
)
from tests.testbed.daemon import ContainerdDaemon, DockerRegistry
from tests.testbed.faulty_registry import Fault, FaultyRegistry
from tests.testbed.images import Blob, BuiltImage, BuiltIndex, LayerSpec, build_image, build_index, sha256


@pytest.fixture
async def bench(containerd: Containerd, daemon: ContainerdDaemon) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon, stall=2) as bench:
        yield bench
        await bench.assert_clean()


async def refused(bench: PullBench, reference: str, **changes: Any) -> PullError:
    with pytest.raises(PullError) as caught:
        await bench.pull(reference, **changes)
    await bench.assert_clean()
    assert await bench.containerd.images.list() == []
    assert "\n" not in str(caught.value)
    return caught.value


def spool_names(blob: Blob) -> set[str]:
    """The files of a blob. Beside them may be those of a complete one whose ingest the failure cancelled."""
    name = blob.digest.replace(":", "-")
    return {name, f"{name}.json"}


def changed(image: BuiltImage, change: Callable[[dict[str, Any]], object], part: str) -> BuiltImage:
    """The image with an edited manifest or config, all digests right again."""
    config, manifest = json.loads(image.config.read()), json.loads(image.manifest.read())
    change(config if part == "config" else manifest)
    body = json.dumps(config).encode()
    config_blob = Blob(image.config.media_type, sha256(body), len(body), body)
    manifest["config"] = {**manifest["config"], "digest": config_blob.digest, "size": config_blob.size}
    text = json.dumps(manifest).encode()
    return replace(
        image, config=config_blob, manifest=Blob(image.manifest.media_type, sha256(text), len(text), text)
    )


async def test_an_unknown_repository_or_tag(bench: PullBench, registry: DockerRegistry) -> None:
    known = serve(registry, build_image([layer("known")]), "known/image")
    for reference in (f"{registry.host}/no/such:1", known.rpartition(":")[0] + ":other"):
        error = await refused(bench, reference)
        assert (error.reason, error.permanent) == ("NotFound", True)
        assert reference.partition(":")[0] in str(error)


async def test_an_image_for_other_platforms_only(bench: PullBench, registry: DockerRegistry) -> None:
    index = build_index([build_image([layer(a)], architecture=a) for a in ("arm64", "s390x")])
    error = await refused(bench, serve(registry, index, "other/platforms"))
    assert error.reason == "NoMatchingPlatform"
    assert "linux/arm64" in str(error)


async def test_a_registry_that_nobody_is(bench: PullBench) -> None:
    error = await refused(bench, "127.0.0.1:1/a/b:1")
    assert not error.permanent
    assert "127.0.0.1:1" in str(error)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_registry_that_refuses(bench: PullBench, fake: FaultyRegistry, status: int) -> None:
    reference = fake_serve(fake, build_image([layer("refused")]))
    fake.faults["1"] = [Fault(status=status) for _ in range(20)]
    error = await refused(bench, reference)
    assert (error.reason, error.permanent) == ("DeniedOrMissing", True)


@pytest.mark.parametrize("what", ["manifest", "config", "layer"])
@pytest.mark.parametrize("how", ["digest", "size"])
async def test_bytes_that_are_not_those_of_the_descriptor(
    bench: PullBench, fake: FaultyRegistry, what: str, how: str
) -> None:
    image = build_image([layer("right"), layer("wrong", 50_000)])
    index = build_index([image])
    reference = fake_serve(fake, index)
    digest = {"manifest": image.manifest, "config": image.config, "layer": image.layers[1].blob}[what].digest

    def corrupt(body: bytes) -> bytes:
        return body[:-1] + bytes([body[-1] ^ 1]) if how == "digest" else body + b" "

    fake.faults[digest] = [Fault(change=corrupt) for _ in range(50)]
    error = await refused(bench, reference)
    if how == "digest":
        assert error.reason == "CorruptUpstream"
    else:
        assert "Mismatch" in error.reason or not error.permanent, error.reason
    assert digest[:19] in str(error)


async def test_a_layer_that_unpacks_to_something_else(bench: PullBench, fake: FaultyRegistry) -> None:
    image = build_image([layer("honest"), layer("liar")])

    def lie(config: dict[str, Any]) -> None:
        config["rootfs"]["diff_ids"][1] = sha256(b"something else")

    error = await refused(bench, fake_serve(fake, changed(image, lie, "config")))
    assert (error.reason, error.permanent) == ("DiffIDMismatch", True)
    assert image.layers[1].blob.digest in str(error)


async def test_a_manifest_that_is_also_an_index(bench: PullBench, fake: FaultyRegistry) -> None:
    image = build_image([layer("both")])
    error = await refused(
        bench,
        fake_serve(
            fake, changed(image, lambda m: m.update(manifests=[image.manifest.descriptor]), "manifest")
        ),
    )
    assert (error.reason, error.permanent) == ("AmbiguousManifest", True)


@pytest.mark.parametrize("change", [lambda ids: ids.pop(), lambda ids: ids.append(sha256(b"more"))])
async def test_layers_and_diff_ids_must_be_as_many(
    bench: PullBench, fake: FaultyRegistry, change: Callable[[list[str]], object]
) -> None:
    image = build_image([layer("one"), layer("two")])
    bad = changed(image, lambda config: change(config["rootfs"]["diff_ids"]), "config")
    error = await refused(bench, fake_serve(fake, bad))
    assert (error.reason, error.permanent) == ("LayerCountMismatch", True)


async def test_a_layer_that_is_no_tar(bench: PullBench, registry: DockerRegistry) -> None:
    image = build_image([layer("tar"), LayerSpec(tar=b"this is no tar " * 100)])
    error = await refused(bench, serve(registry, image, "no/tar"))
    assert image.layers[1].blob.digest in str(error)


@pytest.mark.parametrize("when", ["download", "apply"])
async def test_a_cancelled_pull_leaves_nothing(bench: PullBench, fake: FaultyRegistry, when: str) -> None:
    image = build_image([layer("cancel-0", 50_000), layer("cancel-1", 400_000)])
    if when == "download":
        fake.faults[image.layers[1].blob.digest] = [Fault(hold_after=100_000)]
    progress = Watched("x")
    pulling = asyncio.create_task(bench.pull(fake_serve(fake, image), progress))
    if when == "download":
        await progress.until(lambda seen: seen.states() == ["Applied", "Downloading"])
    else:
        await progress.until(lambda seen: "Extracting" in seen.states())
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    await bench.assert_clean()


async def test_an_agents_failed_pull_keeps_its_lease_and_bytes_until_it_is_abandoned(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    image = build_image([layer("keep-0"), layer("keep-1", 900_000)])
    reference = fake_serve(fake, image)
    cut = image.layers[1].blob
    fake.faults[cut.digest] = [Fault(cut_after=cut.size // 2), *[Fault(status=503) for _ in range(9)]]
    changes: dict[str, Any] = {"digest": image.digest, "keep_lease_on_failure": True}
    with pytest.raises(PullError):
        await bench.pull(reference, **changes)
    left = await leftovers(bench.containerd)
    assert len(left.leases) == 1
    # The failure may come while the other layer is being recorded or ingested: its lease holds that for the next
    # attempt.
    other = image.layers[0].blob.digest
    assert set(left.ingests) <= {private_ref(other), f"layer-{other}"}
    assert left.active_snapshots == []
    assert spool_names(cut) <= set(bench.spooled())
    fake.faults.clear()
    first = sum(len(span) > 0 for span in fake.gets(cut.digest))
    asked = len(fake.requests)
    outcome = await bench.pull(reference, **changes)
    again = [path for _, path, _ in fake.requests[asked:]]
    assert not [path for path in again if "/manifests/" in path or image.config.digest in path], (
        "the documents are in the runtime, and registries count manifests"
    )
    assert outcome.bytes_downloaded < cut.size, "not from the beginning"
    assert sum(len(span) > 0 for span in fake.gets(cut.digest)) > first
    assert (await bench.presence(reference)).present


async def test_bytes_kept_for_a_next_attempt_go_when_it_finds_the_blob_in_the_runtime(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    image, other = (build_image([layer("found", 900_000)]) for _ in range(2))
    blob = image.layers[0].blob
    fake.faults[blob.digest] = [Fault(cut_after=blob.size // 2), *[Fault(status=503) for _ in range(9)]]
    reference = fake_serve(fake, image)
    changes: dict[str, Any] = {"digest": image.digest, "keep_lease_on_failure": True}
    with pytest.raises(PullError):
        await bench.pull(reference, **changes)
    assert spool_names(blob) <= set(bench.spooled())
    fake.faults.clear()
    async with pull_bench(bench.containerd, bench.daemon) as kubelet:
        kubelet.puller._machinery.spool.folder = bench.spool.with_name("elsewhere")
        await kubelet.pull(fake_serve(fake, other, "2"))
    await bench.pull(reference, **changes)
    await bench.assert_clean()


async def test_an_abandoned_image_leaves_nothing(bench: PullBench, fake: FaultyRegistry) -> None:
    image = build_image([layer("give-up", 900_000)])
    reference = fake_serve(fake, image)
    blob = image.layers[0].blob
    fake.faults[blob.digest] = [Fault(cut_after=blob.size // 2), *[Fault(status=503) for _ in range(9)]]
    changes: dict[str, Any] = {"digest": image.digest, "keep_lease_on_failure": True}
    with pytest.raises(PullError):
        await bench.pull(reference, **changes)
    await bench.puller.abandon(bench.request(reference, **changes))
    await bench.assert_clean()


async def test_a_sweep_removes_what_a_dead_agent_left_and_nothing_of_others(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    image = build_image([layer("dead-0"), layer("dead-1", 900_000)])
    reference = fake_serve(fake, image)
    blob = image.layers[1].blob
    fake.faults[blob.digest] = [Fault(cut_after=blob.size // 2), *[Fault(status=503) for _ in range(9)]]
    with pytest.raises(PullError):
        await bench.pull(reference, digest=image.digest, keep_lease_on_failure=True)
    runtime = bench.containerd
    (lease,) = (await leftovers(runtime)).leases
    ours = runtime.with_lease(lease)
    await ours.snapshots.prepare(SNAPSHOTTER, "extract-1 mine", "", {"imageprepull.io/lease": OWNER})
    await runtime.leases.create("not-ours", {"somebody": "else"}, 60)
    others = runtime.with_lease("not-ours")
    await others.snapshots.prepare(SNAPSHOTTER, "extract-2 theirs", "", {})
    # As another version named it: no pull would ever adopt it.
    await runtime.leases.create("of-another-version", {LEASE: OWNER, LEASE_IMAGE: image.digest}, 24 * 3600)

    mine = {LEASE: OWNER}
    await runtime.leases.create("of-no-image", mine, 60)
    await runtime.leases.create("expired", {**mine, LEASE_IMAGE: image.digest}, -1)
    unknown = await bench.sweep(None)
    assert (unknown.kept_leases, unknown.snapshots) == ([lease], ["extract-1 mine"])
    assert set(unknown.leases) >= {"of-no-image", "of-another-version"}
    # The runtime's own collection may have been first.
    assert (await leftovers(runtime)).leases == sorted([lease, "not-ours"])
    assert spool_names(blob) <= set(bench.spooled())
    kept = await bench.sweep({image.digest})
    assert (kept.kept_leases, kept.leases, kept.snapshots) == ([lease], [], [])
    assert spool_names(blob) <= set(bench.spooled())
    gone = await bench.sweep()
    assert gone.leases == kept.kept_leases
    assert bench.spooled() == []
    left = await leftovers(runtime)
    assert (left.leases, left.active_snapshots) == (["not-ours"], ["extract-2 theirs"])
    await runtime.snapshots.remove(SNAPSHOTTER, "extract-2 theirs")
    await runtime.leases.delete("not-ours")


async def test_the_bytes_of_a_pull_whose_lease_has_expired_are_not_fetched_again(
    bench: PullBench, fake: FaultyRegistry
) -> None:
    """As of an agent that was away for more than a day, on the same boot."""
    image = build_image([layer("late", 900_000)])
    reference = fake_serve(fake, image)
    blob = image.layers[0].blob
    fake.faults[blob.digest] = [Fault(cut_after=blob.size // 2), *[Fault(status=503) for _ in range(9)]]
    with pytest.raises(PullError):
        await bench.pull(reference, digest=image.digest, keep_lease_on_failure=True)
    runtime = bench.containerd
    (lease,) = await runtime.leases.list()
    await runtime.leases.delete(lease.id)
    await runtime.leases.create(lease.id, {LEASE: OWNER, LEASE_IMAGE: image.digest}, -60)
    swept = await bench.sweep({image.digest})
    assert (swept.kept_leases, swept.spools) == ([], []), "a collection may take the lease at any time"
    assert (await leftovers(runtime)).leases == []
    fake.faults.clear()
    outcome = await bench.pull(reference, digest=image.digest, keep_lease_on_failure=True)
    assert outcome.bytes_downloaded < 0.6 * blob.size
    await bench.assert_clean()


async def test_a_file_that_a_dead_agent_has_placed_and_not_recorded_goes_with_its_spool_file(
    bench: PullBench, fake: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = build_image([layer("unrecorded", 50_000)])
    digest = image.layers[0].blob.digest
    blobs = bench.daemon.root / "io.containerd.content.v1.content" / "blobs" / "sha256"
    placed = blobs / digest.removeprefix("sha256:")

    def die(step: Step, subject: str) -> None:
        if step is Step.PLACED and subject == digest:
            raise PullError("Died", "the agent died")

    await bench.pull(fake_serve(fake, build_image([layer("first")]), "first"))  # the store makes its folder.
    # From now on the runtime's own collections have no reason to look at files.
    await placing.collect_unrecorded(bench.containerd, {})
    with monkeypatch.context() as patched:
        patched.setattr(placing, "reached", die)
        with pytest.raises(PullError, match="the agent died"):
            await bench.pull(fake_serve(fake, image), digest=image.digest, keep_lease_on_failure=True)
    assert placed.samefile(bench.spool / digest.replace(":", "-"))
    assert await bench.containerd.content.info(digest) is None
    await bench.sweep()
    assert bench.spooled() == []
    assert not placed.exists()


@pytest.mark.parametrize("when", ["at once", "later"])
async def test_a_blob_that_is_taken_away_with_the_lease_is_not_fetched_again(
    bench: PullBench, fake: FaultyRegistry, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The runtime has made the layer of it: where it was placed its name in the spool takes no room, and stays."""
    image = build_image([layer("taken-0", 50_000), layer("taken-1", 600_000)])
    release, leases = asyncio.Event(), bench.containerd.leases
    taken, held = (one.blob.digest for one in image.layers)
    fake.faults[held] = [Fault(hold_after=100_000, release=release)]
    progress = Watched("x")

    async def take() -> None:
        for lease in await leases.list():
            await leases.delete(lease.id, sync=True)
        assert await bench.containerd.content.info(taken) is None

    async def apply_and_take(*arguments: Any, **options: Any) -> None:
        await apply(*arguments, **options)
        monkeypatch.undo()
        await take()

    # What the runtime's store has never had it makes the folders for; nothing is placed before that.
    await bench.pull(fake_serve(fake, build_image([layer("first")]), "first"))
    apply = Chain.apply
    if when == "at once":
        monkeypatch.setattr(Chain, "apply", apply_and_take)
    pulling = asyncio.create_task(bench.pull(fake_serve(fake, image), progress))
    await progress.until(lambda seen: seen.states() == ["Applied", "Downloading"])
    if when == "later":
        await take()
    release.set()
    await pulling
    assert [len(fake.gets(digest)) for digest in (taken, held)] == [1, 1]


async def test_layers_of_another_boot_are_removed_with_all_that_stands_on_them(
    bench: PullBench, registry: DockerRegistry
) -> None:
    image = build_image([layer("boot-0"), layer("boot-1")])
    other = build_image([layer("boot-0"), layer("boot-2")])
    apart = build_image([layer("boot-3")])
    images: list[BuiltImage | BuiltIndex] = [build_index([image]), other, apart]
    references = [serve(registry, built, f"boot/{number}") for number, built in enumerate(images)]
    for reference in references:
        await bench.pull(reference)
    runtime = bench.containerd
    await runtime.snapshots.update_labels(
        SNAPSHOTTER, image.chain_ids[0], {"imageprepull.io/unsynced": "an earlier boot"}
    )
    assert not (await bench.presence(references[0])).present
    swept = await bench.sweep()
    assert set(swept.unsynced_snapshots) == {*image.chain_ids, other.chain_ids[1]}
    assert [(await bench.presence(reference)).present for reference in references] == [False, False, True]
    outcome = await bench.pull(references[0])
    assert [str(found.state) for found in outcome.layers] == ["Applied", "Applied"]


async def test_a_daemon_killed_in_the_middle_is_a_temporary_failure_and_the_next_attempt_goes_on(
    daemon: ContainerdDaemon, fake: FaultyRegistry
) -> None:
    image = build_image([layer("killed-0"), layer("killed-1", 300_000)])
    release = asyncio.Event()
    fake.faults[image.layers[1].blob.digest] = [Fault(hold_after=10_000, release=release)]
    reference = fake_serve(fake, image)
    changes: dict[str, Any] = {"digest": image.digest, "keep_lease_on_failure": True}
    async with connect(daemon.address) as containerd, pull_bench(containerd, daemon) as bench:
        progress = Watched("x")
        pulling = asyncio.create_task(bench.pull(reference, progress, **changes))
        await progress.until(lambda seen: seen.states()[:1] == ["Applied"])
        await asyncio.to_thread(daemon.kill)
        release.set()
        with pytest.raises(PullError) as caught:
            await pulling
        assert (caught.value.reason, caught.value.permanent) == ("RuntimeUnavailable", False)
        await start_daemon(daemon)
        await answering(containerd)
        outcome = await bench.pull(reference, **changes)
        assert [str(found.state) for found in outcome.layers] == ["Exists", "Applied"]
        assert outcome.bytes_downloaded == 0, "the blob had arrived, only the daemon could not take it"
        assert fake.gets(image.layers[1].blob.digest) == [""]
        assert (await bench.presence(reference)).present
        await bench.assert_clean()
        await wipe(containerd)
