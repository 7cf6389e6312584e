"""A FAKE registry for unit tests: it answers by a function, so that every odd answer can be had.

`faulty_registry` serves whole images with faults; tests/containerd talks to a real docker-registry. Here one test
says in a few lines what each request gets, and reads afterwards what was asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from imageprepull.registry.host import RegistryHost
from imageprepull.registry.hosts import HostsConfig

Respond = Callable[[web.Request], web.StreamResponse | Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class FakeServer:
    """`url` is `http://127.0.0.1:port`; `requests` has each request as it came."""

    address: str
    requests: list[web.Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def asked(self) -> list[str]:
        """Method and target of each request, exactly as on the wire: `GET /v2/a/blobs/x?y`."""
        return [f"{request.method} {request.raw_path}" for request in self.requests]

    def host(self, **settings: object) -> RegistryHost:
        return RegistryHost(f"{self.url}/v2", **settings)  # type: ignore[arg-type]


class FixedHosts(HostsConfig):
    """The same hosts for any registry."""

    def __init__(self, *hosts: RegistryHost) -> None:
        super().__init__(())
        self.hosts = list(hosts)

    def lookup(self, registry: str) -> list[RegistryHost]:
        return self.hosts


@asynccontextmanager
async def serve(respond: Respond) -> AsyncIterator[FakeServer]:
    """A server on a free loopback port that answers every request by `respond`."""
    found = FakeServer("")

    async def handle(request: web.Request) -> web.StreamResponse:
        await request.read()
        found.requests.append(request)
        answer = respond(request)
        return answer if isinstance(answer, web.StreamResponse) else await answer

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(
        app, access_log=None, shutdown_timeout=0.1, max_line_size=65536, max_field_size=65536
    )
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.address = "{}:{}".format(*runner.addresses[0][:2])
    try:
        yield found
    finally:
        await runner.cleanup()


async def endless(request: web.Request, body: bytes, **headers: str) -> web.StreamResponse:
    """Send a body without a length, and never its end."""
    response = web.StreamResponse(headers={name.replace("_", "-"): value for name, value in headers.items()})
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(body)
    await asyncio.Event().wait()
    return response


@asynccontextmanager
async def frozen_tls() -> AsyncIterator[str]:
    """An address whose server takes a TLS greeting and is silent, and answers plain HTTP with 200 and `plain`."""

    writers: list[asyncio.StreamWriter] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            if await reader.read(1) == b"\x16":  # a TLS handshake record
                await reader.read()
                return
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nplain")
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()[:2]
        yield f"{host}:{port}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await server.wait_closed()
