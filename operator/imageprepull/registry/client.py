"""The registry client that a pull uses: tags to digests, documents verified, blobs as streams.

Under construction: the signatures stand, PULLING and CONTROLLER can build on them.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.reference import Reference
from imageprepull.registry.blobs import BlobStream
from imageprepull.registry.credentials import Credentials, NoCredentials
from imageprepull.registry.hosts import HostsConfig


class RegistryClient:
    """One client per process: connections, tokens and what is known about hosts are shared by all pulls.

    Args:
        hosts: which hosts serve a registry.
        credentials: who we are there.
        stall_timeout: seconds without a byte after which a request counts as dead; never a total time.
        connect_timeout: seconds for a TCP connection and TLS.
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
        attempts: int = 4,
        backoff: float = 0.5,
    ) -> None:
        self._hosts = hosts or HostsConfig()
        self._credentials = credentials or NoCredentials()
        self.stall_timeout = stall_timeout

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def resolve(self, reference: Reference) -> Descriptor:
        """Ask the registry what a reference is. Raises RegistryError or oci.manifest.InvalidManifest."""
        raise NotImplementedError

    async def fetch_document(self, reference: Reference, descriptor: Descriptor) -> bytes:
        """An index, manifest or config, verified against digest and size. Raises RegistryError."""
        raise NotImplementedError

    def open_blob(
        self, reference: Reference, descriptor: Descriptor, offset: int = 0, *, length: int | None = None
    ) -> AbstractAsyncContextManager[BlobStream]:
        """A blob from `offset` on. Raises RegistryError when entered and while it is read."""
        raise NotImplementedError

    def distrust(self, host: str, digest: str) -> None:
        """Remember that a host served wrong bytes for a digest: other hosts are asked first from now on."""
        raise NotImplementedError
