"""What the API server refused, as data: below everything in `kube/`, read by the agent's and the operator's loops."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec

MESSAGE_LIMIT = 1024
"""Characters of a server's message that we keep; a 422 on a large object repeats the object."""


class ApiError(Exception):
    """A request that did not succeed. `status` is the HTTP status, or 0 when no answer came.

    `retry_after` is what the server asked for, in seconds, or None.
    """

    def __init__(
        self, status: int, reason: str, message: str, *, request: str = "", retry_after: float | None = None
    ) -> None:
        self.status = status
        self.reason = reason
        self.message = message[:MESSAGE_LIMIT]
        self.request = request
        self.retry_after = retry_after
        where = f"{request}: " if request else ""
        code = f"{status} {reason}" if status else reason
        super().__init__(f"{where}{code}: {self.message}")

    @property
    def not_found(self) -> bool:
        """404: the object, or the whole kind when its CRD is not installed."""
        return self.status == HTTPStatus.NOT_FOUND

    @property
    def conflict(self) -> bool:
        """409 about a stale resourceVersion or another field manager's field."""
        return self.status == HTTPStatus.CONFLICT and self.reason != "AlreadyExists"

    @property
    def already_exists(self) -> bool:
        """409 on create: an object of this name is there."""
        return self.status == HTTPStatus.CONFLICT and self.reason == "AlreadyExists"

    @property
    def gone(self) -> bool:
        """410: the resourceVersion asked for is compacted; only a new list helps."""
        return self.status == HTTPStatus.GONE

    @property
    def temporary(self) -> bool:
        """Whether the same request can succeed later without anybody changing anything."""
        return (
            self.status in {0, HTTPStatus.TOO_MANY_REQUESTS}
            or self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        )


class ApiUnreachable(ApiError):
    """No answer: connection refused or lost, TLS failure, or a deadline passed."""

    def __init__(self, message: str, *, request: str = "", reason: str = "Unreachable") -> None:
        super().__init__(0, reason, message, request=request)


def from_status(document: Any, *, status: int, request: str, retry_after: float | None = None) -> ApiError:
    """An error from a `metav1.Status` document, or from whatever a proxy in between sent instead."""
    if isinstance(document, Mapping) and document.get("kind") == "Status":
        details = document.get("details")
        if retry_after is None and isinstance(details, Mapping) and details.get("retryAfterSeconds"):
            retry_after = float(details["retryAfterSeconds"])
        code = document.get("code") or status
        return ApiError(
            int(code),
            str(document.get("reason") or "Unknown"),
            str(document.get("message") or ""),
            request=request,
            retry_after=retry_after,
        )
    return ApiError(status, "Unknown", str(document), request=request, retry_after=retry_after)


def from_body(body: bytes, *, status: int, request: str, retry_after: float | None) -> ApiError:
    """As `from_status`, from the bytes of an answer, JSON or not."""
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError:
        document = body[:MESSAGE_LIMIT].decode(errors="replace").strip()
    return from_status(document, status=status, request=request, retry_after=retry_after)
