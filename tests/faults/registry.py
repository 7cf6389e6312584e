"""The FAKE registry as a slow line that can be cut, and that remembers which bytes it sent."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict

from aiohttp import web

from imageprepull.pulling.ranges import RangeMap
from tests.testbed.faulty_registry import Fault, FaultyRegistry

_PIECE = 32 * 1024


class CountingRegistry(FaultyRegistry):
    """`rate`: bytes per second over all connections. `asked`: per digest the ranges of requests, in order."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.asked: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self.sent = 0
        self.again = 0
        """Bytes that were asked for although they were `finished`."""
        self.complaints: list[str] = []
        self.finished: dict[str, RangeMap] = {}
        self.documents: set[str] = set()
        """Manifests and configs that the runtime holds: registries count each GET of them."""
        self._next = 0.0
        self._live: set[asyncio.Transport] = set()

    def forget(self) -> None:
        """A new round: nobody has anything."""
        self.asked.clear()
        self.requests.clear()
        self.finished.clear()
        self.documents.clear()
        self.complaints.clear()
        self.sent = self.again = 0

    def cut(self) -> int:
        """Close every connection that is sending; how many those were. One that is over already is not cut."""
        live = [transport for transport in self._live if not transport.is_closing()]
        for transport in live:
            transport.abort()
        return len(live)

    def finish(self, digest: str, start: int, end: int) -> None:
        """The bytes are the victim's for good: who asks for them again has lost them."""
        size = len(self.blobs[digest])
        self.finished.setdefault(digest, RangeMap(size)).add(start, end)

    async def _manifest(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            self._judge_document(request.match_info["reference"])
        return await super()._manifest(request)

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        self._judge_document(request.match_info["digest"])
        try:
            return await super()._blob(request)
        except ConnectionError:
            return web.Response()  # the victim died, or we have cut it off: nobody reads this.

    async def _send(
        self, request: web.Request, response: web.StreamResponse, body: bytes, fault: Fault
    ) -> None:
        digest = request.match_info["digest"]
        start = 0
        span = request.headers.get("Range", "")
        if span:
            start = int(span.removeprefix("bytes=").partition("-")[0])
        self._judge(digest, start, start + len(body))
        transport = request.transport
        if transport is None:
            return  # cut off before it was answered
        self._live.add(transport)
        try:
            for offset in range(0, len(body), _PIECE):
                piece = body[offset : offset + _PIECE]
                now = time.monotonic()
                self._next = max(self._next, now) + len(piece) / self.rate
                await asyncio.sleep(self._next - now)
                await response.write(piece)
                self.sent += len(piece)
        finally:
            self._live.discard(transport)

    def _judge_document(self, digest: str) -> None:
        if digest in self.documents:
            self.complaints.append(f"the document {digest} was fetched again")

    def _judge(self, digest: str, start: int, end: int) -> None:
        self.asked[digest].append((start, end))
        held = self.finished.get(digest)
        if held is None:
            return
        twice = (end - start) - sum(stop - first for first, stop in held.missing(start, end))
        if twice:
            self.again += twice
            self.complaints.append(f"{twice} finished bytes of {digest} {start}-{end} were fetched again")
