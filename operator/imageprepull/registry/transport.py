"""HTTP as a registry needs it: one exchange at a time, redirects by hand, faults as RegistryError.

No cookies, no environment, nothing decompressed, URLs sent as they were written (signatures cover their exact
spelling), and an Authorization header for one origin only.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from imageprepull.registry.answers import parse_error, parse_retry_after
from imageprepull.registry.errors import ErrorKind, RegistryError, classify
from imageprepull.registry.host import RegistryHost
from imageprepull.registry.trust import Resolver, refusal

MAX_REDIRECTS = 10
MAX_ERROR_BODY = 16 * 1024
_HEADER_BYTES = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(slots=True)
class Answer:
    """A response whose body was not read, and how it came about. Whoever gets it closes it."""

    response: aiohttp.ClientResponse
    host: str
    request: str
    authenticated: bool
    redirected: bool

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.response.status

    def header(self, name: str) -> str:
        """A header's value, or nothing."""
        return self.response.headers.get(name, "")

    async def read(self, limit: int) -> bytes:
        """At most `limit` bytes of the body, whatever its Content-Length says."""
        parts: list[bytes] = []
        left = limit
        while left > 0:
            part = await self.chunk(left)
            if not part:
                break
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    async def chunk(self, limit: int) -> bytes:
        """The next bytes of the body, at most `limit`; none at its end."""
        try:
            return await self.response.content.read(limit)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise fault(error, self.host, self.request) from error

    def has_more(self) -> bool:
        """Whether bytes of the body are here that nobody has read; does not wait for any."""
        content = self.response.content
        return content.exception() is None and bool(content.read_nowait(1))

    def leave(self) -> None:
        """Keep the connection for the next request when the body was read to its end, else cut it off."""
        if self.response.content.at_eof():
            self.response.release()
        else:
            self.response.close()

    def fault(self, problem: str, reason: str, kind: ErrorKind = ErrorKind.PERMANENT) -> RegistryError:
        """An error about this answer that is not its status."""
        return RegistryError(
            problem, reason=reason, kind=kind, host=self.host, request=self.request, status=self.status
        )

    async def error(self) -> RegistryError:
        """The error that this answer is, with what its body says. Closes it."""
        try:
            body = b"" if self.response.method == "HEAD" else await self.read(MAX_ERROR_BODY)
        except RegistryError:
            body = b""
        self.response.close()
        code, message = parse_error(body, self.header("Content-Type"))
        kind, reason = classify(
            self.status, code, message, authenticated=self.authenticated, redirected=self.redirected
        )
        return RegistryError(
            message or self.response.reason or "no explanation",
            reason=reason,
            kind=kind,
            host=self.host,
            request=self.request,
            status=self.status,
            code=code,
            retry_after=parse_retry_after(self.header("Retry-After") or None),
        )


class Transport:
    """The connections of one process.

    Args:
        stall_timeout: seconds without a byte after which an exchange counts as dead.
        connect_timeout: seconds for a TCP connection and TLS.
        probe_timeout: seconds for the same where plain http is tried next: loopback servers that take a TLS
            greeting and never answer it.
    """

    def __init__(self, *, stall_timeout: float, connect_timeout: float, probe_timeout: float = 3) -> None:
        self.stall_timeout = stall_timeout
        self._connect_timeout = connect_timeout
        self._probe_timeout = min(probe_timeout, connect_timeout)
        self._resolver = Resolver()
        self._contexts: dict[tuple[tuple[Path, ...], bool], ssl.SSLContext] = {}
        self._plain_http: set[str] = set()

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, resolver=self._resolver, use_dns_cache=False)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
            max_headers=1024,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

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
    ) -> aiohttp.ClientResponse:
        """One request and its response head. TLS as configured for `host`, also where it sends us: as containerd."""
        request = f"{method} {url.path}"
        try:
            return await self._session.request(
                method,
                url,
                headers={"User-Agent": "imageprepull", "Accept-Encoding": "identity", **headers},
                data=data,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self._patience(host, url), sock_read=self.stall_timeout
                ),
                ssl=self._tls(host) if url.scheme == "https" else True,
            )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise fault(error, url.host_port_subcomponent or "", request) from error

    def _patience(self, host: RegistryHost, url: URL) -> float:
        probing = url.scheme == "https" and host.https_first and url.host_port_subcomponent == host.name
        return self._probe_timeout if probing else self._connect_timeout

    async def request(
        self,
        method: str,
        host: RegistryHost,
        path: str,
        headers: Mapping[str, str],
        authorization: str | None,
    ) -> Answer:
        """Ask a host, fall back to http where it is configured so, and follow where it sends us."""
        base = self.base(host)
        if base.scheme == "https" and host.url.startswith("http:"):
            try:
                response = await self._first(method, host, f"{base}{path}", headers, authorization)
            except RegistryError as error:
                if error.reason not in ("NotTLS", "ConnectionLost", "RegistryUnreachable"):
                    raise
                self._plain_http.add(host.name)
                base = self.base(host)
                try:
                    response = await self._first(method, host, f"{base}{path}", headers, authorization)
                except RegistryError:
                    # Neither answers: nothing is known, and https stays the first to be tried.
                    self._plain_http.discard(host.name)
                    raise
        else:
            response = await self._first(method, host, f"{base}{path}", headers, authorization)
        try:
            return await self._follow(method, host, response, headers, authorization)
        except BaseException:
            response.close()
            raise

    async def _first(
        self,
        method: str,
        host: RegistryHost,
        url: str,
        headers: Mapping[str, str],
        authorization: str | None,
    ) -> aiohttp.ClientResponse:
        sent = {**headers, "Authorization": authorization} if authorization else headers
        return await self.exchange(method, URL(url, encoded=True), sent, host)

    async def _follow(
        self,
        method: str,
        host: RegistryHost,
        response: aiohttp.ClientResponse,
        headers: Mapping[str, str],
        authorization: str | None,
    ) -> Answer:
        start = response.url
        request = f"{method} {start.path}"
        for _ in range(MAX_REDIRECTS + 1):
            current = response.url
            if response.status not in _REDIRECTS:
                name = current.host_port_subcomponent or host.name
                return Answer(
                    response, name, request, authorization is not None, current.origin() != start.origin()
                )
            response.close()
            target = _target(current, response.headers.get("Location", ""), host.name, request)
            if target.host == current.host and target.scheme == "http" and current.scheme == "https":
                # A registry behind a TLS proxy that does not know of it.
                target = (
                    target.with_scheme("https")
                    if target.explicit_port
                    else current.origin().join(target.relative())
                )
            if target.scheme == "http" and current.scheme == "https":
                raise _refused(f"it redirects to {target.host} without TLS", host.name, request)
            await self.check(start, target, host.name, request)
            sent = dict(headers)
            if authorization and target.origin() == start.origin():
                sent["Authorization"] = authorization
            response = await self.exchange(method, target, sent, host)
        response.close()
        raise _refused(f"more than {MAX_REDIRECTS} redirects", host.name, request)

    async def check(self, source: URL, target: URL, host: str, request: str) -> None:
        """Refuse a target that is more private than the registry that names it. Its own host and port are fine."""
        if (target.host, target.port) == (source.host, source.port):
            return
        try:
            wanted = await self._resolver.addresses(target, self._connect_timeout)
            own = await self._resolver.addresses(source, self._connect_timeout)
        except (OSError, TimeoutError) as error:
            raise RegistryError(
                f"the name {target.host} it sends us to cannot be resolved: {error}",
                reason="RegistryUnreachable",
                kind=ErrorKind.TEMPORARY,
                host=host,
                request=request,
            ) from error
        if problem := refusal(own, wanted):
            raise _refused(f"it sends us to {target.host}, and {problem}", host, request)

    def _tls(self, host: RegistryHost) -> ssl.SSLContext:
        key = (host.ca, host.skip_verify)
        if key not in self._contexts:
            try:
                self._contexts[key] = tls_context(host)
            except (OSError, ssl.SSLError) as error:
                raise RegistryError(
                    f"cannot use the CA files {', '.join(map(str, host.ca))}: {error}",
                    reason="InvalidHostsFile",
                    host=host.name,
                ) from error
        return self._contexts[key]


