"""The registry client that a pull uses: tags to digests, documents verified, blobs as streams.

Above `walk` (all hosts of a registry), `asking` (one host) and `fetching` (blobs), below `pulling` and the operator's
resolver.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self, TypeVar

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.oci.manifest import InvalidManifest, document_kind
from imageprepull.oci.reference import Reference
from imageprepull.registry.asking import Asker
from imageprepull.registry.authorization import Authorizer
from imageprepull.registry.blobs import BlobStream
from imageprepull.registry.bounded import Bounded
from imageprepull.registry.credentials import Credentials, NoCredentials
from imageprepull.registry.documents import (
    DOCUMENT_LIMIT,
    check_registry,
    described,
    explain_missing,
    mismatch,
    read_body,
    verify,
)
from imageprepull.registry.errors import ErrorKind, RegistryError
from imageprepull.registry.fetching import Blobs
from imageprepull.registry.health import Breakers, FaultMemory
from imageprepull.registry.host import RegistryHost
from imageprepull.registry.hosts import HostsConfig
from imageprepull.registry.proxies import Proxies
from imageprepull.registry.rate_limits import RateLimit
from imageprepull.registry.transport import Transport
from imageprepull.registry.walk import Ask, Walk

ACCEPT = (
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.docker.distribution.manifest.v2+json, */*"
)
MAX_PAUSE = 30.0
"""Seconds that a Retry-After may hold a document up; longer ones are the caller's to wait for."""
BY_HEAD = 1000
"""Digests that are remembered as known by a HEAD only."""
NOT_FOUND, THROTTLED = 404, 429

T = TypeVar("T")


