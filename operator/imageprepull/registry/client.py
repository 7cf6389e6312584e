"""The registry client that a pull uses: tags to digests, documents verified, blobs as streams.

Above transport.py (HTTP) and authorization.py (tokens), below `pulling` and the operator's resolver. Every host of
a registry is asked in its order, per request; the upstream comes last and its answer is the one that counts.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Self, TypeVar

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.oci.manifest import InvalidManifest, document_kind
from imageprepull.oci.reference import Reference
from imageprepull.registry.authorization import Authorizer
from imageprepull.registry.blobs import BlobStream, range_matches
from imageprepull.registry.bounded import Bounded
from imageprepull.registry.challenges import parse_challenges
from imageprepull.registry.credentials import Credentials, NoCredentials
from imageprepull.registry.documents import DOCUMENT_LIMIT, described, mismatch, read_body, verify
from imageprepull.registry.errors import RegistryError, verdict
from imageprepull.registry.host import RegistryHost
from imageprepull.registry.hosts import HostsConfig
from imageprepull.registry.transport import Answer, Transport

ACCEPT = (
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.docker.distribution.manifest.v2+json, */*"
)
MAX_PAUSE = 30.0
"""Seconds that a Retry-After may hold a document up; longer ones are the caller's to wait for."""
DISTRUSTED = 10_000
"""(host, digest) pairs that are remembered as wrong."""
OK, PARTIAL, NOT_FOUND, THROTTLED = 200, 206, 404, 429
# How servers refuse a range that others would serve or ignore.
RANGE_REFUSED = frozenset({400, 416, 501})
AUTHORIZATION_TRIES = 8
"""Requests for one answer; a registry that accepts a token elsewhere and refuses it here must not go on for ever."""
REFUSALS = frozenset({400, 401, 403})

T = TypeVar("T")


