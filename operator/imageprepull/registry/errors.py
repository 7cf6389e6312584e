"""What goes wrong at a registry, as data: which request, what was answered, and whether trying again can help.

`classify` is the one table that says what a status means; `answers.py` reads bodies and headers for it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum

MAX_MESSAGE = 300
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
_SECRETS = (
    re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{6,}"),
    re.compile(
        r"(?i)\b([a-z-]*(?:signature|credential|token|password|secret|sig)[a-z-]*\"?\s*[=:]\s*\"?)[^\s&\"',;]{4,}"
    ),
    re.compile(r"(://)[^/\s@]+@"),
)


class ErrorKind(StrEnum):
    """What the caller can do: give up, try again, wait, or ask for other credentials."""

    PERMANENT = "Permanent"
    TEMPORARY = "Temporary"
    THROTTLED = "Throttled"
    CREDENTIALS = "Credentials"


class RegistryError(Exception):
    """A request that did not bring what it should have.

    `reason` is a CamelCase word for the status of an object. `host` is the one that answered or should have,
    `request` is like `GET /v2/…`, `status` is None without an answer. `code` is the registry's own word
    (`MANIFEST_UNKNOWN`), `retry_after` is in seconds. `message` is bounded and holds neither secrets nor
    control characters. `str()` is one line. `others` are the errors of the hosts that were asked before.
    `unanswered`: not even the head of an answer came, which speaks of the host and not of what was asked for.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        kind: ErrorKind = ErrorKind.PERMANENT,
        host: str = "",
        request: str = "",
        status: int | None = None,
        code: str = "",
        retry_after: float | None = None,
        others: Sequence[RegistryError] = (),
    ) -> None:
        self.message = clean(message)
        self.reason = reason
        self.kind = kind
        self.host = host
        self.request = clean(request)
        self.status = status
        self.code = clean(code, 60)
        self.retry_after = retry_after
        self.others = tuple(others)
        self.unanswered = False
        super().__init__(self.message)

    @property
    def retryable(self) -> bool:
        """Whether the same request can succeed later without anybody changing anything."""
        return self.kind in (ErrorKind.TEMPORARY, ErrorKind.THROTTLED)

    def again(self) -> RegistryError:
        """The same error once more, for another who waited for what failed: an exception is raised by one task only."""
        found = type(self)(
            self.message,
            reason=self.reason,
            kind=self.kind,
            host=self.host,
            request=self.request,
            status=self.status,
            code=self.code,
            retry_after=self.retry_after,
            others=self.others,
        )
        found.unanswered = self.unanswered
        return found

    def explain(self, more: str) -> None:
        """Add to the message what was learnt after the error."""
        self.message = clean(f"{self.message}; {more}")

    def __str__(self) -> str:
        parts = [self.host, self.request and f"{self.request}:", self.status and str(self.status), self.code]
        line = " ".join(part for part in parts if part).removesuffix(":")
        line = f"{line}: {self.message}" if line and self.message else line or self.message
        if self.others:
            line += "; before that " + ", ".join(f"{error.host} {error.reason}" for error in self.others[:5])
        return line


CORRUPT_UPSTREAM = "CorruptUpstream"


class DigestMismatch(RegistryError):
    """Bytes that are not what the descriptor promised: the host, or a cache before it, serves corrupt content."""


def clean(text: str, limit: int = MAX_MESSAGE) -> str:
    """Text from outside, fit for a status and a terminal: one line, bounded, without secrets or control characters."""
    text = text[: limit * 8]
    text = _SECRETS[0].sub(r"\1 ***", text)
    text = _SECRETS[1].sub(r"\1***", text)
    text = _SECRETS[2].sub(r"\1***@", text)
    text = " ".join(_CONTROL.sub(" ", text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


_THROTTLE_CODES = frozenset({"TOOMANYREQUESTS", "SlowDown", "ThrottlingException", "RequestLimitExceeded"})
_THROTTLE_WORDS = ("rate exceeded", "rate limit", "too many requests", "slow down")
# nginx says so with 400, others with 403, where TLS itself let us pass.
_CERTIFICATE_WORDS = ("no required ssl certificate", "ssl certificate error", "client certificate")
_EXPIRED_WORDS = ("has expired", "reauthenticate")
# What a presigned URL answers when it is stale: asking the registry again gives a fresh one.
_STALE_TARGET = frozenset({400, 401, 403, 404, 410})


def classify(
    status: int, code: str = "", message: str = "", *, authenticated: bool = False, redirected: bool = False
) -> tuple[ErrorKind, str]:
    """What an answer means that is not the one hoped for: its kind, and a reason for a status.

    Args:
        status: the HTTP status.
        code: the registry's or object store's own error code.
        message: its text; some throttle with 403 or 503 and say so only there.
        authenticated: whether the request carried credentials or a token got with them.
        redirected: whether the answer came from where the registry had sent us, not from the registry.
    """
    certificate = status in (400, 403) and any(word in message.lower() for word in _CERTIFICATE_WORDS)
    expired = any(word in message.lower() for word in _EXPIRED_WORDS)
    throttled = code in _THROTTLE_CODES or any(word in message.lower() for word in _THROTTLE_WORDS)
    table: tuple[tuple[bool, ErrorKind, str], ...] = (
        (status == 429 or (throttled and status in (403, 503)), ErrorKind.THROTTLED, "Throttled"),  # noqa: PLR2004
        (certificate, ErrorKind.CREDENTIALS, "ClientCertificateWanted"),
        (redirected and status in _STALE_TARGET, ErrorKind.TEMPORARY, "RedirectTargetRefused"),
        (status == 401 and authenticated, ErrorKind.CREDENTIALS, "CredentialsRejected"),  # noqa: PLR2004
        (status == 403 and authenticated and expired, ErrorKind.CREDENTIALS, "CredentialsRejected"),  # noqa: PLR2004
        (status in (401, 403), ErrorKind.CREDENTIALS, "DeniedOrMissing"),
        (status == 404, ErrorKind.PERMANENT, "NotFound"),  # noqa: PLR2004
        (status in (408, 421, 425), ErrorKind.TEMPORARY, "RegistryError"),
        (500 <= status < 600, ErrorKind.TEMPORARY, "RegistryError"),  # noqa: PLR2004
        (400 <= status < 500, ErrorKind.PERMANENT, "RequestRefused"),  # noqa: PLR2004
    )
    for applies, kind, reason in table:
        if applies:
            return kind, reason
    return ErrorKind.PERMANENT, "NotARegistryAnswer"


def verdict(errors: Sequence[RegistryError]) -> RegistryError:
    """The one error to report when every host of a registry failed.

    The last host is the upstream: what it says counts, and the mirrors' errors stand beside it. A mirror's 404 or
    429 says nothing about the image; an upstream's 404 does. Where all of them served other content than was asked
    for, it is CorruptUpstream: no host is left that could be the only one that is damaged.
    """
    last = errors[-1]
    if all(isinstance(error, DigestMismatch) for error in errors):
        last.reason = CORRUPT_UPSTREAM
    last.others = tuple(error for error in errors[:-1] if error is not last)
    return last
