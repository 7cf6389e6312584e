"""HTTP as a registry needs it: one exchange at a time, redirects by hand, faults as RegistryError.

No cookies, no environment, nothing decompressed, URLs sent as they were written (signatures cover their exact
spelling), and an Authorization header for one origin only. Below it aiohttp, above it `asking`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from imageprepull.registry.answer import Answer
from imageprepull.registry.errors import RegistryError
from imageprepull.registry.faults import fault
from imageprepull.registry.guard import Guard, TooPrivate, too_private
from imageprepull.registry.holds import Holds
from imageprepull.registry.host import RegistryHost
from imageprepull.registry.proxies import Proxies
from imageprepull.registry.rate_limits import RateLimits
from imageprepull.registry.redirects import REDIRECTS, next_target, refused
from imageprepull.registry.sessions import Sessions
from imageprepull.registry.tls import TlsContexts
from imageprepull.registry.trust import Reach

MAX_REDIRECTS = 10


class Transport:
    """The connections of one process.

    Args:
        stall_timeout: seconds without a byte after which an exchange counts as dead.
        connect_timeout: seconds for a TCP connection and TLS.
        probe_timeout: seconds for the same where plain http is tried next: loopback servers that take a TLS
            greeting and never answer it.
        proxies: whom requests go through; nobody when None.
    """

    def __init__(
        self,
        *,
        stall_timeout: float,
        connect_timeout: float,
        probe_timeout: float = 3,
        proxies: Proxies | None = None,
    ) -> None:
        self.stall_timeout = stall_timeout
        self.limits = RateLimits()
        self.holds = Holds()
        self._connect_timeout = connect_timeout
        self._probe_timeout = min(probe_timeout, connect_timeout)
        self._proxies = proxies or Proxies()
        self._guard = Guard(self._proxies, connect_timeout)
        self._contexts = TlsContexts()
        self._plain_http: set[str] = set()

    async def __aenter__(self) -> Self:
        self._sessions = Sessions(self._guard.names)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._sessions.close()

    def base(self, host: RegistryHost) -> URL:
        """The URL that a host is asked under: its own, or https while it has not shown that it speaks http only."""
        if host.https_first and host.name not in self._plain_http:
            return URL("https" + host.url.removeprefix("http"), encoded=True)
        return URL(host.url, encoded=True)

    async def exchange(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        host: RegistryHost,
        data: Mapping[str, str] | None = None,
        *,
        limit: Reach | None,
        deadline: float | None = None,
    ) -> aiohttp.ClientResponse:
        """One request and its response head. TLS as configured for `host`, also where it sends us: as containerd.

        `limit` is what `check` said of the URL. `deadline` is seconds until the head, connection and all; without one the stall timeout counts. The host's
        own headers are sent to its own origin only.
        """
        name, request = url.host_port_subcomponent or "", f"{method} {url.path}"
        self.holds.check(name, request)
        sent = CIMultiDict({"User-Agent": "imageprepull", "Accept-Encoding": "identity"})
        if host.headers and url.origin() == self.base(host).origin():
            sent.update(host.headers)
        sent.update(headers)
        proxy = self._proxies.choose(url)
        if proxy is not None and url.scheme == "http":
            sent.update(proxy.headers)  # https has a CONNECT that carries them.
        tls = self._contexts.get(host) if url.scheme == "https" else True
        try:
            # A proxy is the user's choice and may be private; what it connects to it judges itself.
            session = self._sessions.within(limit if proxy is None else None)
            async with asyncio.timeout(deadline):
                response = await session.request(
                    method,
                    url,
                    headers=sent,
                    data=data,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(
                        total=None, sock_connect=self._patience(host, url), sock_read=self.stall_timeout
                    ),
                    ssl=tls,
                    proxy=proxy.url if proxy else None,
                    proxy_headers=proxy.headers if proxy else None,
                )
        except TooPrivate as error:
            raise too_private(url.raw_host, str(error), host.name, request) from error
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            found = fault(error, name, request, before_answer=True)
            if found.reason == "ConnectionLost" and url.scheme == "https" and not host.client:
                # The alert that would say so is often lost with the connection.
                found.explain("if it wants a client certificate, name one by 'client' in hosts.toml")
            raise found from error
        self.limits.note(name, response.status, response.headers)
        return response

    def _patience(self, host: RegistryHost, url: URL) -> float:
        if url.scheme == "https" and host.https_first and url.host_port_subcomponent == host.name:
            return self._probe_timeout
        return self._connect_timeout if host.dial_timeout is None else host.dial_timeout

    async def request(
        self,
        method: str,
        host: RegistryHost,
        path: str,
        headers: Mapping[str, str],
        authorization: str | None,
        *,
        deadline: float | None = None,
    ) -> Answer:
        """Ask a host, fall back to http where it is configured so, and follow where it sends us."""
        base = self.base(host)
        if base.scheme == "http" or host.url.startswith("https:"):
            return await self.go(method, host, f"{base}{path}", headers, authorization, deadline=deadline)
        try:
            return await self.go(method, host, f"{base}{path}", headers, authorization, deadline=deadline)
        except RegistryError as error:
            if error.reason not in ("NotTLS", "ConnectionLost", "RegistryUnreachable"):
                raise
            if error.host != base.host_port_subcomponent:
                raise  # It is where the host sent us that cannot be reached.
        self._plain_http.add(host.name)
        try:
            return await self.go(
                method, host, f"{self.base(host)}{path}", headers, authorization, deadline=deadline
            )
        except RegistryError as error:
            # Neither answers: nothing is known, and https stays the first to be tried.
            if error.unanswered:
                self._plain_http.discard(host.name)
            raise

    async def go(
        self,
        method: str,
        host: RegistryHost,
        url: str | URL,
        headers: Mapping[str, str],
        authorization: str | None = None,
        *,
        deadline: float | None = None,
        request: str = "",
    ) -> Answer:
        """Ask at a URL that belongs to `host` or that it gave us, and follow from there; `request` is for errors.

        Raises:
            RegistryError: RedirectRefused where a target is more private than the host, without TLS, or no end is
                in sight.
        """
        named = self._named(host)
        source = named[-1]
        target = start = URL(url, encoded=True) if isinstance(url, str) else url
        request = request or f"{method} {start.path}"
        limit = await self._guard.check(named, target, host.name, request)
        for _ in range(MAX_REDIRECTS + 1):
            sent = dict(headers)
            if authorization and target.origin() == start.origin():
                sent["Authorization"] = authorization
            response = await self.exchange(method, target, sent, host, limit=limit, deadline=deadline)
            if response.status not in REDIRECTS:
                return Answer(
                    response,
                    target.host_port_subcomponent or host.name,
                    request,
                    authorization is not None,
                    target.origin() != source.origin(),
                    self.limits,
                )
            response.close()
            named.append(target)
            target = next_target(target, response.headers.get("Location", ""), host.name, request)
            limit = await self._guard.check(named, target, host.name, request)
        raise refused(f"more than {MAX_REDIRECTS} redirects", host.name, request)

    async def check(self, host: RegistryHost, target: URL, request: str) -> Reach | None:
        """The limit for `exchange` with a URL that a host names. Raises RegistryError when it may not name it."""
        return await self._guard.check(self._named(host), target, host.name, request)

    def _named(self, host: RegistryHost) -> list[URL]:
        """Who named a host, from the one that nobody did, and itself."""
        return [*(self._named(host.named_by) if host.named_by else ()), self.base(host)]
