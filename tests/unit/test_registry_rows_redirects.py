"""Where registries send their clients, row by row (A2), against the fault-injecting registry."""

from __future__ import annotations

import asyncio
import time

import pytest
from aiohttp import web
from yarl import URL

from imageprepull.registry.client import RegistryClient
from imageprepull.registry.credentials import Credential
from imageprepull.registry.errors import ErrorKind, RegistryError
from imageprepull.registry.redirects import next_target
from tests.testbed.faulty_registry_quirks import AT_STORE, QuirkyRegistry
from tests.testbed.faulty_registry_redirects import a_bucket_denies

ALICE = Credential("alice", "secret")
STEP = 50_000


async def read(
    client: RegistryClient, world: QuirkyRegistry, offset: int = 0, length: int | None = None
) -> bytes:
    async with client.open_blob(world.reference, world.blob, offset, length=length) as stream:
        assert stream.offset == offset
        return b"".join([part async for part in stream])


async def failure(client: RegistryClient, world: QuirkyRegistry) -> RegistryError:
    with pytest.raises(RegistryError) as caught:
        await read(client, world)
    return caught.value


@pytest.mark.parametrize("number", [23, 24])
async def test_row_23_24_a_password_does_not_follow_to_another_port(number: int) -> None:
    async with QuirkyRegistry(number) as world, world.client(ALICE) as client:
        assert await read(client, world) == world.layer
        assert await read(client, world, STEP, STEP) == world.layer[STEP : 2 * STEP]
        for request in world.store.requests:
            assert request.headers.getall("Authorization", []) == []
        for request in world.registry.requests:
            assert len(request.headers.getall("Authorization", [])) <= 1


async def test_row_25_a_target_is_asked_for_in_its_exact_spelling() -> None:
    async with QuirkyRegistry(25) as world, world.client() as client:
        assert await read(client, world) == world.layer
        assert await read(client, world, STEP) == world.layer[STEP:], "nor does the memory of it change it"


async def test_row_26_large_heads_are_read() -> None:
    async with QuirkyRegistry(26) as world, world.client() as client:
        assert await read(client, world) == world.layer


@pytest.mark.parametrize("status", [403, 404, 400])
async def test_row_27_a_head_that_fails_behind_a_redirect_is_a_get(status: int) -> None:
    async with QuirkyRegistry(27, status) as world, world.client() as client:
        assert (await client.resolve(world.reference)).digest == world.manifest.digest


async def test_row_28_a_blob_is_never_asked_for_by_head() -> None:
    async with QuirkyRegistry(28) as world, world.client() as client:
        assert await read(client, world) == world.layer
        await client.fetch_document(world.reference, world.config)
        assert not [line for line in world.registry.asked if line.startswith("HEAD")]


async def test_row_29_a_redirect_is_remembered_for_the_other_parts() -> None:
    async with QuirkyRegistry(29, 403) as world, world.client() as client:
        await read(client, world, 0, STEP)
        offsets = range(STEP, len(world.layer), STEP)
        parts = await asyncio.gather(*(read(client, world, offset, STEP) for offset in offsets))
        assert b"".join(parts) == world.layer[STEP:]
        assert world.seen["redirects"] == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
async def test_row_29_a_target_that_has_ended_is_asked_for_anew_by_one_for_all(status: int) -> None:
    async with QuirkyRegistry(29, status) as world, world.client() as client:
        await read(client, world, 0, STEP)
        world.notes["epoch"] = 2
        offsets = range(STEP, len(world.layer), STEP)
        parts = await asyncio.gather(*(read(client, world, offset, STEP) for offset in offsets))
        assert b"".join(parts) == world.layer[STEP:]
        assert world.seen["redirects"] == 2


async def test_row_29_a_target_that_is_refused_right_away_is_the_answer() -> None:
    async with QuirkyRegistry(29, 403) as world, world.client() as client:
        await read(client, world, 0, STEP)
        world.switch = a_bucket_denies
        error = await failure(client, world)
        assert (error.reason, error.kind, error.code) == (
            "RedirectTargetRefused", ErrorKind.TEMPORARY, "AccessDenied",
        )  # fmt: skip
        assert len(world.asked("/blobs/")) == 2, "the registry was asked once more, not for ever"


async def test_row_29_a_place_is_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imageprepull.registry.redirects.LIFE", -1)
    async with QuirkyRegistry(29, 403) as world, world.client() as client:
        for _ in range(3):
            await read(client, world, 0, STEP)
        assert world.seen["redirects"] == 3


