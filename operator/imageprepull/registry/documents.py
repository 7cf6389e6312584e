"""Indexes, manifests and configs as they come from a registry: bounded, and checked against what was promised.

`client.py` asks for them and `oci.manifest` reads them.
"""

from __future__ import annotations

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.digests import InvalidDigest, check_digest, sha256_digest
from imageprepull.registry.errors import DigestMismatch, RegistryError
from imageprepull.registry.transport import Answer

DOCUMENT_LIMIT = 4 * 1024 * 1024 + 64 * 1024
"""Bytes of an index, manifest or config; containerd's own limit is a little over 4 MiB."""
_OK = 200


async def read_body(answer: Answer, size: int | None = None) -> bytes:
    """The body, at most DOCUMENT_LIMIT: `size` bytes where that is known, or else to its end.

    Raises:
        RegistryError: SizeMismatch where another size is announced or more bytes have come; DocumentTooLarge.
    """
    announced = answer.response.content_length
    if size is not None and announced is not None and announced != size:
        answer.response.close()
        raise _wrong_size(announced, size, answer)
    try:
        body = await answer.read(DOCUMENT_LIMIT + 1 if size is None else size)
    except BaseException:
        answer.response.close()
        raise
    if size is not None and answer.has_more():
        answer.response.close()
        raise _wrong_size(size + 1, size, answer)
    if len(body) > DOCUMENT_LIMIT:
        answer.response.close()
        raise answer.fault(f"the answer has more than {DOCUMENT_LIMIT} bytes", "DocumentTooLarge")
    answer.leave()
    return body


def verify(body: bytes, descriptor: Descriptor, answer: Answer) -> None:
    """Refuse bytes that are not what the descriptor promises.

    Raises:
        RegistryError: SizeMismatch. DigestMismatch: the host serves other content under this digest.
    """
    if len(body) != descriptor.size:
        raise _wrong_size(len(body), descriptor.size, answer)
    found = sha256_digest(body)
    if found != descriptor.digest:
        raise mismatch(f"asked for {descriptor.digest}, the answer is {found}", answer)


def described(answer: Answer, wanted: str | None) -> Descriptor | None:
    """What a HEAD says, where it says all of it; None where only the document can tell."""
    media_type = answer.header("Content-Type").partition(";")[0].strip().lower()
    size = answer.response.content_length
    try:
        digest = check_digest(answer.header("Docker-Content-Digest"))
    except InvalidDigest:
        return None
    if answer.status != _OK or not size or wanted not in (None, digest):
        return None
    found = Descriptor(media_type, digest, size)
    return found if found.is_index or found.is_manifest else None


def mismatch(problem: str, answer: Answer) -> DigestMismatch:
    """The host serves other content than its name says."""
    return DigestMismatch(
        problem, reason="DigestMismatch", host=answer.host, request=answer.request, status=answer.status
    )


def _wrong_size(found: int, wanted: int, answer: Answer) -> RegistryError:
    return answer.fault(f"{wanted} bytes are expected, the answer has {found}", "SizeMismatch")
