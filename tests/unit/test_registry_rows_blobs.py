"""What registries make of blobs, ranges and connections, row by row (A4), against the fault-injecting registry."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest

import tests.testbed.faulty_registry_blobs  # noqa: F401 - registers the switches
from imageprepull.oci.descriptor import OCI_LAYER, Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.oci.reference import Reference
from imageprepull.registry.client import RegistryClient
from imageprepull.registry.errors import ErrorKind, RegistryError
from imageprepull.registry.health import Ranges
from imageprepull.registry.host import RegistryHost
from imageprepull.registry.proxies import Proxies
from tests.testbed.faulty_registry_quirks import QuirkyRegistry
from tests.testbed.registry_server import FixedHosts


async def read(
    client: RegistryClient, world: QuirkyRegistry, offset: int = 0, length: int | None = None
) -> tuple[int, bytes, bool]:
    async with client.open_blob(world.reference, world.blob, offset, length=length) as stream:
        return stream.offset, b"".join([part async for part in stream]), stream.ranged


async def failure(client: RegistryClient, world: QuirkyRegistry, *span: int) -> RegistryError:
    with pytest.raises(RegistryError) as caught:
        await read(client, world, *span)
    return caught.value


async def test_row_51_an_ignored_range_is_a_stream_from_zero() -> None:
    async with QuirkyRegistry(51) as world, world.client() as client:
        assert await read(client, world, 1000) == (0, world.layer, False)
        assert await read(client, world, 1000, 500) == (0, world.layer[:1500], False)
        assert len(world.registry.asked) == 2, "the answer is used, not asked for again"


async def test_row_52_a_cold_cache_is_asked_once_and_says_that_it_does_no_ranges_yet() -> None:
    async with QuirkyRegistry(52) as world, world.client() as client:
        assert (await read(client, world, 0, 1000))[2] is False, "so that nobody fans out"
        assert world.seen["fetches"] == 1
        world.notes["warm"] = True
        assert await read(client, world, 1000, 1000) == (1000, world.layer[1000:2000], True)
        assert client._blobs.ranges.known(world.registry.host().url) is Ranges.SERVED


@pytest.mark.parametrize("status", [400, 501, None])
async def test_row_53_a_host_without_ranges_is_asked_plainly_from_then_on(status: int | None) -> None:
    async with QuirkyRegistry(53, status) as world, world.client(stall_timeout=5) as client:
        for _ in range(3):
            assert await read(client, world, 1000, 500) == (0, world.layer[:1500], False)
        assert world.seen["ranges"] == 1


async def test_row_53_what_is_known_of_ranges_is_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imageprepull.registry.health.RANGES", -1)
    async with QuirkyRegistry(53, 400) as world, world.client() as client:
        for _ in range(2):
            await read(client, world, 1000, 500)
        assert world.seen["ranges"] == 2


@pytest.mark.parametrize(
    "answer",
    [
        ("bytes 0-499/300000", 500),
        ("bytes 1000-1600/300000", 601),
        ("bytes 1000-1499/400000", 500),
        ("bytes 1000-1499", 500),
        ("", 500),
    ],
)
async def test_row_54_another_range_is_not_taken(answer: tuple[str, int]) -> None:
    async with QuirkyRegistry(54, answer) as world, world.client() as client:
        assert await read(client, world, 1000, 500) == (0, world.layer[:1500], False)


async def test_row_54_more_bytes_than_the_range_are_refused() -> None:
    async with QuirkyRegistry(54, ("bytes 1000-1499/300000", 501)) as world, world.client() as client:
        assert (await failure(client, world, 1000, 500)).reason == "SizeMismatch"


async def test_row_55_nothing_is_asked_for_at_the_end() -> None:
    async with QuirkyRegistry(55) as world, world.client() as client:
        for span in ((len(world.layer), None), (len(world.layer) + 1, None), (-1, None), (5, 0)):
            with pytest.raises(ValueError, match="none from"):
                await read(client, world, *span)
        assert world.registry.asked == []
        assert await read(client, world, 1000) == (0, world.layer, False), "416 elsewhere: once more, plainly"
        assert client._blobs.ranges.known(world.registry.host().url) is Ranges.IGNORED, "asked again later"


@pytest.mark.parametrize("number", [56, 57])
async def test_row_56_57_a_range_is_one_and_closed(number: int) -> None:
    async with QuirkyRegistry(number) as world, world.client() as client:
        assert (await read(client, world, 1000))[1] == world.layer[1000:]
        assert (await read(client, world, 5, 10))[1] == world.layer[5:15]
        assert world.notes["ranges"] == ["bytes=1000-299999", "bytes=5-14"]


async def test_row_58_a_host_whose_body_never_begins_is_left_after_two_tries() -> None:
    async with QuirkyRegistry(58) as mirror, QuirkyRegistry() as world:
        hosts = (mirror.registry.host(is_proxy=True), world.registry.host())
        async with world.client(hosts=hosts, stall_timeout=60) as client:
            for _ in range(2):
                error = await failure(client, world)
                assert (error.reason, error.kind) == ("Stalled", ErrorKind.TEMPORARY)
            assert (await read(client, world))[1] == world.layer
            assert len(mirror.registry.asked) == 2


async def test_row_59_a_host_of_wrong_bytes_is_asked_last() -> None:
    async with QuirkyRegistry(59) as mirror, QuirkyRegistry() as world:
        hosts = (mirror.registry.host(is_proxy=True), world.registry.host())
        async with world.client(hosts=hosts) as client:
            assert sha256_digest((await read(client, world))[1]) != world.blob.digest
            client.distrust(mirror.registry.address, world.blob.digest)
            assert (await read(client, world))[1] == world.layer


async def test_row_60_a_body_ends_by_its_size_and_not_by_its_connection() -> None:
    async with QuirkyRegistry(60) as world, world.client() as client:
        error = await failure(client, world)
        assert error.kind is ErrorKind.TEMPORARY
        assert error.reason in ("ShortBody", "ConnectionLost")


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip"])
@pytest.mark.parametrize(("really", "told"), [(False, True), (True, True), (True, False)])
async def test_row_61_an_encoding_that_nobody_asked_for(encoding: str, really: bool, told: bool) -> None:
    async with QuirkyRegistry(61, (encoding, really, told)) as world, world.client() as client:
        assert (await read(client, world))[1] == world.layer
        body = await client.fetch_document(world.reference, world.config)
        assert sha256_digest(body) == world.config.digest


@pytest.mark.parametrize("told", [True, False])
async def test_row_61_a_gzip_layer_that_is_called_encoded_is_taken_as_it_is(told: bool) -> None:
    async with QuirkyRegistry(61, ("gzip", False, told)) as world, world.client() as client:
        layer = Descriptor(OCI_LAYER + "+gzip", world.blob.digest, world.blob.size)
        async with client.open_blob(world.reference, layer) as stream:
            assert b"".join([part async for part in stream]) == world.layer


async def test_row_61_a_body_that_swells_is_cut_at_its_size() -> None:
    async with QuirkyRegistry(61, ("gzip", True, True)) as world, world.client() as client:
        bomb = world.add_blob(OCI_LAYER, bytes(50_000_000))
        small = Descriptor(OCI_LAYER, bomb.digest, 1000)
        with pytest.raises(RegistryError) as caught:
            async with client.open_blob(world.reference, small) as stream:
                assert [len(part) async for part in stream] == [1000]
        assert caught.value.reason == "SizeMismatch"


async def test_row_62_connections_that_end_are_no_fault_while_they_bring_bytes() -> None:
    async with QuirkyRegistry(62, 70_000) as world, QuirkyRegistry() as upstream:
        hosts = (world.registry.host(is_proxy=True), upstream.registry.host())
        async with world.client(hosts=hosts) as client:
            held = bytearray()
            while len(held) < len(world.layer):
                with suppress(RegistryError):
                    async with client.open_blob(world.reference, world.blob, len(held)) as stream:
                        async for part in stream:
                            held += part
            assert held == world.layer
            assert world.seen["connections"] == 5
            assert upstream.registry.asked == []


@pytest.mark.parametrize("status", [None, 500])
async def test_row_63_64_a_mirror_that_does_not_answer_is_soon_left_and_passed_over(
    status: int | None,
) -> None:
    async with QuirkyRegistry(63, status) as mirror, QuirkyRegistry() as world:
        hosts = (mirror.registry.host(is_proxy=True), world.registry.host())
        async with world.client(hosts=hosts, stall_timeout=60, breaker_threshold=2) as client:
            started = time.monotonic()
            for offset in range(0, 50_000, 10_000):
                assert (await read(client, world, offset, 10_000))[1] == world.layer[offset : offset + 10_000]
                client._walk.memory._faults.clear()  # what is known of this blob is another row's affair
            assert time.monotonic() - started < 30
            assert mirror.seen["asked"] == (4 if status is None else 5), (
                "a range and a plain request each, twice"
            )


async def test_row_63_a_mirror_that_is_well_again_is_found_by_one_probe() -> None:
    async with QuirkyRegistry(63) as mirror, QuirkyRegistry() as world:
        hosts = (mirror.registry.host(is_proxy=True), world.registry.host())
        async with world.client(hosts=hosts, breaker_threshold=1, breaker_pause=3600) as client:
            now = [0.0]
            client._walk._breakers._clock = lambda: now[0]
            await read(client, world)
            mirror.notes["well"] = True
            await read(client, world)
            assert mirror.seen["asked"] == 1
            now[0] = 3601
            await read(client, world)
            await read(client, world)
            assert mirror.seen["asked"] == 3


async def test_row_63_the_upstream_alone_is_never_passed_over() -> None:
    async with QuirkyRegistry(63) as world, world.client(stall_timeout=0.05, breaker_threshold=1) as client:
        for _ in range(3):
            await failure(client, world)
        assert world.seen["asked"] == 3


async def test_row_63_a_mirror_is_better_than_nobody() -> None:
    async with QuirkyRegistry(63) as mirror, QuirkyRegistry(63, 503) as world:
        hosts = (mirror.registry.host(is_proxy=True), world.registry.host())
        async with world.client(hosts=hosts, breaker_threshold=1) as client:
            await failure(client, world)
            mirror.notes["well"] = True
            assert (await read(client, world))[1] == world.layer


async def test_row_65_http_1_1_is_spoken() -> None:
    async with QuirkyRegistry(65) as world, world.client() as client:
        await read(client, world)
        assert world.notes["versions"] == {(1, 1)}


Talk = Callable[[bytes, asyncio.StreamWriter], None]


@asynccontextmanager
async def raw(talk: Talk) -> AsyncIterator[RegistryClient]:
    """A client of a server that answers each request head by `talk`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                talk(await reader.readuntil(b"\r\n\r\n"), writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    host = RegistryHost(f"http://127.0.0.1:{port}/v2")
    try:
        async with RegistryClient(FixedHosts(host), stall_timeout=1, proxies=Proxies()) as client:
            yield client
    finally:
        server.close()
        await server.wait_closed()


REFERENCE = Reference.parse("registry.example/team/app:1")
SMALL = Descriptor(OCI_LAYER, sha256_digest(b"abc"), 3)


@pytest.mark.parametrize(
    "headers",
    [b"Content-Length: 3\r\nContent-Length: 3\r\n", b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"],
)
async def test_row_66_an_answer_that_is_not_valid_http_is_called_so(headers: bytes) -> None:
    def talk(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + headers + b"\r\nabc")

    async with raw(talk) as client:
        with pytest.raises(RegistryError) as caught:
            async with client.open_blob(REFERENCE, SMALL) as stream:
                assert [part async for part in stream]
        assert (caught.value.reason, caught.value.kind) == ("ProtocolError", ErrorKind.PERMANENT)


async def test_row_67_there_is_no_time_limit_but_for_silence() -> None:
    async with QuirkyRegistry(67) as world, world.client(stall_timeout=1) as client:
        started = time.monotonic()
        assert (await read(client, world))[1] == world.layer
        assert time.monotonic() - started > 1


@pytest.mark.parametrize("variant", ["chunked", "length"])
async def test_row_68_a_cut_body_is_temporary_and_no_byte_of_it_is_lost(variant: str) -> None:
    async with QuirkyRegistry(68, variant) as world, world.client() as client:
        held = bytearray()

        async def first() -> None:
            async with client.open_blob(world.reference, world.blob) as stream:
                async for part in stream:
                    held.extend(part)

        with pytest.raises(RegistryError) as caught:
            await first()
        assert caught.value.kind is ErrorKind.TEMPORARY
        assert held == world.layer[:100_000]


async def test_row_68_bytes_that_nobody_had_read_yet_when_the_connection_broke_are_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = asyncio.Event()
    set_exception = aiohttp.StreamReader.set_exception

    def noted(reader: aiohttp.StreamReader, *arguments: Any) -> None:
        set_exception(reader, *arguments)
        broken.set()

    async with (
        QuirkyRegistry(68, "length") as world,
        world.client() as client,
        client.open_blob(world.reference, world.blob) as stream,
    ):
        monkeypatch.setattr(aiohttp.StreamReader, "set_exception", noted)
        if stream._answer.response.content.exception() is None:
            await broken.wait()
        held = bytearray()

        async def rest() -> None:
            async for part in stream:
                held.extend(part)

        with pytest.raises(RegistryError):
            await rest()
        assert held == world.layer[:100_000]


async def test_row_68_a_kept_connection_that_was_closed_costs_nothing() -> None:
    connections = 0

    def talk(head: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        if writer.get_extra_info("socket") is None:
            return
        seen = getattr(writer, "seen", False)
        if seen:
            writer.close()  # just as the next request comes.
            return
        writer.seen = True  # type: ignore[attr-defined]
        connections += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")

    async with raw(talk) as client:
        for _ in range(3):
            async with client.open_blob(REFERENCE, SMALL) as stream:
                assert b"".join([part async for part in stream]) == b"abc"
        assert connections == 3


@pytest.mark.parametrize("offset", [2**31 - 5, 2**32 - 5, 12_000_000_000])
async def test_row_69_offsets_have_64_bits(offset: int) -> None:
    size = 12_000_000_010
    async with QuirkyRegistry(69, size) as world, world.client() as client:
        huge = Descriptor(OCI_LAYER, "sha256:" + "0" * 64, size)
        async with client.open_blob(world.reference, huge, offset, length=10) as stream:
            assert stream.offset == offset
            assert b"".join([part async for part in stream]) == bytes(10)
