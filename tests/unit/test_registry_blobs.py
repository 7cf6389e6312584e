"""Blobs as streams: where they end, what happens when a host does not do ranges, and who is blamed."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from imageprepull.oci.descriptor import OCI_LAYER, Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.oci.reference import Reference
from imageprepull.registry.blobs import range_matches
from imageprepull.registry.client import RegistryClient
from imageprepull.registry.errors import ErrorKind, RegistryError
from imageprepull.registry.health import BLOBS
from imageprepull.registry.host import RegistryHost
from tests.testbed.registry_server import FixedHosts, Respond, endless, serve

BODY = random.Random(7).randbytes(600_000)
BLOB = Descriptor(OCI_LAYER, sha256_digest(BODY), len(BODY))
REFERENCE = Reference.parse("registry.example/team/app:1")


def ranged(request: web.Request) -> web.Response:
    """What a good server answers."""
    span = request.headers.get("Range")
    if span is None:
        return web.Response(body=BODY)
    first, _, last = span.removeprefix("bytes=").partition("-")
    part = BODY[int(first) : int(last) + 1]
    return web.Response(status=206, body=part, headers={"Content-Range": f"bytes {first}-{last}/{len(BODY)}"})


async def read(
    client: RegistryClient, offset: int = 0, *, length: int | None = None
) -> tuple[int, bytes, str]:
    async with client.open_blob(REFERENCE, BLOB, offset, length=length) as stream:
        chunks = [chunk async for chunk in stream]
        return stream.offset, b"".join(chunks), stream.origin


async def fetch(respond: Respond, offset: int = 0, *, length: int | None = None) -> tuple[int, bytes]:
    async with (
        serve(respond) as server,
        RegistryClient(FixedHosts(server.host()), stall_timeout=0.4) as client,
    ):
        return (await read(client, offset, length=length))[:2]


async def failure(respond: Respond, offset: int = 0) -> RegistryError:
    with pytest.raises(RegistryError) as caught:
        await fetch(respond, offset)
    return caught.value


async def test_a_whole_blob_is_asked_for_without_a_range() -> None:
    def respond(request: web.Request) -> web.Response:
        assert "Range" not in request.headers
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=BODY)

    assert await fetch(respond) == (0, BODY)


async def test_a_part_is_asked_for_by_a_closed_range() -> None:
    assert await fetch(ranged, 1000, length=5000) == (1000, BODY[1000:6000])
    assert await fetch(ranged, 599_999) == (599_999, BODY[-1:])


@pytest.mark.parametrize("respond", [ranged, lambda request: web.Response(body=BODY)])
async def test_a_stream_says_whether_the_host_does_ranges(respond: Respond) -> None:
    async with (
        serve(respond) as server,
        RegistryClient(FixedHosts(server.host())) as client,
        client.open_blob(REFERENCE, BLOB, 0, length=5000) as stream,
    ):
        assert stream.ranged is (respond is ranged)


async def test_a_server_that_ignores_the_range_sends_from_zero() -> None:
    assert await fetch(lambda request: web.Response(body=BODY), 1000) == (0, BODY)
    assert await fetch(lambda request: web.Response(body=BODY), 1000, length=9000) == (0, BODY[:10_000])


@pytest.mark.parametrize("status", [400, 416, 501])
async def test_a_refused_range_is_asked_for_without_one(status: int) -> None:
    def respond(request: web.Request) -> web.Response:
        return web.Response(status=status) if "Range" in request.headers else web.Response(body=BODY)

    assert await fetch(respond, 1000) == (0, BODY)


@pytest.mark.parametrize("content_range", ["bytes 0-598999/600000", "bytes 1000-599999/700000", ""])
async def test_another_range_than_asked_for_is_not_used(content_range: str) -> None:
    def respond(request: web.Request) -> web.Response:
        if "Range" not in request.headers:
            return web.Response(body=BODY)
        return web.Response(status=206, body=BODY[:599_000], headers={"Content-Range": content_range})

    assert await fetch(respond, 1000) == (0, BODY)


async def test_a_server_that_refuses_both_is_asked_twice_and_no_more() -> None:
    async with (
        serve(lambda request: web.Response(status=416)) as server,
        RegistryClient(FixedHosts(server.host())) as client,
    ):
        with pytest.raises(RegistryError) as caught:
            await read(client, 10)
        assert caught.value.status == 416
        assert [request.headers.get("Range") for request in server.requests] == ["bytes=10-599999", None]


async def test_the_end_is_the_size_and_not_the_end_of_the_connection() -> None:
    assert await fetch(lambda request: endless(request, BODY)) == (0, BODY)


async def test_a_body_that_stops_coming_has_stalled() -> None:
    error = await failure(lambda request: endless(request, BODY[:1000]))
    assert (error.reason, error.kind) == ("Stalled", ErrorKind.TEMPORARY)


async def test_a_body_that_ends_early_is_short() -> None:
    async def respond(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(BODY[:1000])
        await response.write_eof()
        return response

    error = await failure(respond)
    assert (error.reason, error.kind) == ("ShortBody", ErrorKind.TEMPORARY)
    assert "599000 bytes early" in str(error)


async def test_a_broken_connection_is_temporary() -> None:
    async def respond(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(BODY))})
        await response.prepare(request)
        await response.write(BODY[:1000])
        assert request.transport is not None
        request.transport.close()
        return response

    error = await failure(respond)
    assert (error.reason, error.kind) == ("ConnectionLost", ErrorKind.TEMPORARY)


async def test_another_size_is_refused_before_a_byte_is_read() -> None:
    error = await failure(lambda request: web.Response(body=BODY + b"x"))
    assert error.reason == "SizeMismatch"


async def test_a_blob_in_an_encoding_that_nobody_knows_is_refused() -> None:
    error = await failure(lambda request: web.Response(body=b"x", headers={"Content-Encoding": "br"}))
    assert error.reason == "NotARegistryAnswer"


async def test_a_missing_blob_says_where() -> None:
    error = await failure(lambda request: web.Response(status=404))
    assert (error.reason, error.kind, error.status) == ("NotFound", ErrorKind.PERMANENT, 404)
    assert f"GET /v2/team/app/blobs/{BLOB.digest}" in str(error)


async def test_the_next_host_serves_what_the_first_does_not_have() -> None:
    async with (
        serve(lambda request: web.Response(status=404)) as mirror,
        serve(ranged) as upstream,
        RegistryClient(FixedHosts(mirror.host(is_proxy=True), upstream.host())) as client,
    ):
        assert await read(client) == (0, BODY, upstream.address)
        assert mirror.asked == [f"GET /v2/team/app/blobs/{BLOB.digest}?ns=registry.example"]
        assert upstream.asked == [f"GET /v2/team/app/blobs/{BLOB.digest}"]


async def test_distrust_holds_for_the_registry_that_redirected_to_wrong_bytes() -> None:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(serve(ranged))
        first = await stack.enter_async_context(
            serve(lambda request: web.Response(status=307, headers={"Location": f"{store.url}/blob"}))
        )
        second = await stack.enter_async_context(serve(ranged))
        client = await stack.enter_async_context(RegistryClient(FixedHosts(first.host(), second.host())))
        async with client.open_blob(REFERENCE, BLOB) as stream:
            assert (stream.host, stream.origin) == (store.address, first.address)
        client.distrust(first.address, BLOB.digest)
        assert (await read(client))[2] == second.address
        client.distrust(second.address, BLOB.digest)
        assert (await read(client))[2] == first.address, (
            "when nobody is trusted the order is that of the file"
        )


async def test_distrust_is_remembered_for_a_bounded_number_of_blobs() -> None:
    async with RegistryClient() as client:
        for number in range(BLOBS + 10):
            client.distrust("host", str(number))
        assert len(client._walk.memory.distrusted) == BLOBS
        assert ("host", str(BLOBS + 9)) in client._walk.memory.distrusted


async def test_no_host_that_may_be_pulled_from_is_an_error_of_the_configuration() -> None:
    host = RegistryHost("http://127.0.0.1:1/v2", capabilities=frozenset({"push"}))
    async with RegistryClient(FixedHosts(host)) as client:
        with pytest.raises(RegistryError, match="capabilities"):
            await read(client)


@settings(deadline=None)  # other work on the machine is no failure
@given(st.integers(0, 10**9), st.integers(1, 10**9), st.integers(0, 10**9))
def test_a_range_matches_itself_and_no_other(offset: int, length: int, rest: int) -> None:
    end, size = offset + length, offset + length + rest
    for total in ("*", str(size)):
        assert range_matches(f"bytes {offset}-{end - 1}/{total}", offset, end, size)
        assert not range_matches(f"bytes {offset + 1}-{end - 1}/{total}", offset, end, size)
        assert not range_matches(f"bytes {offset}-{end}/{total}", offset, end, size)
    assert not range_matches(f"bytes {offset}-{end - 1}/{size + 1}", offset, end, size)


@settings(deadline=None)  # other work on the machine is no failure
@given(st.text())
def test_any_content_range_can_be_read(text: str) -> None:
    assert range_matches(text, 0, 1, 1) in (True, False)
