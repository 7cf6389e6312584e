"""When the fast path is not taken: for a node by the canary, for a layer by a refusal or a dead worker."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
import tarfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from imageprepull.pulling.canary import NotHere, try_staging
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.labels import LEASE
from imageprepull.pulling.plan import Memory
from imageprepull.runtime.connection import Containerd, connect
from imageprepull.unpacking import capabilities
from imageprepull.unpacking.frames import WIDER_WINDOW
from imageprepull.unpacking.jobs import (
    MORE_DIRECTORIES,
    MOST_REMEMBERED,
    MOST_WINDOW,
    Extracted,
    ExtractJob,
    Refused,
)
from imageprepull.unpacking.messages import Settings
from imageprepull.unpacking.workers import Workers
from tests.containerd.conftest import SNAPSHOTTER, Leftovers, collect_garbage, leftovers
from tests.containerd.layer_trees import layer_trees
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
from tests.testbed.daemon import ContainerdDaemon, DockerRegistry, containerd_daemon
from tests.testbed.faulty_registry import Fault, FaultyRegistry
from tests.testbed.images import LayerSpec, build_image
from tests.unit.unpacking_zygotes import children, until, zygote


@pytest.fixture
async def bench(
    containerd: Containerd, daemon: ContainerdDaemon, workers: Workers
) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon, workers=workers, stall=30) as bench:
        yield bench
        await bench.assert_clean()


def shown(bench: PullBench) -> tuple[str, str]:
    found = bench.puller.extraction.shown(SNAPSHOTTER)
    assert found is not None
    return found.path, found.reason


async def examine(
    containerd: Containerd, root: Path, workers: Workers | None, snapshotter: str = SNAPSHOTTER
) -> str:
    """Why not; empty when the canary went through."""
    try:
        await try_staging(containerd, snapshotter, root, workers, {LEASE: OWNER})
    except NotHere as no:
        return str(no)
    return ""


def root_of(daemon: ContainerdDaemon, snapshotter: str = SNAPSHOTTER) -> Path:
    return daemon.root / f"io.containerd.snapshotter.v1.{snapshotter}"


async def test_the_canary_goes_through_and_leaves_nothing(
    containerd: Containerd, daemon: ContainerdDaemon, workers: Workers
) -> None:
    assert await examine(containerd, root_of(daemon), workers) == ""
    assert await leftovers(containerd) == Leftovers()
    assert await containerd.snapshots.list(SNAPSHOTTER) == []


async def test_a_folder_that_is_not_the_runtimes(
    containerd: Containerd, daemon: ContainerdDaemon, workers: Workers, tmp_path: Path
) -> None:
    assert "No such file" in await examine(containerd, tmp_path, workers)
    # A folder of the same shape elsewhere, as another mount namespace or a machine behind the socket would have it.
    # As many as all tests before this one may have numbered.
    for number in range(1, 5000):
        (tmp_path / "snapshots" / str(number) / "fs").mkdir(parents=True)
    assert "does not see what is written" in await examine(containerd, tmp_path, workers)
    assert await leftovers(containerd) == Leftovers()
    assert await containerd.snapshots.list(SNAPSHOTTER) == []


async def test_snapshotters_that_are_not_overlayfs(
    containerd: Containerd, daemon: ContainerdDaemon, workers: Workers
) -> None:
    assert "native" in await examine(containerd, root_of(daemon, "native"), workers, "native")


async def test_workers_that_cannot_be_had_or_confined(
    containerd: Containerd, daemon: ContainerdDaemon
) -> None:
    assert "no workers" in await examine(containerd, root_of(daemon), None)
    kept = [number for name, number in capabilities.NEEDED.items() if name != "CAP_MKNOD"]
    with zygote(Settings(), kept=kept) as weak:
        assert "CAP_MKNOD" in await examine(containerd, root_of(daemon), weak)


async def test_a_proxy_is_not_overlayfs_whatever_it_is_called(
    containerd: Containerd, daemon: ContainerdDaemon, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins = await containerd.introspection.plugins(["type==io.containerd.snapshotter.v1"])
    for plugin in plugins:
        if plugin.id == SNAPSHOTTER:
            plugin.exports["address"] = "/run/soci.sock"  # type: ignore[index]

    async def answer(filters: Any = ()) -> Any:
        return plugins

    monkeypatch.setattr(containerd.introspection, "plugins", answer)
    assert "proxy for /run/soci.sock" in await examine(containerd, root_of(daemon), workers)


async def test_a_daemon_with_the_native_snapshotter_gets_the_portable_path(
    daemon: ContainerdDaemon, workers: Workers, fake: FaultyRegistry
) -> None:
    image = build_image([layer("native-0"), layer("native-1")])
    reference = fake_serve(fake, image)
    with containerd_daemon(daemon.version, snapshotter="native") as native:
        async with (
            connect(native.address) as containerd,
            pull_bench(containerd, native, workers=workers) as bench,
        ):
            await bench.pull(reference, snapshotter="native")
            found = bench.puller.extraction.shown("native")
            assert found is not None
            assert (found.path, "native" in found.reason) == ("portable", True)


async def test_the_path_is_found_anew_after_a_restart_of_the_daemon(
    daemon: ContainerdDaemon, workers: Workers
) -> None:
    if not daemon.running:
        daemon.start()
    async with (
        connect(daemon.address) as containerd,
        pull_bench(containerd, daemon, workers=workers) as bench,
    ):
        extraction = bench.puller.extraction
        assert (await extraction.choose(SNAPSHOTTER, {LEASE: OWNER})).path == "fast"
        await asyncio.to_thread(daemon.kill)
        extraction.forget()
        with pytest.raises(Exception, match=r"connect|nobody|ailable"):
            await extraction.choose(SNAPSHOTTER, {LEASE: OWNER})
        assert not extraction.known(SNAPSHOTTER)
        await start_daemon(daemon)
        await answering(containerd)
        assert (await extraction.choose(SNAPSHOTTER, {LEASE: OWNER})).path == "fast"
        await bench.assert_clean()


async def test_fast_without_a_way_fails_and_says_why(
    containerd: Containerd, daemon: ContainerdDaemon, registry: DockerRegistry
) -> None:
    reference = serve(registry, build_image([layer("no-way")]), "fast/no-way")
    async with pull_bench(containerd, daemon, path="fast") as bench:
        with pytest.raises(PullError, match="no workers") as caught:
            await bench.pull(reference)
        await bench.assert_clean()
    assert (caught.value.reason, caught.value.permanent) == ("FastPathImpossible", True)


async def test_a_layer_that_only_containerd_can_do_is_left_to_it(
    bench: PullBench, registry: DockerRegistry
) -> None:
    """A zstd window that we do not give ourselves the memory for; the layers around it go the fast path."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("wide")
        data = os.urandom(1000) * 70_000
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=26)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    blob = packed.compress(buffer.getvalue()) + packed.flush()
    image = build_image([layer("narrow"), LayerSpec(tar=buffer.getvalue(), compression="zstd"), layer("top")])
    image = replace_layer(image, 1, blob)
    reference = serve(registry, image, "fast/wide")
    progress = Watched("x")
    await bench.pull(reference, progress)
    assert shown(bench)[0] == "fast"
    assert progress.states() == ["Applied"] * 3
    assert (1, "Extracted") not in [(number, str(state)) for number, state in progress.history]
    assert (2, "Extracted") in [(number, str(state)) for number, state in progress.history]
    trees = await layer_trees(bench.containerd, image.chain_ids[-1])
    assert "wide" in trees[1]
    for built in image.layers:
        found = await bench.containerd.content.info(built.blob.digest)
        assert found is not None
        assert found.labels["containerd.io/uncompressed"] == built.diff_id


