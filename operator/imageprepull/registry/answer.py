"""A response whose body was not read yet, and how it came about. Between `transport` and those who ask."""

from __future__ import annotations

from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from imageprepull.registry.answers import parse_error, parse_pause, parse_retry_after
from imageprepull.registry.challenges import Challenge, parse_challenges
from imageprepull.registry.errors import ErrorKind, RegistryError, classify
from imageprepull.registry.faults import fault
from imageprepull.registry.rate_limits import RateLimits

MAX_ERROR_BODY = 16 * 1024
SHOWN = 200
"""Bytes of an answer that is no registry's, for its error."""
_OK, _NOT_FOUND = 200, 404


@dataclass(slots=True)
class Answer:
    """Whoever gets it closes it.

    `host` answered; `redirected`: it is another than the registry that was asked. `authenticated`: the request
    carried credentials of ours, or a token that was got with them.
    """

    response: aiohttp.ClientResponse
    host: str
    request: str
    authenticated: bool
    redirected: bool
    limits: RateLimits = field(default_factory=RateLimits)

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.response.status

    @property
    def url(self) -> URL:
        """Where it came from, after redirects."""
        return self.response.url

    def header(self, name: str) -> str:
        """A header's value, or nothing."""
        return self.response.headers.get(name, "")

    @property
    def challenges(self) -> list[Challenge]:
        """The ways in that it offers."""
        return parse_challenges(self.response.headers.getall("WWW-Authenticate", []))

    @property
    def content_type(self) -> str:
        """The media type in small letters, without parameters."""
        return self.header("Content-Type").partition(";")[0].strip().lower()

    async def read(self, limit: int) -> bytes:
        """At most `limit` bytes of the body, whatever its Content-Length says."""
        parts: list[bytes] = []
        left = limit
        try:
            while left > 0 and (part := await self.response.content.read(left)):
                parts.append(part)
                left -= len(part)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise fault(error, self.host, self.request) from error
        return b"".join(parts)

    async def part(self) -> bytes:
        """The next bytes of the body just as they came from the connection, uncopied; none at its end."""
        content = self.response.content
        try:
            while True:
                part, _ = await content.readchunk()
                # An empty part is also what ends a chunk of chunked encoding.
                if part or content.at_eof():
                    return part
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if part := self._left_over():
                return part
            raise fault(error, self.host, self.request) from error

    def _left_over(self) -> bytes:
        """Bytes that came before the connection broke: aiohttp raises before it hands them out."""
        take = getattr(self.response.content, "_read_nowait_chunk", None)
        return bytes(take(-1)) if take and getattr(self.response.content, "_buffer", None) else b""

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

    async def stranger(self, problem: str) -> RegistryError:
        """NotARegistryAnswer with the start of what came instead: a login page, a captive portal. Closes it."""
        try:
            start = await self.read(SHOWN)
        except RegistryError:
            start = b""
        self.response.close()
        return self.not_registry(problem, start)

    def not_registry(self, problem: str, body: bytes) -> RegistryError:
        """The same about a body that was read."""
        shown = parse_error(body[:SHOWN], self.content_type)[1].strip()
        return self.fault(f"{problem}; it begins with {shown!r}" if shown else problem, "NotARegistryAnswer")

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
        pause = parse_retry_after(self.header("Retry-After") or None)
        if kind is ErrorKind.THROTTLED:
            pause = pause if pause is not None else parse_pause(message)
            self.limits.throttled(self.host, pause)
        if self.status == _NOT_FOUND and not code and self.content_type == "text/html":
            message += " (a page, not a registry's answer: check the path of this host in hosts.toml and override_path)"
        return RegistryError(
            message or self.response.reason or "no explanation",
            reason=reason,
            kind=kind,
            host=self.host,
            request=self.request,
            status=self.status,
            code=code,
            retry_after=pause,
        )