class RegistryClient:
    """One client per process: connections, tokens and what is known about hosts are shared by all pulls.

    Args:
        hosts: which hosts serve a registry.
        credentials: who we are there.
        stall_timeout: seconds without a byte after which a request counts as dead; never a total time.
        connect_timeout: seconds for a TCP connection and TLS, where hosts.toml has no dial_timeout.
        probe_timeout: seconds for TLS where plain http is tried next, as on loopback.
        first_byte_timeout: seconds that a mirror has to begin an answer or a body before the next host is asked,
            and any host to begin to answer a range while it has never served one.
        attempts: how often `resolve` and `fetch_document` go through all hosts while the error is temporary.
        backoff: seconds before the second attempt; doubles, with full jitter.
        throttle_backoff: the same after a refusal as one too many, without a Retry-After; at least half of it.
        breaker_threshold: requests in a row that a mirror leaves unanswered before it is passed over.
        breaker_pause: seconds that it is passed over for.
        proxies: whom requests go through; None reads the environment.
    """

    def __init__(
        self,
        hosts: HostsConfig | None = None,
        credentials: Credentials | None = None,
        *,
        stall_timeout: float = 180,
        connect_timeout: float = 30,
        probe_timeout: float = 3,
        first_byte_timeout: float = 10,
        attempts: int = 4,
        backoff: float = 0.5,
        throttle_backoff: float = 1,
        breaker_threshold: int = 3,
        breaker_pause: float = 60,
        proxies: Proxies | None = None,
    ) -> None:
        self._transport = Transport(
            stall_timeout=stall_timeout,
            connect_timeout=connect_timeout,
            probe_timeout=probe_timeout,
            proxies=Proxies.from_environment() if proxies is None else proxies,
        )
        authorizer = Authorizer(self._transport, credentials or NoCredentials())
        self._authorizer = authorizer
        self._asker = Asker(self._transport, authorizer)
        self._walk = Walk(
            hosts or HostsConfig(),
            first_byte=first_byte_timeout,
            breakers=Breakers(breaker_threshold, breaker_pause),
            memory=FaultMemory(),
        )
        self._blobs = Blobs(self._asker, self._walk, first_byte=first_byte_timeout)
        self._attempts = attempts
        self._backoff = backoff
        self._throttle_backoff = throttle_backoff
        self._by_head: Bounded[tuple[str, str], None] = Bounded(BY_HEAD)
        self._lying_heads: Bounded[str, None] = Bounded(BY_HEAD)

    @property
    def stall_timeout(self) -> float:
        """Seconds without a byte; may be changed at any time and holds for requests from then on."""
        return self._transport.stall_timeout

    @stall_timeout.setter
    def stall_timeout(self, seconds: float) -> None:
        self._transport.stall_timeout = seconds

    @property
    def rate_limits(self) -> Mapping[str, RateLimit]:
        """What hosts said about how often they may be asked, by the host and port that answered."""
        return self._transport.limits

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    async def resolve(self, reference: Reference) -> Descriptor:
        """Ask the registry what a reference is. Raises RegistryError or oci.manifest.InvalidManifest."""

        async def ask(host: RegistryHost, deadline: float | None) -> Descriptor:
            return await self._resolve_at(host, reference, deadline)

        by_tag = reference.digest is None
        return await self._persist(reference, reference.digest, ask, path=_manifest(reference), by_tag=by_tag)

    async def fetch_document(self, reference: Reference, descriptor: Descriptor) -> bytes:
        """An index, manifest or config, verified against digest and size. Raises RegistryError."""
        if descriptor.size > DOCUMENT_LIMIT:
            raise RegistryError(
                f"{descriptor.digest} has {descriptor.size} bytes; a document may have {DOCUMENT_LIMIT}",
                reason="DocumentTooLarge",
            )
        kind = "manifests" if descriptor.is_index or descriptor.is_manifest else "blobs"
        path = f"/{reference.path}/{kind}/{descriptor.digest}"

        async def ask(host: RegistryHost, deadline: float | None) -> bytes:
            accept = {"Accept": f"{descriptor.media_type}, */*"}
            answer = await self._asker.get(host, reference, path, accept, deadline=deadline)
            body = await read_body(answer, descriptor.size, deadline)
            verify(body, descriptor, answer)
            return body

        try:
            return await self._persist(reference, descriptor.digest, ask, path=path, by_tag=False)
        except RegistryError as error:
            if error.status == NOT_FOUND and (reference.name, descriptor.digest) in self._by_head:
                # Some say in a HEAD the digest of another representation. The next answer is the document's own.
                self._lying_heads[reference.name] = None
                del self._by_head[reference.name, descriptor.digest]
                error.kind = ErrorKind.TEMPORARY
            explain_missing(error, descriptor)
            raise

    def open_blob(
        self, reference: Reference, descriptor: Descriptor, offset: int = 0, *, length: int | None = None
    ) -> AbstractAsyncContextManager[BlobStream]:
        """A blob from `offset` on, `length` bytes or all. Raises RegistryError when entered and while it is read.

        Every host is asked once; trying again is the caller's, which knows what it has.
        """
        return self._blobs.open(reference, descriptor, offset, length)

    def distrust(self, host: str, digest: str) -> None:
        """Remember that a host (`BlobStream.origin`) served wrong bytes for a digest: it is asked last from now on."""
        self._walk.memory.distrusted[host, digest] = None

    async def _resolve_at(
        self, host: RegistryHost, reference: Reference, deadline: float | None
    ) -> Descriptor:
        """HEAD, since registries count GETs; GET where the HEAD does not tell all."""
        path = _manifest(reference)
        if reference.name not in self._lying_heads:
            answer = await self._asker.ask(
                "HEAD", host, reference, path, {"Accept": ACCEPT}, deadline=deadline
            )
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
                self._by_head[reference.name, found.digest] = None
                return found
        answer = await self._asker.get(host, reference, path, {"Accept": ACCEPT}, deadline=deadline)
        body = await read_body(answer, None, deadline)
        check_registry(body, answer)
        digest = sha256_digest(body)
        if reference.digest and digest != reference.digest:
            raise mismatch(f"asked for {reference.digest}, the answer is {digest}", answer)
        return Descriptor(document_kind(body, answer.header("Content-Type")), digest, len(body))

    async def _persist(
        self, reference: Reference, digest: str | None, ask: Ask[T], *, path: str, by_tag: bool
    ) -> T:
        """The first host that answers; while all that is wrong is temporary, once more after a pause."""
        hosts = self._walk.hosts(reference, by_tag=by_tag)

        async def understood(host: RegistryHost, deadline: float | None) -> T:
            try:
                return await ask(host, deadline)
            except InvalidManifest as error:
                if host is hosts[-1]:
                    raise
                raise RegistryError(str(error), reason=error.reason, host=host.name) from error

        for attempt in range(self._attempts):
            try:
                return await self._walk.first(hosts, digest, understood)
            except RegistryError as error:
                pause = self._pause(error, attempt)
                if not error.retryable or attempt + 1 == self._attempts or pause > MAX_PAUSE:
                    if error.reason == "CredentialsRejected" and await self._asker.public(
                        hosts[-1], reference, path
                    ):
                        error.explain(
                            "the image can be read without credentials: renew the refused ones or remove them"
                        )
                    raise
            await asyncio.sleep(pause)
        raise AssertionError("attempts must be at least 1")

    def _pause(self, error: RegistryError, attempt: int) -> float:
        """Seconds before the next attempt; one who is told to slow down never comes back at once."""
        if error.kind is ErrorKind.THROTTLED:
            ceiling = self._throttle_backoff * 2**attempt
            pause = random.uniform(ceiling / 2, ceiling)  # noqa: S311 - jitter
        else:
            pause = random.uniform(0, self._backoff * 2**attempt)  # noqa: S311 - jitter
        return max(pause, error.retry_after or 0)


def _manifest(reference: Reference) -> str:
    return f"/{reference.path}/manifests/{reference.digest or reference.tag}"
