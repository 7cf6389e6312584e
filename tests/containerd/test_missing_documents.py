"""Documents of an image that another tool deletes right before its records are written, on both daemons.

The runtime takes records of an image whose documents are gone, and the CRI would show it until it is restarted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from imageprepull.pulling.documents import ImageDocuments, read_stored
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.labels import MANAGED
from imageprepull.pulling.naming import name_image
from imageprepull.pulling.records import missing_below
from imageprepull.pulling.request import PullRequest
from imageprepull.pulling.settings import PullSettings
from imageprepull.runtime.connection import Containerd
from tests.containerd.conftest import SNAPSHOTTER
from tests.containerd.pull_bench import (
    AMD64,
    PullBench,
    fake_serve,
    layer,
    pull_as_the_kubelet,
    pull_bench,
)
from tests.testbed.daemon import ContainerdDaemon
from tests.testbed.faulty_registry import FaultyRegistry
from tests.testbed.images import build_image, build_index

DOCUMENTS = ("config", "manifest", "index")


@pytest.fixture
async def bench(containerd: Containerd, daemon: ContainerdDaemon) -> AsyncIterator[PullBench]:
    async with pull_bench(containerd, daemon) as bench:
        yield bench
        await bench.assert_clean()


def served(bench: PullBench, fake: FaultyRegistry) -> tuple[str, dict[str, str]]:
    """An index of one image: its reference, and the digests of its documents."""
    image = build_image([layer("documents-0"), layer("documents-1")])
    index = build_index([image])
    reference = fake_serve(fake, index)
    bench.daemon.trust(reference.partition("/")[0])
    digests = (image.config.digest, image.manifest.digest, index.index.digest)
    return reference, dict(zip(DOCUMENTS, digests, strict=True))


@pytest.mark.parametrize("gone", DOCUMENTS)
async def test_a_document_that_is_gone_is_missed_though_all_layers_are_there(
    bench: PullBench, fake: FaultyRegistry, gone: str
) -> None:
    reference, digests = served(bench, fake)
    await bench.pull(reference)
    record = await bench.containerd.images.get(reference)
    assert record is not None
    found = await read_stored(bench.containerd, record.target, AMD64, unexpected)
    assert await missing_below(bench.containerd, found, snapshotter=SNAPSHOTTER) == ""
    async with bench.held(content=digests.values()):
        await bench.containerd.content.delete(digests[gone])
        missing = await missing_below(bench.containerd, found, snapshotter=SNAPSHOTTER)
    assert missing == f"the document {digests[gone]}"


def unexpected(digest: str) -> PullError:
    return PullError("NotPresent", digest)


def bereave(bench: PullBench, monkeypatch: pytest.MonkeyPatch, digest: str) -> list[set[str]]:
    """Delete a document right before the records are written, once; the names of records before each such moment."""
    named: list[set[str]] = []

    async def bereft(
        containerd: Containerd,
        unleased: Containerd,
        request: PullRequest,
        image: ImageDocuments,
        settings: PullSettings,
    ) -> bool:
        named.append({record.name for record in await containerd.images.list()})
        if len(named) == 1:
            await bench.containerd.content.delete(digest)
        return await name_image(containerd, unleased, request, image, settings)

    monkeypatch.setattr("imageprepull.pulling.image.name_image", bereft)
    return named


@pytest.mark.parametrize("gone", DOCUMENTS)
async def test_a_document_that_goes_right_before_the_records_is_written_again_within_the_pull(
    bench: PullBench, fake: FaultyRegistry, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    reference, digests = served(bench, fake)
    named = bereave(bench, monkeypatch, digests[gone])
    await bench.pull(reference)
    assert named == [set(), set()], (
        "the first records are taken back, and the image is named when it is whole"
    )
    found = await bench.presence(reference, digests["index"])
    assert (found.present, found.missing) == (True, "")
    layers = [path for _, path, _ in fake.requests if "/blobs/" in path and digests["config"] not in path]
    assert len(layers) == len(set(layers)), "no layer is fetched for it"


async def test_records_of_a_kubelets_pull_are_not_taken_back(
    bench: PullBench, fake: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, digests = served(bench, fake)
    await pull_as_the_kubelet(bench.daemon, reference)
    theirs = {record.name for record in await bench.containerd.images.list()}
    assert len(theirs) == 3
    named = bereave(bench, monkeypatch, digests["config"])
    await bench.pull(reference)
    assert named == [theirs, theirs]
    assert not any(MANAGED in record.labels for record in await bench.containerd.images.list())
    assert (await bench.presence(reference, digests["index"])).present
