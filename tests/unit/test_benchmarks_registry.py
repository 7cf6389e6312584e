"""The benchmark's own registry, and the same blobs laid out for docker's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from benchmarks.images import Image, Store
from benchmarks.registry import lay_out
from benchmarks.static_registry import StaticRegistry

MANIFEST, CONFIG, LAYER = (f"sha256:{letter * 64}" for letter in "abc")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path)
    made.blobs.mkdir()
    for digest, data in ((MANIFEST, b"{}"), (CONFIG, b"config"), (LAYER, b"0123456789")):
        made.blob(digest).write_bytes(data)
    image = Image("eight", MANIFEST, "application/x-manifest", CONFIG, CONFIG, (LAYER,), 10, 20, 1)
    (tmp_path / "eight.json").write_text(json.dumps(asdict(image)))
    return made


@pytest.fixture
async def url(store: Store) -> AsyncIterator[str]:
    runner = web.AppRunner(StaticRegistry(store).application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield "http://{}:{}".format(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()


def test_an_image_is_read_back_as_it_was_kept(store: Store) -> None:
    assert store.images()["eight"].digests == (MANIFEST, CONFIG, LAYER)
    assert store.image("eight").repository == "bench/eight"


def test_an_image_that_nothing_makes_is_refused(store: Store) -> None:
    with pytest.raises(KeyError):
        store.image("nine")


async def test_a_manifest_is_found_by_any_tag_and_its_digest(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        for name in ("1", MANIFEST):
            async with session.get(f"{url}/v2/bench/eight/manifests/{name}") as answer:
                assert answer.headers["Docker-Content-Digest"] == MANIFEST
                assert answer.headers["Content-Type"] == "application/x-manifest"
                assert await answer.read() == b"{}"
        async with session.head(f"{url}/v2/bench/eight/manifests/1") as answer:
            assert answer.headers["Content-Length"] == "2"
        for missing in (f"eight/manifests/{CONFIG}", "nine/manifests/1", f"eight/blobs/sha256:{'d' * 64}"):
            async with session.get(f"{url}/v2/bench/{missing}") as answer:
                assert answer.status == 404


async def test_blobs_come_whole_and_in_ranges_and_are_counted(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        for asked, status, data in (
            ({}, 200, b"0123456789"),
            ({"Range": "bytes=2-4"}, 206, b"234"),
            ({"Range": "bytes=7-"}, 206, b"789"),
        ):
            async with session.get(f"{url}/v2/bench/eight/blobs/{LAYER}", headers=asked) as answer:
                assert (answer.status, await answer.read()) == (status, data)
        async with session.get(f"{url}/stats") as answer:
            assert await answer.json() == {"blobRequests": 3, "ranges": 2, "atOnce": 1}
        async with session.get(f"{url}/stats") as answer:
            assert (await answer.json())["blobRequests"] == 0


def test_dockers_registry_gets_links_and_no_copies(store: Store, tmp_path: Path) -> None:
    lay_out(store, tmp_path / "docker")
    top = tmp_path / "docker/docker/registry/v2"
    layer = LAYER.removeprefix("sha256:")
    assert (top / "blobs/sha256/cc" / layer / "data").samefile(store.blob(LAYER))
    repository = top / "repositories/bench/eight"
    assert (repository / "_layers/sha256" / layer / "link").read_text() == LAYER
    assert (repository / "_manifests/tags/1/current/link").read_text() == MANIFEST
