"""The FAKE registry with faults that belong to a range of a blob, in whatever order the ranges are asked for."""

from __future__ import annotations

import asyncio

from aiohttp import web

from tests.testbed.faulty_registry import FaultyRegistry


class RangedRegistry(FaultyRegistry):
    """`refused`: statuses by digest and first byte, for as long as they stand. `gate` holds blobs back unanswered.

    `waiting` counts the requests that came to a gate.
    """

    def __init__(self) -> None:
        super().__init__()
        self.refused: dict[tuple[str, int], int] = {}
        self.gate: asyncio.Event | None = None
        self.waiting = 0

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        if self.gate is not None:
            self.waiting += 1
            await self.gate.wait()
        first = request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0]
        status = self.refused.get((request.match_info["digest"], int(first)))
        if status is not None:
            return web.Response(status=status)
        return await super()._blob(request)