@pytest.mark.parametrize("first", [WIDER_WINDOW, MORE_DIRECTORIES])
async def test_a_layer_that_asks_for_more_keeps_what_it_was_given(
    bench: PullBench, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """A later frame's window and its directories, one after the other."""
    asked: list[Memory] = []
    refusals = [first, *{WIDER_WINDOW, MORE_DIRECTORIES} - {first}]
    extract = Workers.extract

    async def refuse(self: Workers, job: ExtractJob, **options: Any) -> Extracted:
        asked.append(Memory(job.window, job.remembered))
        if refusals:
            raise Refused(refusals.pop(0), "more")
        return await extract(self, job, **options)

    monkeypatch.setattr(Workers, "extract", refuse)
    progress = Watched("x")
    await bench.pull(serve(registry, build_image([layer("more")]), f"fast/{first.lower()}"), progress)
    assert (0, "Extracted") in [(number, str(state)) for number, state in progress.history]
    given = replace(Memory(), window=MOST_WINDOW)
    if first == MORE_DIRECTORIES:
        given = replace(Memory(), remembered=MOST_REMEMBERED)
    assert asked == [Memory(), given, Memory(MOST_WINDOW, MOST_REMEMBERED)]


async def test_what_both_refuse_ends_with_the_runtimes_words(
    bench: PullBench, registry: DockerRegistry
) -> None:
    image = build_image([layer("before"), LayerSpec(tar=b"this is no tar " * 100)])
    with pytest.raises(PullError, match=image.layers[1].blob.digest):
        await bench.pull(serve(registry, image, "fast/no-tar"))
    await bench.assert_clean()


async def test_a_bomb_is_refused_for_good_and_never_handed_on(
    bench: PullBench, registry: DockerRegistry
) -> None:
    """Ratio: a run of zeros in zstd."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("zeros")
        info.size = 200 << 20
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    image = build_image([layer("good"), LayerSpec(tar=buffer.getvalue(), compression="zstd")])
    with pytest.raises(PullError) as caught:
        await bench.pull(serve(registry, image, "fast/bomb"))
    assert (caught.value.reason, caught.value.permanent) == ("LayerTooLarge", True)
    assert image.layers[1].blob.digest in str(caught.value)
    await bench.assert_clean()


async def test_a_killed_worker_costs_its_layer_the_fast_path_only(
    bench: PullBench, fake: FaultyRegistry, workers: Workers
) -> None:
    image = build_image([layer("killed-worker", 600_000), layer("lives", 20_000)])
    release = asyncio.Event()
    fake.faults[image.layers[0].blob.digest] = [Fault(hold_after=100_000, release=release)]
    progress = Watched("x")
    reference = fake_serve(fake, image)
    pulling = asyncio.create_task(bench.pull(reference, progress))
    await progress.until(lambda seen: seen.states() == ["Extracting", "Extracted"])
    await until(lambda: len(children(workers._pid)) == 1)
    os.kill(children(workers._pid)[0], signal.SIGKILL)
    release.set()
    await pulling
    assert (await bench.presence(reference)).present
    assert shown(bench)[0] == "fast"
    assert len(fake.gets(image.layers[0].blob.digest)) == 1


async def test_a_collection_that_takes_the_folder_of_layers_to_come_costs_none_the_fast_path(
    containerd: Containerd, daemon: ContainerdDaemon, workers: Workers, fake: FaultyRegistry
) -> None:
    image = build_image([layer("folder-0"), layer("folder-1", 600_000)])
    release = asyncio.Event()
    fake.faults[image.layers[1].blob.digest] = [Fault(hold_after=0, release=release)]
    progress = Watched("x")
    async with pull_bench(containerd, daemon, path="fast", workers=workers, stall=30) as bench:
        pulling = asyncio.create_task(bench.pull(fake_serve(fake, image), progress))
        await progress.until(lambda seen: seen.states()[:1] == ["Applied"])
        (staging,) = await containerd.snapshots.list(SNAPSHOTTER, ["kind==active"])
        await containerd.snapshots.remove(SNAPSHOTTER, staging.name)
        await collect_garbage(containerd)  # only now its folder goes.
        assert not [path for path in daemon.named("0-*") if path.parent.name == "fs"]
        release.set()
        await pulling
        assert (await bench.presence(fake_serve(fake, image))).present
        await bench.assert_clean()


async def test_without_a_zygote_the_rest_goes_the_portable_path(
    containerd: Containerd, daemon: ContainerdDaemon, fake: FaultyRegistry
) -> None:
    image = build_image([layer("orphan", 600_000), layer("orphan-2", 20_000)])
    release = asyncio.Event()
    fake.faults[image.layers[0].blob.digest] = [Fault(hold_after=100_000, release=release)]
    with zygote(Settings()) as workers:
        async with pull_bench(containerd, daemon, workers=workers, stall=30) as bench:
            progress = Watched("x")
            reference = fake_serve(fake, image)
            pulling = asyncio.create_task(bench.pull(reference, progress))
            await progress.until(lambda seen: seen.states() == ["Extracting", "Extracted"])
            os.kill(workers._pid, signal.SIGKILL)
            release.set()
            await pulling
            assert (await bench.presence(reference)).present
            assert shown(bench) == ("portable", "the process that starts workers has died")
            again = fake_serve(fake, build_image([layer("orphan-3")]), "2")
            await bench.pull(again)
            assert (await bench.presence(again)).present
            await bench.assert_clean()


def replace_layer(image: Any, number: int, packed: bytes) -> Any:
    """The image with a layer's blob packed otherwise."""
    from dataclasses import replace  # noqa: PLC0415

    from tests.testbed.images import Blob, sha256  # noqa: PLC0415

    old = image.layers[number]
    blob = Blob(old.blob.media_type, sha256(packed), len(packed), packed)
    layers = (*image.layers[:number], replace(old, blob=blob), *image.layers[number + 1 :])
    manifest = json.loads(image.manifest.read())
    manifest["layers"][number] = blob.descriptor
    text = json.dumps(manifest).encode()
    return replace(
        image, layers=layers, manifest=Blob(image.manifest.media_type, sha256(text), len(text), text)
    )


async def test_the_capabilities_that_the_chart_adds_are_enough(
    containerd: Containerd, daemon: ContainerdDaemon, registry: DockerRegistry
) -> None:
    """As in a pod: root with these and no others, and no way to more. See charts/, test_chart_render."""
    names = [*capabilities.NEEDED, "CAP_SYS_CHROOT", "CAP_SETPCAP"]
    kept = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in names)
    reference = serve(registry, build_image([layer("capable")]), "fast/capable")
    daemon.trust(registry.host)
    command = ["setpriv", "--no-new-privs", f"--bounding-set=-all,{kept}", "--inh-caps=-all", "--"]
    command += [sys.executable, "-c", "from imageprepull.cli.main import main; main()"]
    command += ["pull", "--address", daemon.address, "--path", "fast", reference]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors.decode()
    assert await leftovers(containerd) == Leftovers()