async def test_row_30_after_a_cut_the_registry_is_asked_and_not_the_store() -> None:
    async with QuirkyRegistry(30) as world, world.client() as client:
        held = bytearray()

        async def first() -> None:
            async with client.open_blob(world.reference, world.blob) as stream:
                async for part in stream:
                    held.extend(part)

        with pytest.raises(RegistryError) as caught:
            await first()
        assert caught.value.kind is ErrorKind.TEMPORARY
        assert held == world.layer[:100_000], "what came before the cut is not lost"
        assert held + await read(client, world, len(held)) == world.layer
        assert (world.seen["1"], world.seen["2"]) == (1, 1)


async def test_row_31_a_bucket_that_denies_is_temporary_and_named() -> None:
    async with QuirkyRegistry(31) as world, world.client() as client:
        error = await failure(client, world)
        assert (error.kind, error.code, error.status) == (ErrorKind.TEMPORARY, "AccessDenied", 403)
        assert error.host == world.store.address


async def test_row_31_the_next_host_serves_what_a_bucket_denies() -> None:
    async with QuirkyRegistry(31) as mirror, QuirkyRegistry() as world:
        hosts = (mirror.registry.host(is_proxy=True), world.registry.host())
        async with world.client(hosts=hosts) as client:
            assert await read(client, world) == world.layer


async def test_row_32_a_relative_target_is_found() -> None:
    async with QuirkyRegistry(32) as world, world.client() as client:
        assert await read(client, world) == world.layer


@pytest.mark.parametrize(
    ("current", "location", "target"),
    [
        ("https://r.example/v2/a", "http://r.example/b?c=%2F", "https://r.example/b?c=%2F"),
        ("https://r.example:8443/v2/a", "http://r.example/b%2Fc", "https://r.example:8443/b%2Fc"),
        ("https://r.example/v2/a", "http://r.example:80/b", "https://r.example/b"),
        ("https://r.example/v2/a", "http://r.example:5000/b", "https://r.example:5000/b"),
        ("https://r.example/v2/a/blobs/b", "../c", "https://r.example/v2/a/c"),
        ("http://r.example/v2/a", "http://r.example/b", "http://r.example/b"),
    ],
)
def test_row_32_a_registry_behind_a_tls_proxy_is_asked_by_tls(
    current: str, location: str, target: str
) -> None:
    assert str(next_target(URL(current), location, "r.example", "GET /")) == target


def test_row_32_nothing_is_asked_without_tls_elsewhere() -> None:
    with pytest.raises(RegistryError, match="without TLS"):
        next_target(URL("https://r.example/v2/a"), "http://cdn.example/b", "r.example", "GET /")


@pytest.mark.parametrize(
    "location",
    ["http://169.254.169.254/latest", "http://[fe80::1]/x", "http://0.0.0.0:1/", "http://224.0.0.1/"],
)
async def test_row_33_a_target_that_no_registry_may_name_is_refused(location: str) -> None:
    async with QuirkyRegistry(33, location) as world, world.client() as client:
        error = await failure(client, world)
        assert (error.reason, error.kind) == ("RedirectRefused", ErrorKind.PERMANENT)


async def test_row_29_while_the_registry_fails_nobody_waits_twice() -> None:
    async with QuirkyRegistry(29, 403) as world, world.client(stall_timeout=1) as client:
        await read(client, world, 0, STEP)

        async def silent(registry: QuirkyRegistry, request: web.Request) -> web.StreamResponse:
            if not request[AT_STORE]:
                await asyncio.Event().wait()
            return web.Response(status=403)

        world.switch = silent
        started = time.monotonic()
        errors = await asyncio.gather(*(failure(client, world) for _ in range(20)))
        assert {error.reason for error in errors} == {"Stalled"}
        assert time.monotonic() - started < 15, "twenty in turn would take 20 s"


async def test_row_29_a_registry_that_serves_the_blob_itself_again_has_no_place_for_it() -> None:
    async with QuirkyRegistry(29, 403) as world, world.client() as client:
        await read(client, world, 0, STEP)

        async def store_is_gone(registry: QuirkyRegistry, request: web.Request) -> web.StreamResponse | None:
            return web.Response(status=404) if request[AT_STORE] else None

        world.switch = store_is_gone
        for offset in (STEP, 2 * STEP):
            assert await read(client, world, offset, STEP) == world.layer[offset : offset + STEP]
        assert len(world.store.requests) == 2, "the store is asked once more and then left alone"
        (place,) = client._blobs._asker.locations.values()
        assert place.target is None, "and nobody waits for another to find out where the blob is"
