"""The registry proxy, as a node's HTTP client meets it: real sockets, a small upstream of its own."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.testbed.proxy import Control, Proxy, closing
from tests.testbed.proxy_client import ProxyClient
from tests.testbed.proxy_state import State

DIGEST = "sha256:" + "ab" * 32
BLOB = f"/v2/library/thing/blobs/{DIGEST}"
DATA = bytes(range(256)) * 400


@dataclass
class Testbed:
    __test__ = False
    state: State
    url: str
    control: ProxyClient
    uploads: list[bytes] = field(default_factory=list)


@pytest.fixture
async def testbed(tmp_path: Path) -> AsyncIterator[Testbed]:
    uploads: list[bytes] = []

    async def blob(request: web.Request) -> web.Response:
        first, last = 0, len(DATA) - 1
        if request.headers.get("Range"):
            first, last = (int(part) for part in request.headers["Range"].removeprefix("bytes=").split("-"))
            headers = {"Content-Range": f"bytes {first}-{last}/{len(DATA)}"}
            return web.Response(status=206, body=DATA[first : last + 1], headers=headers)
        return web.Response(body=DATA)

    async def chunked(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for piece in (b"one ", b"two ", b"three"):
            await response.write(piece)
        return response

    async def upload(request: web.Request) -> web.Response:
        uploads.append(await request.read())
        return web.Response(status=201)

    app = web.Application()
    app.router.add_get(BLOB, blob)
    app.router.add_get("/chunked", chunked)
    app.router.add_put("/upload", upload)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    nodes = tmp_path / "cluster.json"
    nodes.write_text(json.dumps({"nodes": {"a": {"ip": "127.0.0.1"}}}))
    state = State()
    serve = Proxy(state, runner.addresses[0], nodes).serve
    proxy = await asyncio.start_server(closing(serve), "127.0.0.1", 0)
    orders = await asyncio.start_server(closing(Control(state).serve), "127.0.0.1", 0)
    port, control = (server.sockets[0].getsockname()[1] for server in (proxy, orders))
    yield Testbed(state, f"http://127.0.0.1:{port}", ProxyClient(f"http://127.0.0.1:{control}"), uploads)
    for server in (proxy, orders):
        server.close()
    await runner.cleanup()


@pytest.fixture
async def session(testbed: Testbed) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(testbed.url) as session:
        yield session


async def get(session: aiohttp.ClientSession, path: str, **headers: str) -> bytes:
    async with session.get(path, headers=headers) as answer:
        return await answer.read()


async def until(check: object) -> None:
    assert callable(check)
    async with asyncio.timeout(30):
        while not check():  # noqa: ASYNC110 - what is waited for happens in plain data
            await asyncio.sleep(0.005)


async def test_bodies_pass_unchanged_and_connections_are_kept(
    testbed: Testbed, session: aiohttp.ClientSession
) -> None:
    assert await get(session, BLOB) == DATA
    assert await get(session, "/chunked") == b"one two three"
    async with session.head(BLOB) as answer:
        assert answer.headers["Content-Length"] == str(len(DATA))
    async with session.get("/missing") as answer:
        assert answer.status == 404
    assert [(one.method, one.status) for one in testbed.state.requests] == [
        ("GET", 200),
        ("GET", 200),
        ("HEAD", 200),
        ("GET", 404),
    ]


async def test_uploads_pass_with_a_length_and_in_chunks(
    testbed: Testbed, session: aiohttp.ClientSession
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"some "
        yield b"pieces"

    for body in (DATA, pieces()):
        async with session.put("/upload", data=body) as answer:
            assert answer.status == 201
    assert testbed.uploads == [DATA, b"some pieces"]


async def test_held_bytes_come_when_they_are_released(
    testbed: Testbed, session: aiohttp.ClientSession
) -> None:
    testbed.state.hold(DIGEST, 1000, "a")
    pending = asyncio.create_task(get(session, BLOB))
    await until(lambda: any(hold.waiting for hold in testbed.state.holds))
    assert testbed.state.delivery("a", DIGEST).bytes == 1000
    assert not pending.done()
    assert testbed.state.release(DIGEST, "") == 1
    assert await pending == DATA


async def test_a_hold_counts_in_bytes_of_the_blob_not_of_the_answer(
    testbed: Testbed, session: aiohttp.ClientSession
) -> None:
    testbed.state.hold(DIGEST, 5000, "")
    assert await get(session, BLOB, Range="bytes=4000-4999") == DATA[4000:5000]
    pending = asyncio.create_task(get(session, BLOB, Range="bytes=4500-6000"))
    await until(lambda: testbed.state.holds[0].waiting == 1)
    assert testbed.state.delivery("a", DIGEST).distinct == 1000
    testbed.state.release("", "")
    assert await pending == DATA[4500:6001]


async def test_a_hold_for_another_node_stops_nobody_else(
    testbed: Testbed, session: aiohttp.ClientSession
) -> None:
    testbed.state.hold(DIGEST, 0, "b")
    assert await get(session, BLOB) == DATA


async def test_a_node_that_goes_away_waits_for_no_bytes(
    testbed: Testbed, session: aiohttp.ClientSession
) -> None:
    testbed.state.hold(DIGEST, 1000, "")
    pending = asyncio.create_task(get(session, BLOB))
    await until(lambda: testbed.state.holds[0].waiting == 1)
    pending.cancel()
    await until(lambda: testbed.state.holds[0].waiting == 0)


async def test_bytes_fetched_twice_are_told(testbed: Testbed, session: aiohttp.ClientSession) -> None:
    await get(session, BLOB, Range="bytes=0-999")
    await get(session, BLOB, Range="bytes=1000-1999")
    assert await asyncio.to_thread(testbed.control.fetched_twice) == {}
    await get(session, BLOB, Range="bytes=1500-2499")
    assert await asyncio.to_thread(testbed.control.fetched_twice) == {("a", DIGEST): 500}
    await asyncio.to_thread(testbed.control.forget)
    assert await asyncio.to_thread(testbed.control.requests) == []


async def test_a_rate_bounds_the_bytes_and_a_delay_each_request(
    testbed: Testbed, session: aiohttp.ClientSession
) -> None:
    clock = asyncio.get_running_loop().time
    await asyncio.to_thread(testbed.control.pace, "a", rate=len(DATA) * 2, delay=0.1)
    started = clock()
    await get(session, BLOB)
    assert 0.4 <= clock() - started < 30
    await asyncio.to_thread(testbed.control.reset)
    started = clock()
    await get(session, BLOB)
    assert clock() - started < 0.4


async def test_orders_that_are_not_understood_are_refused(testbed: Testbed) -> None:
    with pytest.raises(Exception, match="no such order"):
        await asyncio.to_thread(testbed.control._call, "POST", "/nonsense")
    with pytest.raises(Exception, match="digest"):
        await asyncio.to_thread(testbed.control._call, "POST", "/hold", {})
