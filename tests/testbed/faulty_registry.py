"""A FAKE registry that does what a real one cannot be made to do: holds bytes back, cuts them off, corrupts them.

Everything else in the tests talks to a real docker-registry. It serves the images of `tests.testbed.images` from
memory on a free loopback port, and remembers each request.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from aiohttp import web


@dataclass(slots=True)
class Fault:
    """What one GET or HEAD meets. Several for one digest are used up in order; afterwards all is well.

    `status` answers with that and nothing else. `cut_after` closes the connection after so many bytes of the body.
    `hold_after` sends so many bytes and then waits for `release` (or for ever, without one). `change` replaces the
    body. With `drip` so many more bytes come every hundredth of a second while it waits. `ignore_range` answers 200 with
    everything. `lengths` answers so, too, and says the length of the body twice (`twice`) or beside chunked encoding
    (`chunked`): clients differ in what they make of it.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    hold_after: int | None = None
    release: asyncio.Event | None = None
    drip: int = 0
    change: Callable[[bytes], bytes] | None = None
    ignore_range: bool = False
    lengths: Literal["", "twice", "chunked"] = ""


class FaultyRegistry:
    """`async with FaultyRegistry() as registry`; `registry.address` is `127.0.0.1:port`."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.requests: list[tuple[str, str, str]] = []
        """(method, path, Range)"""
        self.address = ""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/v2/", self._ping)
        app.router.add_get("/v2/{name:.+}/manifests/{reference}", self._manifest)
        app.router.add_get("/v2/{name:.+}/blobs/{digest}", self._blob)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    def gets(self, digest: str) -> list[str]:
        """The Range headers of the GETs of a blob or manifest, in order; empty text for a whole one."""
        return [span for method, path, span in self.requests if method == "GET" and path.endswith(digest)]

    async def _ping(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _manifest(self, request: web.Request) -> web.StreamResponse:
        reference = request.match_info["reference"]
        self._note(request)
        if (fault := self._fault(request, reference)).status:
            return web.Response(status=fault.status, headers=fault.headers)
        if reference not in self.manifests:
            return web.json_response(
                {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "unknown"}]}, status=404
            )
        media_type, body = self.manifests[reference]
        if fault.lengths:
            return ill_measured(request, body, media_type, fault.lengths)
        headers = {
            "Docker-Content-Digest": next(d for d, m in self.manifests.items() if m[1] is body and ":" in d)
        }
        body = fault.change(body) if fault.change else body
        return web.Response(body=body, content_type=media_type, headers=headers)

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        digest = request.match_info["digest"]
        self._note(request)
        fault = self._fault(request, digest)
        if fault.status:
            return web.Response(status=fault.status, headers=fault.headers)
        if digest not in self.blobs:
            return web.json_response({"errors": [{"code": "BLOB_UNKNOWN", "message": "unknown"}]}, status=404)
        body = self.blobs[digest]
        body = fault.change(body) if fault.change else body
        if fault.lengths:
            return ill_measured(request, body, "application/octet-stream", fault.lengths)
        start, end = 0, len(body)
        span = request.headers.get("Range", "")
        ranged = bool(span) and not fault.ignore_range
        if ranged:
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else len(body)
        response = web.StreamResponse(status=206 if ranged else 200)
        if ranged:
            response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(body)}"
        response.content_length = end - start
        response.content_type = "application/octet-stream"
        await response.prepare(request)
        await self._send(request, response, body[start:end], fault)
        return response

    async def _send(
        self, request: web.Request, response: web.StreamResponse, body: bytes, fault: Fault
    ) -> None:
        if fault.cut_after is not None:
            await response.write(body[: fault.cut_after])
            if request.transport is not None:
                request.transport.close()
            return
        if fault.hold_after is not None:
            sent, release = fault.hold_after, fault.release or asyncio.Event()
            await response.write(body[:sent])
            while fault.drip and sent < len(body) and not release.is_set():
                await asyncio.sleep(0.01)
                await response.write(body[sent : sent + fault.drip])
                sent += fault.drip
            await release.wait()
            body = body[sent:]
        await response.write(body)

    def _note(self, request: web.Request) -> None:
        self.requests.append((request.method, request.path, request.headers.get("Range", "")))

    def _fault(self, request: web.Request, key: str) -> Fault:
        faults = self.faults[key]
        return faults.pop(0) if faults else Fault()


def ill_measured(request: web.Request, body: bytes, media_type: str, lengths: str) -> web.Response:
    """Write an answer past aiohttp, which would not make such a one, and end the connection."""
    length = f"Content-Length: {len(body)}\r\n"
    sent = b"" if request.method == "HEAD" else body
    if lengths == "twice":
        length += length
    else:
        length += "Transfer-Encoding: chunked\r\n"
        sent = sent and f"{len(sent):x}\r\n".encode() + sent + b"\r\n0\r\n\r\n"
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nConnection: close\r\n{length}\r\n"
    assert request.transport is not None
    assert isinstance(request.transport, asyncio.Transport)
    request.transport.write(head.encode() + sent)
    request.transport.close()
    return web.Response()
