"""Blobs from wherever they can be had: parts where a host does them, the whole where not, `urls` last of all.

Above `asking` (one host) and `walk` (all hosts), below `client`; `blobs` is the stream that comes of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.reference import Reference
from imageprepull.registry.answer import Answer
from imageprepull.registry.asking import OK, PARTIAL, Asker
from imageprepull.registry.blobs import ENCODINGS, BlobStream, range_matches
from imageprepull.registry.errors import RegistryError
from imageprepull.registry.health import RangeMemory, Ranges
from imageprepull.registry.host import RegistryHost
from imageprepull.registry.walk import Walk

RANGE_REFUSED = frozenset({400, 416, 501})
"""How servers refuse a range that others would serve or ignore."""
RANGES_UNKNOWN = frozenset({400, 501})
"""Those of them that speak of the host; 416 may be about this range only."""
MAX_URLS = 5
"""Places outside the registry that are tried for one layer."""


@dataclass(frozen=True, slots=True)
class _Span:
    """Bytes `start` to `end` of a blob; `headers` ask for them."""

    descriptor: Descriptor
    start: int
    end: int

    @property
    def whole(self) -> bool:
        return self.start == 0 and self.end == self.descriptor.size

    def headers(self, *, ranged: bool) -> dict[str, str]:
        accept = {"Accept": f"{self.descriptor.media_type}, */*"}
        return {**accept, "Range": f"bytes={self.start}-{self.end - 1}"} if ranged else accept


@dataclass(frozen=True, slots=True)
class _Source:
    """Who answered. `origin` is the registry host that was asked, or where a URL of the manifest points."""

    answer: Answer
    origin: str
    deadline: float | None = None
    host: RegistryHost | None = None


class Blobs:
    """Opens streams of blobs; `ranges` is what is known of hosts."""

    def __init__(self, asker: Asker, walk: Walk, *, first_byte: float) -> None:
        self._asker = asker
        self._walk = walk
        self._first_byte = first_byte
        self.ranges = RangeMemory()

    @asynccontextmanager
    async def open(
        self, reference: Reference, descriptor: Descriptor, offset: int, length: int | None
    ) -> AsyncIterator[BlobStream]:
        """A blob from `offset` on, `length` bytes or all. Raises RegistryError, and ValueError past the blob's end."""
        end = descriptor.size if length is None else min(descriptor.size, offset + length)
        if offset < 0 or (offset >= end and descriptor.size):
            # A server would answer 416, and some a whole body.
            raise ValueError(f"{descriptor.digest} has {descriptor.size} bytes: none from {offset} to {end}")
        span = _Span(descriptor, offset, end)
        hosts = self._walk.hosts(reference, by_tag=False)
        path = f"/{reference.path}/blobs/{descriptor.digest}"

        async def ask(host: RegistryHost, deadline: float | None) -> _Source:
            answer = await self._at(host, reference, path, span, deadline)
            return _Source(answer, host.name, deadline, host)

        try:
            source = await self._walk.first(hosts, descriptor.digest, ask)
        except RegistryError as error:
            source = await self._outside(hosts[-1], span, error)
        stream = self._stream(source, path, span)
        try:
            yield stream
        finally:
            source.answer.leave()

    def _stream(self, source: _Source, path: str, span: _Span) -> BlobStream:
        answer, target = source.answer, source.answer.url

        def ended(error: RegistryError | None, gained: bool) -> None:
            self._walk.memory.stream_ended(source.origin, span.descriptor.digest, error, gained=gained)
            if error is not None and source.host is not None:
                self._asker.spoil(source.host, path, target)

        return BlobStream(
            answer,
            span.start if answer.status == PARTIAL else 0,
            span.end,
            source.origin,
            goes_on=answer.status == OK and span.end < span.descriptor.size,
            decode=_must_decode(answer, span.descriptor),
            first_byte=source.deadline,
            ended=ended,
        )

    async def _at(
        self, host: RegistryHost, reference: Reference, path: str, span: _Span, deadline: float | None
    ) -> Answer:
        """The part from one host, or the whole blob where the host does no ranges."""
        answer, did = None, None
        if not span.whole and self.ranges.known(host.url) is not Ranges.REFUSED:
            answer, did = await self._part(host, reference, path, span, deadline)
        if answer is not None:
            return answer
        answer = await self._asker.ask_blob(
            host, reference, path, span.headers(ranged=False), deadline=deadline
        )
        if answer.status not in (OK, PARTIAL):
            raise await answer.error()
        if problem := await _unfit(answer, _Span(span.descriptor, 0, span.descriptor.size)):
            answer.response.close()
            raise problem
        if did is not None:
            self.ranges.learn(reference.registry, host.url, did)
        return answer

    async def _part(
        self, host: RegistryHost, reference: Reference, path: str, span: _Span, deadline: float | None
    ) -> tuple[Answer | None, Ranges]:
        """The answer to a range, or None when the blob must be asked for without one; and what the host did."""
        proven = self.ranges.known(host.url) in (Ranges.SERVED, Ranges.IGNORED)
        patience = deadline if proven else deadline or self._first_byte
        try:
            answer = await self._asker.ask_blob(
                host, reference, path, span.headers(ranged=True), deadline=patience
            )
        except RegistryError as error:
            # Some never answer a range. The plain request has its full time.
            if proven or not error.unanswered or error.reason != "Stalled":
                raise
            return None, Ranges.REFUSED
        did = Ranges.SERVED if answer.status == PARTIAL else Ranges.IGNORED
        if answer.status in (OK, PARTIAL):
            self.ranges.learn(reference.registry, host.url, did)
        if answer.status in (OK, PARTIAL) and await _unfit(answer, span) is None:
            return answer, did
        if answer.status not in (OK, PARTIAL, *RANGE_REFUSED):
            raise await answer.error()
        # Refused, or another part: the whole blob, and the caller passes over what it has.
        answer.response.close()
        return None, Ranges.REFUSED if answer.status in RANGES_UNKNOWN else Ranges.IGNORED

    async def _outside(self, near: RegistryHost, span: _Span, error: RegistryError) -> _Source:
        """From where the manifest says that a foreign layer is; raises `error` when there is no such place."""
        for url in span.descriptor.urls[:MAX_URLS]:
            for ranged in (False,) if span.whole else (True, False):
                try:
                    answer = await self._asker.outside(url, near, span.headers(ranged=ranged))
                    if ranged and answer.status in RANGE_REFUSED:
                        answer.response.close()
                        continue
                    if answer.status not in (OK, PARTIAL):
                        raise await answer.error()
                    if problem := await _unfit(answer, span):
                        answer.response.close()
                        raise problem
                except RegistryError as other:
                    error.others = (*error.others, other)
                    break
                return _Source(answer, answer.host)
        raise error