def tls_context(host: RegistryHost) -> ssl.SSLContext:
    """The system's CAs and the host's; any certificate of `ca` is an anchor, as in Go, and needs no key identifiers."""
    context = ssl.create_default_context()
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    for path in host.ca:
        context.load_verify_locations(cafile=path)
    if host.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def fault(error: BaseException, host: str, request: str) -> RegistryError:
    """A failed exchange as a RegistryError."""
    temporary, permanent = ErrorKind.TEMPORARY, ErrorKind.PERMANENT
    text = str(getattr(error, "strerror", None) or error or type(error).__name__)
    cause = f"{error} {error.__cause__ or ''}"
    table: tuple[tuple[bool, str, ErrorKind, str], ...] = (
        (
            isinstance(error, aiohttp.ConnectionTimeoutError),
            "RegistryUnreachable",
            temporary,
            "no connection in time",
        ),
        (isinstance(error, TimeoutError), "Stalled", temporary, "no byte came within the stall timeout"),
        (
            isinstance(error, aiohttp.ClientConnectorCertificateError),
            "CertificateNotTrusted",
            permanent,
            f"its certificate is not trusted: {text}; add its CA to hosts.toml",
        ),
        (
            isinstance(error, aiohttp.ClientConnectorError | ssl.SSLError)
            and any(
                word in cause.upper()
                for word in ("WRONG_VERSION", "WRONG VERSION", "RECORD LAYER", "HTTP_REQUEST")
            ),
            "NotTLS",
            permanent,
            "it does not speak TLS; for plain http write the scheme http into hosts.toml",
        ),
        (
            isinstance(error, aiohttp.ClientConnectorDNSError),
            "RegistryUnreachable",
            temporary,
            "its name cannot be resolved",
        ),
        (isinstance(error, aiohttp.ClientConnectorError), "RegistryUnreachable", temporary, text),
        (
            isinstance(error, aiohttp.InvalidURL | ValueError),
            "InvalidAddress",
            permanent,
            f"not a usable address: {text}",
        ),
        (
            isinstance(error, aiohttp.ClientResponseError),
            "ProtocolError",
            permanent,
            f"not valid HTTP: {text}",
        ),
    )
    for applies, reason, kind, message in table:
        if applies:
            return RegistryError(message, reason=reason, kind=kind, host=host, request=request)
    return RegistryError(
        f"connection lost: {text}", reason="ConnectionLost", kind=temporary, host=host, request=request
    )


def _target(current: URL, location: str, host: str, request: str) -> URL:
    try:
        target = current.join(URL(location, encoded=True))
    except ValueError:
        target = URL()
    if not location or target.scheme not in ("http", "https") or not target.host or target.user:
        raise _refused(f"it redirects to {location[:100]!r}, which is no http address", host, request)
    return target


def _refused(problem: str, host: str, request: str) -> RegistryError:
    return RegistryError(problem, reason="RedirectRefused", host=host, request=request)
