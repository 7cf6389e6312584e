"""Tags to descriptors, and indexes, manifests and configs by their descriptors: asked of all hosts, with patience.

Above `walk` (all hosts) and `asking` (one host), below `client`; `documents` checks what comes.
"""

from __future__ import annotations

import asyncio
import random
from typing import TypeVar

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.oci.manifest import InvalidManifest, document_kind
from imageprepull.oci.reference import Reference
from imageprepull.registry.asking import Asker
from imageprepull.registry.bounded import Bounded
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
from imageprepull.registry.host import RegistryHost
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


class Documents:
    """What references are, and the documents of images.

    Args:
        asker: asks one host.
        walk: goes through the hosts.
        attempts: how often all hosts are gone through while the error is temporary.
        backoff: seconds before the second attempt; doubles, with full jitter.
        throttle_backoff: the same after a refusal as one too many, without a Retry-After; at least half of it.
    """

    def __init__(
        self, asker: Asker, walk: Walk, *, attempts: int, backoff: float, throttle_backoff: float
    ) -> None:
        self._asker = asker
        self._walk = walk
        self._attempts = attempts
        self._backoff = backoff
        self._throttle_backoff = throttle_backoff
        self._by_head: Bounded[tuple[str, str], None] = Bounded(BY_HEAD)
        self._lying_heads: Bounded[str, None] = Bounded(BY_HEAD)

    async def resolve(self, reference: Reference) -> Descriptor:
        """Ask the registry what a reference is. Raises RegistryError or oci.manifest.InvalidManifest."""

        async def ask(host: RegistryHost, deadline: float | None) -> Descriptor:
            return await self._resolve_at(host, reference, deadline)

        by_tag = reference.digest is None
        return await self._persist(reference, reference.digest, ask, path=_manifest(reference), by_tag=by_tag)

    async def fetch(self, reference: Reference, descriptor: Descriptor) -> bytes:
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
