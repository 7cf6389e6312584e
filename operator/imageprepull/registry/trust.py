"""Where a registry may send us: token realms and redirects are chosen by whoever answers, and agents run on nodes.

A public registry must not make a node ask its metadata service or what listens on its loopback; a registry on a
private network may well have its token service beside it. So a target may be as private as the registry itself,
no more, and link-local never.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Iterable
from enum import IntEnum

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL


class Reach(IntEnum):
    """From whom an address is hidden, the more hidden the higher."""

    PUBLIC = 0
    PRIVATE = 1
    LOOPBACK = 2
    FORBIDDEN = 3


def reach(address: str) -> Reach:
    """The class of an IP address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    if ip.is_link_local or ip.is_unspecified or ip.is_multicast:
        return Reach.FORBIDDEN
    if ip.is_loopback:
        return Reach.LOOPBACK
    return Reach.PUBLIC if ip.is_global else Reach.PRIVATE


def refusal(source: Iterable[str], target: Iterable[str]) -> str | None:
    """Why a server at the addresses `source` may not send us to those of `target`; None when it may."""
    allowed = max((reach(address) for address in source), default=Reach.PUBLIC)
    for address in target:
        found = reach(address)
        if found is Reach.FORBIDDEN or found > allowed:
            return f"{address} is a {found.name.lower()} address"
    return None


class Resolver(AbstractResolver):
    """DNS with a short memory, shared by the check and the connection: an answer cannot change between the two."""

    def __init__(self, lifetime: float = 30) -> None:
        self._inner = ThreadedResolver()
        self._lifetime = lifetime
        self._known: dict[tuple[str, int, int], tuple[float, list[ResolveResult]]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """What the connector asks for."""
        now = time.monotonic()
        self._known = {key: entry for key, entry in self._known.items() if entry[0] > now}
        key = (host, port, family)
        if key not in self._known:
            self._known[key] = (now + self._lifetime, await self._inner.resolve(host, port, family))
        return self._known[key][1]

    async def addresses(self, url: URL, deadline: float) -> list[str]:
        """The addresses behind a URL; an address by itself is not looked up. Raises OSError or TimeoutError."""
        host = url.host or ""
        try:
            return [str(ipaddress.ip_address(host.partition("%")[0]))]
        except ValueError:
            async with asyncio.timeout(deadline):
                return [entry["host"] for entry in await self.resolve(host, url.port or 0)]

    async def close(self) -> None:
        """Nothing is held."""
