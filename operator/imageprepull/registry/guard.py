"""Keeps requests from targets that are more private than who named them: before they are sent and as they connect.

The check before it gives the clear error; the one in `Resolver` judges the very addresses that are connected to, so that
neither another spelling of a name nor another answer of DNS gets between the two. `trust` has the rules.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Sequence

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from imageprepull.registry.errors import ErrorKind, RegistryError
from imageprepull.registry.proxies import Proxies
from imageprepull.registry.redirects import refused
from imageprepull.registry.trust import Reach, reach_of, refusal


class TooPrivate(Exception):
    """A name that leads to an address which whoever named it may not name."""


class Names:
    """DNS with a short memory, one for all requests."""

    def __init__(self, lifetime: float = 30) -> None:
        self._inner: AbstractResolver = ThreadedResolver()
        self._lifetime = lifetime
        self._known: dict[tuple[str, int, int], tuple[float, list[ResolveResult]]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of a name. Raises OSError, or ValueError for what cannot be a name."""
        now = time.monotonic()
        self._known = {key: entry for key, entry in self._known.items() if entry[0] > now}
        key = (host, port, family)
        if key not in self._known:
            self._known[key] = (now + self._lifetime, await self._inner.resolve(host, port, family))
        return self._known[key][1]


class Resolver(AbstractResolver):
    """What a connector asks for addresses: none that is more private than `limit` is connected to."""

    def __init__(self, names: Names, limit: Reach | None) -> None:
        self._names = names
        self._limit = limit

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises TooPrivate, and as `Names.resolve`."""
        found = await self._names.resolve(host, port, family)
        if self._limit is not None and (problem := refusal(self._limit, [one["host"] for one in found])):
            raise TooPrivate(problem)
        return found

    async def close(self) -> None:
        """Nothing is held."""


class Guard:
    """Judges targets by who named them."""

    def __init__(self, proxies: Proxies, patience: float) -> None:
        self.names = Names()
        self._proxies = proxies
        self._patience = patience

    async def check(self, named: Sequence[URL], target: URL, host: str, request: str) -> Reach | None:
        """How private the addresses of `target` may be; None where there is no limit.

        `named` are the URLs that led to it, each by the one before; the first was named by the user or by hosts.toml
        and is always fine, whatever its address. The others may be as private as the least private before them.
        Of what goes through a proxy only addresses can be judged, here and when it connects: names are the proxy's to
        resolve, so that a proxy must itself refuse what its clients are not to reach.

        Raises:
            RegistryError: RedirectRefused, or RegistryUnreachable when DNS does not know a name.
        """
        first = named[0]
        if (target.raw_host, target.port) == (first.raw_host, first.port):
            return None
        try:
            wanted = await self._addresses(target)
            limit = min([reach_of(await self._addresses(url)) for url in named])
        except (OSError, TimeoutError) as error:
            raise RegistryError(
                f"the name {target.raw_host} it sends us to cannot be resolved: {error}",
                reason="RegistryUnreachable",
                kind=ErrorKind.TEMPORARY,
                host=host,
                request=request,
            ) from error
        except ValueError as error:
            raise refused(
                f"it sends us to {target.raw_host!r}, which is no name: {error}", host, request
            ) from error
        if problem := refusal(limit, wanted):
            raise too_private(target.raw_host, problem, host, request)
        return limit

    async def _addresses(self, url: URL) -> list[str]:
        """The addresses behind a URL, spelt as the connector will ask for it; none where a proxy looks it up."""
        name = url.raw_host or ""
        if address := _literal(name):
            return [address]
        if self._proxies.choose(url) is not None:
            return []
        async with asyncio.timeout(self._patience):
            return [entry["host"] for entry in await self.names.resolve(name, url.port or 0)]


def too_private(name: str | None, problem: str, host: str, request: str) -> RegistryError:
    """The error about a target with an address that whoever named it may not name."""
    return refused(
        f"it sends us to {name}, and {problem}; docs/registries.md says where a registry may send a node",
        host,
        request,
    )


def _literal(name: str) -> str | None:
    """The address that a host is by itself, in the old spellings too (`127.1`, `0x7f000001`) that a proxy may read."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(name))
    except (OSError, ValueError):
        return None
