"""What an answer says beside its status: the error in its body, and when to come back. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import msgspec

MAX_RETRY_AFTER = 3600.0
_XML = re.compile(r"<Code>([^<]{1,60})</Code>(?:.*?<Message>([^<]{0,400})</Message>)?", re.DOTALL)


# GHCR names the pause in its text only: `retry-after: 880.092µs, allowed: 44000/minute`.
_TEXT_PAUSE = re.compile(r"(?i)retry[- ]after:?\s*(\d{1,9}(?:\.\d{1,9})?)\s*(ms|µs|μs|us|ns|s|m|h)?")
_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "": 1.0,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
MIN_TEXT_PAUSE = 1.0


class _Error(msgspec.Struct):
    code: str = ""
    message: str | None = None


class _Errors(msgspec.Struct):
    errors: list[_Error] | None = None
    message: str | None = None


def parse_error(body: bytes, content_type: str = "") -> tuple[str, str]:
    """Code and message of an error body: the registry's JSON, an object store's XML, or the start of the text."""
    text = body.decode("utf-8", "replace").strip()
    try:
        document = msgspec.json.decode(body, type=_Errors)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    else:
        if document.errors:
            return document.errors[0].code, document.errors[0].message or ""
        if document.message:
            return "", document.message
    if found := _XML.search(text):
        return found.group(1), found.group(2) or ""
    if "html" in content_type.lower():
        text = re.sub(r"<[^>]{0,500}>", " ", text)
    return "", text[:200]


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds until the server wants to be asked again, from a number or a date; at most an hour, never negative."""
    if not value:
        return None
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,20}", value):
        return min(float(value), MAX_RETRY_AFTER)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return min(max((date - (now or datetime.now(UTC))).total_seconds(), 0.0), MAX_RETRY_AFTER)


def parse_pause(text: str) -> float | None:
    """Seconds to wait from the text of a refusal; at least one, since such texts count in microseconds."""
    found = _TEXT_PAUSE.search(text)
    if found is None:
        return None
    pause = float(found.group(1)) * _UNITS[(found.group(2) or "").lower()]
    return min(max(pause, MIN_TEXT_PAUSE), MAX_RETRY_AFTER)
