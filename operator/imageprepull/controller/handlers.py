"""kopf, as the event source for ImagePrepull and nothing else. Its handler only hands events over.

kopf cancels every task of its event loop when it ends, so it has a loop and a thread of its own; the operator's
tasks live in another loop, and events cross with `call_soon_threadsafe`. When kopf ends by itself (an API error
that it takes as fatal, the CRD gone), the process ends too: everything is level-triggered.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import threading
from collections.abc import Callable
from typing import Any, cast

import aiohttp
import kopf

from imageprepull.controller.groups import leaf
from imageprepull.kube.access import ClusterAccess
from imageprepull.kube.client import READ_BUFFER
from imageprepull.kube.kinds import IMAGEPREPULLS
from imageprepull.resources import GROUP

OnEvent = Callable[[str | None, dict[str, Any]], None]
LOGIN_MINUTES = 10
"""Service-account tokens rotate; kopf logs in anew this often."""


class KopfEnded(Exception):
    """kopf stopped watching without having been asked to."""


def operator_settings() -> kopf.OperatorSettings:
    """Kopf without everything that writes, peers or scans."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.posting.loggers = False
    settings.watching.server_timeout = 300
    settings.watching.chunk_size = 500
    settings.networking.request_timeout = 30
    # Neither is ever written: no handler here asks for a finalizer or for annotations.
    settings.persistence.finalizer = f"{GROUP}/never"
    settings.persistence.progress_storage = kopf.StatusProgressStorage(name=f"{GROUP}/never")
    return settings


def operator_registry(access: ClusterAccess, on_event: OnEvent) -> kopf.OperatorRegistry:
    """One login handler with our access, one event handler."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        token = access.token()
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=access.ssl or True),
            headers={"Authorization": f"Bearer {token}"} if token else {},
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=READ_BUFFER,
            trust_env=False,
        )
        until = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=LOGIN_MINUTES)
        return kopf.AiohttpSession(
            server=access.server, aiohttp_session=session, expiration=until if token else None
        )

    @kopf.on.event(IMAGEPREPULLS.group, IMAGEPREPULLS.version, IMAGEPREPULLS.plural, registry=registry)
    async def event(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 - kopf's name.
        on_event(type, dict(body))

    return registry


class KopfThread:
    """kopf in its thread. `run` lasts as long as kopf does."""

    def __init__(self, access: ClusterAccess, on_event: OnEvent) -> None:
        self._access = access
        self._on_event = on_event
        self._stop = threading.Event()

    async def run(self) -> None:
        """Deliver events on the caller's loop until cancelled.

        Raises:
            KopfEnded: kopf ended by itself.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[BaseException | None] = loop.create_future()

        def finish(error: BaseException | None) -> None:
            if not ended.done():
                ended.set_result(error)

        thread = threading.Thread(target=self._main, args=(loop, finish), name="kopf", daemon=True)
        thread.start()
        try:
            error = await asyncio.shield(ended)
            raise KopfEnded("the watch of ImagePrepulls ended") from (error and leaf(error))
        finally:
            self._stop.set()

    def _main(self, loop: asyncio.AbstractEventLoop, finish: Callable[[BaseException | None], None]) -> None:
        def hand_over(event: str | None, body: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(self._on_event, event, body)

        # One line per event, of an object that our own status write may have touched.
        logging.getLogger("kopf.objects").setLevel(logging.WARNING)
        error: BaseException | None = None
        try:
            with asyncio.Runner() as runner:
                runner.run(self._operate(hand_over))
        except BaseException as caught:  # noqa: BLE001 - carried to the other loop and raised there.
            error = caught
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish, error)

    async def _operate(self, on_event: OnEvent) -> None:
        try:
            await kopf.operator(
                registry=operator_registry(self._access, on_event),
                settings=operator_settings(),
                clusterwide=True,
                standalone=True,
                # kopf would ask for the user's name, which a user ID of a container need not have.
                identity=cast("Any", "imageprepull"),
                stop_flag=self._stop,
            )
        finally:
            # kopf waits for the flag in a thread of the loop's executor; unset, the loop would never close.
            self._stop.set()
