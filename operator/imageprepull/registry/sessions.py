"""The connections of one process, apart by how private the addresses may be that they lead to. Below `transport`."""

from __future__ import annotations

import aiohttp

from imageprepull.registry.guard import Names, Resolver
from imageprepull.registry.trust import Reach

KEEP_ALIVE = 30.0
"""Seconds that an idle connection is kept; the number of connections is bounded by those who ask, not here."""
READ_BUFFER = 1024 * 1024
"""Bytes that may wait in a connection before reading stops: with little, each read stops and starts the socket."""
_HEADER_BYTES = 64 * 1024


class Sessions:
    """One session for all TLS settings: aiohttp's pool keeps connections apart by context and by proxy.

    But one for each limit: a connection that one registry may have is not there for what another one names.
    """

    def __init__(self, names: Names) -> None:
        self._sessions = {limit: _session(Resolver(names, limit)) for limit in (None, *Reach)}

    def within(self, limit: Reach | None) -> aiohttp.ClientSession:
        """Connects to no name with an address that is more private; without a limit to all."""
        return self._sessions[limit]

    async def close(self) -> None:
        """Close all connections."""
        for session in self._sessions.values():
            await session.close()


def _session(resolver: Resolver) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0, resolver=resolver, use_dns_cache=False, keepalive_timeout=KEEP_ALIVE
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        read_bufsize=READ_BUFFER,
        max_line_size=_HEADER_BYTES,
        max_field_size=_HEADER_BYTES,
        max_headers=1024,
    )
