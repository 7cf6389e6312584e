"""The registry client that a pull uses: tags to digests, documents verified, blobs as streams.

Above `resolving` (documents) and `fetching` (blobs), which go through all hosts of a registry by `walk`; below `pulling`
and the operator's resolver.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.reference import Reference
from imageprepull.registry.asking import Asker
from imageprepull.registry.authorization import Authorizer
from imageprepull.registry.blobs import BlobStream
from imageprepull.registry.credentials import Credentials, NoCredentials
from imageprepull.registry.fetching import Blobs
from imageprepull.registry.health import Breakers, FaultMemory
from imageprepull.registry.hosts import HostsConfig
from imageprepull.registry.proxies import Proxies
from imageprepull.registry.rate_limits import RateLimit
from imageprepull.registry.resolving import Documents
from imageprepull.registry.transport import Transport
from imageprepull.registry.walk import Walk


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
        self._authorizer = Authorizer(self._transport, credentials or NoCredentials())
        hosts = hosts or HostsConfig()
        asker = Asker(self._transport, self._authorizer, hosts)
        self._walk = Walk(
            hosts,
            first_byte=first_byte_timeout,
            breakers=Breakers(breaker_threshold, breaker_pause),
            memory=FaultMemory(),
        )
        self._blobs = Blobs(asker, self._walk, first_byte=first_byte_timeout)
        self._documents = Documents(
            asker, self._walk, attempts=attempts, backoff=backoff, throttle_backoff=throttle_backoff
        )

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

    @property
    def holds(self) -> Mapping[str, float]:
        """Hosts that are not asked now, and until when (`time.time()`)."""
        return self._transport.holds.standing()

    def hold(self, until: Mapping[str, float]) -> None:
        """Make no request to these hosts (host and port) before that time, nor to any other host than usual.

        A request fails as RegistryHeld with the seconds that are left, unless another host of the registry answers.
        """
        self._transport.holds.order(until)

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    async def resolve(self, reference: Reference) -> Descriptor:
        """Ask the registry what a reference is. Raises RegistryError or oci.manifest.InvalidManifest."""
        return await self._documents.resolve(reference)

    async def fetch_document(self, reference: Reference, descriptor: Descriptor) -> bytes:
        """An index, manifest or config, verified against digest and size. Raises RegistryError."""
        return await self._documents.fetch(reference, descriptor)

    def open_blob(
        self, reference: Reference, descriptor: Descriptor, offset: int = 0, *, length: int | None = None
    ) -> AbstractAsyncContextManager[BlobStream]:
        """A blob from `offset` on, `length` bytes or all. Raises RegistryError when entered and while it is read.

        Every host is asked once; trying again is the caller's, which knows what it has.
        """
        return self._blobs.open(reference, descriptor, offset, length)

    def gives_whole_blobs(self, reference: Reference) -> bool:
        """Whether a part of a blob, asked of the registry now, would likely be answered by all of it."""
        return self._blobs.ranges.without(reference.registry)

    def distrust(self, host: str, digest: str) -> None:
        """Remember that a host (`BlobStream.origin`) served wrong bytes for a digest: it is asked last from now on."""
        self._walk.memory.distrusted[host, digest] = None

    def distrusts_all(self, reference: Reference, digest: str) -> bool:
        """Whether every host that may be asked for a blob has served wrong bytes for it."""
        distrusted = self._walk.memory.distrusted
        return all((host.name, digest) in distrusted for host in self._walk.hosts(reference, by_tag=False))
