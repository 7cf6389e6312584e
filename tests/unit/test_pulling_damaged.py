from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from imageprepull.pulling import damaged
from imageprepull.pulling.damaged import Removed, remove_damaged
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.labels import LEASE, LEASE_IMAGE
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.content import ContentInfo
from imageprepull.runtime.errors import DiskFailed, NotFound
from tests.unit.virtual_time import run_virtually

BODY = b"the bytes of a layer" * 10
DIGEST = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
LABELS = {"somebodys": "label"}


class Store:
    """A content store with one blob on record; `pieces` are what reading it gives, an error or a wait included."""

    def __init__(self, *pieces: bytes | Exception | float, gone: bool = False) -> None:
        self.pieces = pieces
        self.deleted: list[str] = []
        self.collected: list[Mapping[str, str]] = []
        self._gone = gone

    async def info(self, digest: str) -> ContentInfo | None:
        return ContentInfo(digest, len(BODY), LABELS)

    async def stream(self, digest: str) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, bytes):
                yield piece
            else:
                await asyncio.sleep(piece)

    async def delete(self, digest: str) -> None:
        if self._gone:
            raise NotFound("delete", digest)
        self.deleted.append(digest)


async def look(store: Store, monkeypatch: pytest.MonkeyPatch, stall: float = 10) -> Removed | None:
    @asynccontextmanager
    async def lease(_: Any, __: str, labels: Mapping[str, str], *, sync: bool) -> AsyncIterator[None]:
        yield
        assert sync
        store.collected.append(labels)

    monkeypatch.setattr(damaged, "short_lease", lease)
    containerd = cast("Containerd", SimpleNamespace(content=store))
    return await remove_damaged(containerd, DIGEST, {LEASE: "us", LEASE_IMAGE: "image"}, stall=stall)


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([BODY[:7], BODY[8:], b"!"], "its file has other bytes"),
        ([BODY[:7]], f"its file has 7 of {len(BODY)} bytes"),
        ([], f"its file has 0 of {len(BODY)} bytes"),
        ([NotFound("read", DIGEST)], "its file is gone"),
    ],
)
async def test_a_damaged_blob_is_removed_and_its_file_collected(
    pieces: list[bytes | Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(*pieces)
    assert await look(store, monkeypatch) == Removed(said, LABELS)
    assert store.deleted == [DIGEST]
    assert store.collected == [{LEASE: "us"}], "the lease names no image"


async def test_a_whole_blob_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(BODY[:7], BODY[7:])
    assert await look(store, monkeypatch) is None
    assert not store.deleted
    assert not store.collected


async def test_what_somebody_else_removed_meanwhile_is_not_ours_to_bring_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert await look(Store(NotFound("read", DIGEST), gone=True), monkeypatch) is None


def test_a_runtime_that_stalls_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hashed(work: Callable[[], None]) -> None:
        await asyncio.sleep(600)
        work()

    monkeypatch.setattr(damaged, "in_thread", hashed)
    slow = Store(BODY[:7], 30.0, BODY[7:9], 30.0, BODY[9:], 30.0)
    assert run_virtually(look(slow, monkeypatch, stall=50)) is None, (
        "each piece may take that long, and we as long as we need"
    )
    stalled = Store(BODY[:7], 51.0, BODY[7:])
    with pytest.raises(PullError) as caught:
        run_virtually(look(stalled, monkeypatch, stall=50))
    assert caught.value.reason == "RuntimeStalled"
    assert not stalled.deleted


async def test_a_runtime_that_fails_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Store(BODY[:7], DiskFailed("read", "input/output error"))
    with pytest.raises(DiskFailed):
        await look(failing, monkeypatch)
    assert not failing.deleted