def _length(answer: Answer) -> int | None:
    text = answer.header("Content-Length")
    return int(text) if text.isdecimal() and len(text) < 20 else None  # noqa: PLR2004 - 64 bits


def _must_decode(answer: Answer, descriptor: Descriptor) -> bool:
    """Whether a body was compressed on its way though nobody asked for it, and is not what the digest is of.

    Registries put `gzip` on layers that are gzip themselves: those are taken as they are.
    """
    if answer.status != OK or answer.header("Content-Encoding").lower() not in ENCODINGS:
        return False
    length = _length(answer)
    if length is not None:
        return length != descriptor.size
    return not descriptor.media_type.endswith("gzip")


async def _unfit(answer: Answer, span: _Span) -> RegistryError | None:
    """Why the answer cannot be the part that was asked for, or the whole blob."""
    size = span.descriptor.size
    if answer.status == PARTIAL:
        found = answer.header("Content-Range")
        if range_matches(found, span.start, span.end, size):
            return None
        return answer.fault(
            f"asked for bytes {span.start}-{span.end - 1} of {size}, got {found!r}", "SizeMismatch"
        )
    length = _length(answer)
    if length == size or _must_decode(answer, span.descriptor):
        return None
    if answer.content_type == "text/html":
        return await answer.stranger("a page came instead of a blob")
    return _other_size(answer, length, size)


def _other_size(answer: Answer, length: int | None, size: int) -> RegistryError | None:
    encoding = answer.header("Content-Encoding").lower()
    if encoding not in ("", "identity", *ENCODINGS):
        return answer.fault(
            f"the blob came with Content-Encoding {encoding!r} that nobody asked for", "NotARegistryAnswer"
        )
    if length is not None:
        return answer.fault(f"the blob should have {size} bytes, the answer has {length}", "SizeMismatch")
    return None
