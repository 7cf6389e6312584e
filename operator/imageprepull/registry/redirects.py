"""Where a registry sends us: read from `Location`, refused where it must not point, and remembered for a while.

`transport` follows redirects by it, `asking` keeps the places of blobs in `Locations`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from dataclasses import dataclass, field

from yarl import URL

from imageprepull.registry.bounded import Bounded
from imageprepull.registry.errors import ErrorKind, RegistryError
from imageprepull.registry.proxies import Proxies
from imageprepull.registry.trust import Resolver, refusal

REDIRECTS = frozenset({301, 302, 303, 307, 308})
STALE = frozenset({400, 401, 403, 404, 410})
"""What a signed URL answers when its time is over; the registry gives a new one."""
PLACES = 2000
LIFE = 60.0
"""Seconds that the place of a blob is used for further parts; signatures live for five minutes and more."""


@dataclass(slots=True)
class Place:
    """Where one host keeps one blob. `lock`: one asks the registry anew, the others wait for what it learns.

    `turn` counts how often that was done: who waited and finds nothing learnt waits for no second one.
    """

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    turn: int = 0
    target: URL | None = None
    until: float = 0.0

    def current(self) -> URL | None:
        """The target while it is fresh."""
        return self.target if time.monotonic() < self.until else None

    def learn(self, target: URL) -> None:
        """Keep the end of a redirect that worked."""
        self.target, self.until = target, time.monotonic() + LIFE

    def spoil(self, target: URL | None) -> None:
        """A target failed: the next request goes to the registry, unless another has been learnt meanwhile."""
        if target is not None and self.target == target:
            self.until = 0.0


class Locations(Bounded[tuple[str, str], Place]):
    """The places by (URL of the host, path of the blob there)."""

    def __init__(self) -> None:
        super().__init__(PLACES)

    def place(self, host: str, path: str) -> Place:
        """The place of a blob, which may not be known yet."""
        found = self.touch((host, path))
        if found is None:
            found = self[host, path] = Place()
        return found


class Guard:
    """Refuses targets that are more private than the registry that names them."""

    def __init__(self, proxies: Proxies, patience: float) -> None:
        self.resolver = Resolver()
        self._proxies = proxies
        self._patience = patience

    async def check(self, source: URL, target: URL, host: str, request: str) -> None:
        """Raises RegistryError; the registry's own host and port are always fine.

        Of what goes through a proxy only addresses can be judged: names are the proxy's to resolve.
        """
        if (target.host, target.port) == (source.host, source.port):
            return
        try:
            wanted = await self._addresses(target)
            own = await self._addresses(source)
        except (OSError, TimeoutError) as error:
            raise RegistryError(
                f"the name {target.host} it sends us to cannot be resolved: {error}",
                reason="RegistryUnreachable",
                kind=ErrorKind.TEMPORARY,
                host=host,
                request=request,
            ) from error
        if problem := refusal(own, wanted):
            raise refused(f"it sends us to {target.host}, and {problem}", host, request)

    async def _addresses(self, url: URL) -> list[str]:
        if self._proxies.choose(url) is not None and not _is_address(url.host or ""):
            return []
        return await self.resolver.addresses(url, self._patience)


def next_target(current: URL, location: str, host: str, request: str) -> URL:
    """The URL of a redirect in its exact spelling.

    Raises:
        RegistryError: RedirectRefused: no http address, or one without TLS where TLS was.
    """
    try:
        target = current.join(URL(location, encoded=True))
    except ValueError:
        target = URL()
    if not location or target.scheme not in ("http", "https") or not target.host or target.user:
        raise refused(f"it redirects to {location[:100]!r}, which is no http address", host, request)
    if target.scheme == "http" and current.scheme == "https":
        if target.host != current.host:
            raise refused(f"it redirects to {target.host} without TLS", host, request)
        # A registry behind a TLS proxy that does not know of it.
        if target.port == 80:  # noqa: PLR2004 - the port of http: none was meant.
            return URL(f"{current.origin()}{target.raw_path_qs}", encoded=True)
        return URL("https" + str(target).removeprefix("http"), encoded=True)
    return target


def refused(problem: str, host: str, request: str) -> RegistryError:
    """The error about a target."""
    return RegistryError(problem, reason="RedirectRefused", host=host, request=request)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
