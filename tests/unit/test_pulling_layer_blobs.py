"""Pulls that look at one blob of the content store at a time, and what becomes of it meanwhile. The store is FAKE."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.reference import Reference
from imageprepull.pulling.documents import ChainLayer
from imageprepull.pulling.keyed_lock import KeyedLock
from imageprepull.pulling.layer_blobs import LayerBlobs
from imageprepull.pulling.progress import ImageProgress, LayerProgress
from imageprepull.runtime.content import ContentInfo
from imageprepull.runtime.labels import SOURCE_PREFIX

DIGEST = "sha256:" + "a" * 64
BLOB = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", DIGEST, 10)
LAYER = ChainLayer(BLOB, "sha256:" + "b" * 64, "sha256:" + "b" * 64, "")


class Store:
    """Content store and leases of a FAKE runtime with one blob; every call lets others go on."""

    def __init__(self) -> None:
        self.labels: dict[str, str] | None = {}
        self.leased: set[tuple[str, str]] = set()
        self.content = self.leases = self

    async def having(self, digests: Sequence[str]) -> list[str]:
        await asyncio.sleep(0)
        return list(digests) if self.labels is not None else []

    async def info(self, digest: str) -> ContentInfo | None:
        await asyncio.sleep(0)
        return None if self.labels is None else ContentInfo(digest, 10, dict(self.labels))

    async def add_resource(self, lease: str, _: str, digest: str) -> None:
        await asyncio.sleep(0)
        self.leased.add((lease, digest))

    async def update_labels(self, _: str, labels: Mapping[str, str]) -> None:
        await asyncio.sleep(0)
        assert self.labels is not None
        self.labels.update(labels)


def pull_of(repository: str, locks: KeyedLock) -> LayerBlobs:
    return LayerBlobs(
        machinery=cast("Any", SimpleNamespace(blobs=locks)),
        lease=repository,
        lease_labels={},
        reference=Reference.parse(f"registry.example/{repository}:1"),
        layers=(LAYER,),
        progress=ImageProgress(repository, layers=[LayerProgress.of(LAYER)]),
        resumes=False,
    )


async def test_images_of_two_repositories_that_look_at_once_are_both_noted_on_their_blob() -> None:
    store, locks = Store(), KeyedLock()
    pulls = [pull_of(repository, locks) for repository in ("one", "two")]
    await asyncio.gather(*(pull.look(cast("Any", store), [DIGEST]) for pull in pulls))
    assert store.labels == {f"{SOURCE_PREFIX}registry.example": "one,two"}
    assert store.leased == {("one", DIGEST), ("two", DIGEST)}
    assert all(pull.in_content(DIGEST) for pull in pulls)


async def test_a_blob_that_another_image_proves_damaged_is_not_believed_meanwhile() -> None:
    store, locks = Store(), KeyedLock()
    pull = pull_of("one", locks)
    async with locks.hold(DIGEST):
        looking = asyncio.create_task(pull.look(cast("Any", store), [DIGEST]))
        for _ in range(100):
            await asyncio.sleep(0)
        store.labels = None
    await looking
    assert not pull.in_content(DIGEST)
    assert [layer.state for layer in pull.progress.layers] == ["Waiting"]