class RegistryClient:
    """One client per process: connections, tokens and what is known about hosts are shared by all pulls.

    Args:
        hosts: which hosts serve a registry.
        credentials: who we are there.
        stall_timeout: seconds without a byte after which a request counts as dead; never a total time.
        connect_timeout: seconds for a TCP connection and TLS.
        probe_timeout: seconds for TLS where plain http is tried next, as on loopback.
        attempts: how often `resolve` and `fetch_document` go through all hosts while the error is temporary.
        backoff: seconds before the second attempt; doubles, with full jitter.
    """

    def __init__(
        self,
        hosts: HostsConfig | None = None,
        credentials: Credentials | None = None,
        *,
        stall_timeout: float = 180,
        connect_timeout: float = 30,
        probe_timeout: float = 3,
        attempts: int = 4,
        backoff: float = 0.5,
    ) -> None:
        self._hosts = hosts or HostsConfig()
        self._transport = Transport(
            stall_timeout=stall_timeout, connect_timeout=connect_timeout, probe_timeout=probe_timeout
        )
        self._authorizer = Authorizer(self._transport, credentials or NoCredentials())
        self._attempts = attempts
        self._backoff = backoff
        self._distrusted: Bounded[tuple[str, str], None] = Bounded(DISTRUSTED)

    @property
    def stall_timeout(self) -> float:
        """Seconds without a byte; may be changed at any time and holds for requests from then on."""
        return self._transport.stall_timeout

    @stall_timeout.setter
    def stall_timeout(self, seconds: float) -> None:
        self._transport.stall_timeout = seconds

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    async def resolve(self, reference: Reference) -> Descriptor:
        """Ask the registry what a reference is. Raises RegistryError or oci.manifest.InvalidManifest."""

        async def ask(host: RegistryHost) -> Descriptor:
            return await self._resolve_at(host, reference)

        return await self._any_host(reference, ask, by_tag=reference.digest is None)

    async def fetch_document(self, reference: Reference, descriptor: Descriptor) -> bytes:
        """An index, manifest or config, verified against digest and size. Raises RegistryError."""
        if descriptor.size > DOCUMENT_LIMIT:
            raise RegistryError(
                f"{descriptor.digest} has {descriptor.size} bytes; a document may have {DOCUMENT_LIMIT}",
                reason="DocumentTooLarge",
            )
        kind = "manifests" if descriptor.is_index or descriptor.is_manifest else "blobs"

        async def ask(host: RegistryHost) -> bytes:
            path = f"/{reference.path}/{kind}/{descriptor.digest}"
            accept = f"{descriptor.media_type}, */*"
            answer = await self._get(host, reference, path, {"Accept": accept})
            body = await read_body(answer, descriptor.size)
            verify(body, descriptor, answer)
            return body

        return await self._any_host(reference, ask, by_tag=False)

    def open_blob(
        self, reference: Reference, descriptor: Descriptor, offset: int = 0, *, length: int | None = None
    ) -> AbstractAsyncContextManager[BlobStream]:
        """A blob from `offset` on, `length` bytes or all. Raises RegistryError when entered and while it is read.

        Every host is asked once; trying again is the caller's, which knows what it has.
        """
        return self._blob(reference, descriptor, offset, length)

    def distrust(self, host: str, digest: str) -> None:
        """Remember that a host (`BlobStream.origin`) served wrong bytes for a digest: it is asked last from now on."""
        self._distrusted[host, digest] = None

    @asynccontextmanager
    async def _blob(
        self, reference: Reference, descriptor: Descriptor, offset: int, length: int | None
    ) -> AsyncIterator[BlobStream]:
        end = descriptor.size if length is None else min(descriptor.size, offset + length)
        errors: list[RegistryError] = []
        answer: Answer | None = None
        origin = ""
        for host in self._blob_hosts(reference, descriptor.digest):
            try:
                answer, origin = await self._blob_at(host, reference, descriptor, offset, end), host.name
                break
            except RegistryError as error:
                errors.append(error)
        if answer is None:
            raise verdict(errors)
        first, end = _span(answer, offset, end, descriptor.size)
        goes_on = answer.status == OK and end < descriptor.size
        stream = BlobStream(answer, first, end, origin, goes_on=goes_on)
        try:
            yield stream
        finally:
            answer.leave()

    def _blob_hosts(self, reference: Reference, digest: str) -> list[RegistryHost]:
        hosts = [host for host in self._hosts.lookup(reference.registry) if host.serves(by_tag=False)]
        if not hosts:
            raise _nobody(reference)
        return sorted(hosts, key=lambda host: (host.name, digest) in self._distrusted)

    async def _blob_at(
        self, host: RegistryHost, reference: Reference, descriptor: Descriptor, offset: int, end: int
    ) -> Answer:
        headers = {"Accept": f"{descriptor.media_type}, */*"}
        path = f"/{reference.path}/blobs/{descriptor.digest}"
        if offset or end < descriptor.size:
            ranged = {**headers, "Range": f"bytes={offset}-{end - 1}"}
            answer = await self._ask("GET", host, reference, path, ranged)
            if answer.status not in (OK, PARTIAL, *RANGE_REFUSED):
                raise await answer.error()
            if answer.status in (OK, PARTIAL) and _unfit(answer, offset, end, descriptor.size) is None:
                return answer
            # Refused, or another part: the whole blob, and the caller passes over what it has.
            answer.response.close()
            offset, end = 0, descriptor.size
        answer = await self._get(host, reference, path, headers)
        problem = _unfit(answer, offset, end, descriptor.size)
        if problem:
            answer.response.close()
            raise answer.fault(problem[1], problem[0])
        return answer

    async def _resolve_at(self, host: RegistryHost, reference: Reference) -> Descriptor:
        """HEAD, since registries count GETs; GET where the HEAD does not tell all."""
        path = f"/{reference.path}/manifests/{reference.digest or reference.tag}"
        answer = await self._ask("HEAD", host, reference, path, {"Accept": ACCEPT})
        answer.response.release()
        if answer.status == NOT_FOUND and not answer.redirected:
            raise answer.fault(
                f"{reference.canonical} does not exist there, or nobody may know of it without credentials",
                "NotFound",
            )
        if answer.status == THROTTLED:
            raise await answer.error()
        found = described(answer, reference.digest)
        if found is not None:
            return found
        answer = await self._get(host, reference, path, {"Accept": ACCEPT})
        body = await read_body(answer)
        digest = sha256_digest(body)
        if reference.digest and digest != reference.digest:
            raise mismatch(f"asked for {reference.digest}, the answer is {digest}", answer)
        return Descriptor(document_kind(body, answer.header("Content-Type")), digest, len(body))

    async def _any_host(
        self, reference: Reference, ask: Callable[[RegistryHost], Awaitable[T]], *, by_tag: bool
    ) -> T:
        """The first host that answers; while all that is wrong is temporary, once more after a pause."""
        hosts = [host for host in self._hosts.lookup(reference.registry) if host.serves(by_tag=by_tag)]
        if not hosts:
            raise _nobody(reference)
        for attempt in range(self._attempts):
            errors: list[RegistryError] = []
            for host in hosts:
                try:
                    return await ask(host)
                except RegistryError as error:
                    errors.append(error)
                except InvalidManifest as error:
                    if host is hosts[-1]:
                        raise
                    errors.append(RegistryError(str(error), reason=error.reason, host=host.name))
            failure = verdict(errors)
            pause = max(random.uniform(0, self._backoff * 2**attempt), failure.retry_after or 0)  # noqa: S311 - jitter
            if not failure.retryable or attempt + 1 == self._attempts or pause > MAX_PAUSE:
                raise failure
            await asyncio.sleep(pause)
        raise AssertionError("attempts must be at least 1")

    async def _get(
        self, host: RegistryHost, reference: Reference, path: str, headers: Mapping[str, str]
    ) -> Answer:
        """A GET that succeeded; its body is not read."""
        answer = await self._ask("GET", host, reference, path, headers)
        if answer.status not in (OK, PARTIAL):
            raise await answer.error()
        return answer

    async def _ask(
        self, method: str, host: RegistryHost, reference: Reference, path: str, headers: Mapping[str, str]
    ) -> Answer:
        """One request, sent again while the authorizer finds another way in."""
        if host.is_proxy:
            path = f"{path}?ns={reference.registry}"
        for left in reversed(range(AUTHORIZATION_TRIES)):
            header = await self._authorizer.authorization(host, reference.path)
            answer = await self._transport.request(method, host, path, headers, header)
            # A refusal from where the registry sent us says nothing about what we told the registry.
            if answer.redirected or answer.status not in REFUSALS:
                self._authorizer.accepted(host, reference.path, header)
                return answer
            challenges = parse_challenges(answer.response.headers.getall("WWW-Authenticate", []))
            try:
                again = await self._authorizer.rejected(host, reference.path, header, challenges)
            except BaseException:
                answer.response.close()
                raise
            if not again or not left:
                return answer
            answer.response.close()
        raise AssertionError("the last try returns")


