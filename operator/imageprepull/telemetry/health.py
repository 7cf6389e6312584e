"""/livez, /readyz?verbose and /metrics: what the kubelet and people ask a running process. Knows no component.

A check is a named callable that returns None or, in words, why not. Checks read state that the loops keep; they never
do I/O themselves, so a probe is answered within milliseconds however ill the rest is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from types import MappingProxyType

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

Check = Callable[[], str | None]


class Health:
    """The checks of one process. `live`: restart me if one fails. `ready`: I do my work.

    `notes` fail nothing: what they say is a line of /readyz?verbose, for people.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.live: dict[str, Check] = {}
        self.ready: dict[str, Check] = {}
        self.notes: dict[str, Check] = {}
        self._registry = registry

    def application(self) -> web.Application:
        """The routes, for a server or a test."""
        app = web.Application()
        app.router.add_get("/livez", self._answer_live)
        app.router.add_get("/readyz", self._answer_ready)
        app.router.add_get("/metrics", self._answer_metrics)
        return app

    @asynccontextmanager
    async def serve(self, port: int, host: str | None = None) -> AsyncIterator[int]:
        """Serve while the block runs; yields the port (`port` 0 takes a free one).

        Raises:
            OSError: the port is taken. On the host network another agent or program may have it.
        """
        runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()

    async def _answer_live(self, request: web.Request) -> web.Response:
        return answer(self.live, verbose="verbose" in request.query)

    async def _answer_ready(self, request: web.Request) -> web.Response:
        return answer(self.ready, verbose="verbose" in request.query, notes=self.notes)

    async def _answer_metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )


def answer(
    checks: Mapping[str, Check], *, verbose: bool, notes: Mapping[str, Check] = MappingProxyType({})
) -> web.Response:
    """200 when every check passes, else 503; failures are always named, passes only when asked for."""
    failed = False
    lines = []
    for name, check in checks.items():
        problem = check()
        failed = failed or problem is not None
        if problem is not None:
            lines.append(f"[-]{name}: {problem}")
        elif verbose:
            lines.append(f"[+]{name} ok")
    if verbose:
        lines += [f"[!]{name}: {note}" for name, say in notes.items() if (note := say()) is not None]
    lines.append("not ok" if failed else "ok")
    status = HTTPStatus.SERVICE_UNAVAILABLE if failed else HTTPStatus.OK
    return web.Response(status=status, text="\n".join(lines) + "\n")
