"""What a request stands for: its image's documents, from the runtime as far as it has them, else from the registry.

The first step of a pull (image.py): registries count each GET of a manifest.
"""

from __future__ import annotations

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.oci.manifest import document_kind
from imageprepull.oci.reference import Reference
from imageprepull.pulling.documents import LONGEST_DOCUMENT, ImageDocuments, read_image, read_local
from imageprepull.pulling.machinery import Machinery
from imageprepull.pulling.records import find_record
from imageprepull.pulling.request import PullRequest
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import NotFound


async def resolve(machinery: Machinery, request: PullRequest) -> tuple[ImageDocuments, set[str]]:
    """The documents, and the digests of those that came from a registry: the runtime has not verified these yet.

    Raises:
        RegistryError, RuntimeFault, InvalidManifest, NoMatchingPlatform: as `as_pull_error` judges them.
    """
    unread: set[str] = set()
    reference = request.reference
    digest = request.digest or reference.digest
    target = await recorded(machinery.containerd, request.reference, digest) if digest else None
    if digest and digest != reference.digest:
        reference = Reference.parse(reference.digest_record(digest))
    if target is None:
        target = await machinery.registry.resolve(reference)

    async def fetch(descriptor: Descriptor) -> bytes:
        local = await read_local(machinery.containerd, descriptor)
        if local is not None:
            return local
        unread.add(descriptor.digest)
        return await machinery.registry.fetch_document(reference, descriptor)

    return await read_image(target, request.platform, fetch), unread


async def recorded(containerd: Containerd, reference: Reference, digest: str) -> Descriptor | None:
    """The top-level descriptor as the runtime has it: then no registry need be asked for it."""
    record = await find_record(containerd, reference, digest)
    if record is not None:
        return record.target
    # An earlier attempt has put the documents first: registries count each GET of a manifest.
    held = await containerd.content.info(digest)
    if held is None or held.size > LONGEST_DOCUMENT:
        return None
    try:
        body = await containerd.content.read(digest)
    except NotFound:
        return None  # recorded, and its file is gone: a power cut can do that.
    if sha256_digest(body) != digest:
        return None
    return Descriptor(document_kind(body), digest, held.size)