def _unfit(answer: Answer, offset: int, end: int, size: int) -> tuple[str, str] | None:
    """Why the answer cannot be the blob: reason and message."""
    encoding = answer.header("Content-Encoding").lower()
    if encoding not in ("", "identity"):
        return "NotARegistryAnswer", f"the blob came with Content-Encoding {encoding!r} that nobody asked for"
    if answer.status == PARTIAL:
        content_range = answer.header("Content-Range")
        if not range_matches(content_range, offset, end, size):
            return "SizeMismatch", f"asked for bytes {offset}-{end - 1} of {size}, got {content_range!r}"
        return None
    length = answer.header("Content-Length")
    if length.isdigit() and int(length) != size:
        return "SizeMismatch", f"the blob should have {size} bytes, the answer has {length}"
    return None


def _span(answer: Answer, offset: int, end: int, size: int) -> tuple[int, int]:
    """The first byte that the answer brings, and the one after its last."""
    if answer.status != PARTIAL:
        return 0, end
    if range_matches(answer.header("Content-Range"), offset, end, size):
        return offset, end
    return 0, size


def _nobody(reference: Reference) -> RegistryError:
    return RegistryError(
        f"no host in hosts.toml may be asked for {reference.canonical}; check the capabilities",
        reason="InvalidHostsFile",
    )
