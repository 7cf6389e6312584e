"""Indexes, manifests and configs as they come from a registry: bounded, and checked against what was promised.

`resolving.py` asks for them and `oci.manifest` reads them.
"""

from __future__ import annotations

import asyncio
import zlib

from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.digests import InvalidDigest, check_digest, sha256_digest
from imageprepull.registry.answer import Answer
from imageprepull.registry.blobs import ENCODINGS
from imageprepull.registry.errors import DigestMismatch, ErrorKind, RegistryError

DOCUMENT_LIMIT = 4 * 1024 * 1024 + 64 * 1024
"""Bytes of an index, manifest or config; containerd's own limit is a little over 4 MiB."""
_OK = 200
_BODY_TIMES = 3
"""A mirror has so many times its first byte's time to bring a whole document; the upstream has what it needs."""


async def read_body(answer: Answer, size: int | None = None, deadline: float | None = None) -> bytes:
    """The body, at most DOCUMENT_LIMIT: `size` bytes where that is known, or else to its end.

    Raises:
        RegistryError: SizeMismatch where another size is announced or more bytes have come; DocumentTooLarge;
            Stalled when it takes longer than a mirror may.
    """
    try:
        async with asyncio.timeout(None if deadline is None else deadline * _BODY_TIMES):
            body = await _read(answer, size)
    except TimeoutError:
        answer.response.close()
        raise answer.fault("the document did not come in time", "Stalled", ErrorKind.TEMPORARY) from None
    except BaseException:
        answer.response.close()
        raise
    answer.leave()
    return body


async def _read(answer: Answer, size: int | None) -> bytes:
    if answer.header("Content-Encoding").lower() in ENCODINGS:
        body = _decoded(await answer.read(DOCUMENT_LIMIT + 1), answer)
    else:
        announced = answer.response.content_length
        if size is not None and announced is not None and announced != size:
            if answer.content_type == "text/html":
                raise await answer.stranger("a page came instead of a document")
            raise _wrong_size(announced, size, answer)
        body = await answer.read(DOCUMENT_LIMIT + 1 if size is None else size)
        if size is not None and answer.has_more():
            raise _wrong_size(size + 1, size, answer)
    if len(body) > DOCUMENT_LIMIT:
        raise answer.fault(f"the answer has more than {DOCUMENT_LIMIT} bytes", "DocumentTooLarge")
    return body


def _decoded(body: bytes, answer: Answer) -> bytes:
    """A document that was compressed on its way though nobody asked for it; as it is where it was not."""
    if not body.startswith(b"\x1f\x8b"):
        return body
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(body, DOCUMENT_LIMIT + 1)
    except zlib.error as error:
        raise answer.fault(f"the document cannot be decoded: {error}", "ProtocolError") from error


def check_registry(body: bytes, answer: Answer) -> None:
    """Refuse what is no JSON at all: a login page, a captive portal, a wrong path. Raises RegistryError."""
    if not body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        raise answer.not_registry("no manifest came", body)


def verify(body: bytes, descriptor: Descriptor, answer: Answer) -> None:
    """Refuse bytes that are not what the descriptor promises.

    Raises:
        RegistryError: SizeMismatch; NotARegistryAnswer for a page. DigestMismatch: the host serves other content
            under this digest.
    """
    found = sha256_digest(body)
    if found == descriptor.digest and len(body) == descriptor.size:
        return
    if answer.content_type == "text/html" or body.lstrip()[:1] == b"<":
        raise answer.not_registry("a page came instead of a document", body)
    if len(body) != descriptor.size:
        raise _wrong_size(len(body), descriptor.size, answer)
    raise mismatch(f"asked for {descriptor.digest}, the answer is {found}", answer)


def described(answer: Answer, wanted: str | None) -> Descriptor | None:
    """What a HEAD says, where it says all of it; None where only the document can tell."""
    size = answer.response.content_length
    try:
        digest = check_digest(answer.header("Docker-Content-Digest"))
    except InvalidDigest:
        return None
    if answer.status != _OK or not size or wanted not in (None, digest):
        return None
    found = Descriptor(answer.content_type, digest, size)
    return found if found.is_index or found.is_manifest else None


def explain_missing(error: RegistryError, descriptor: Descriptor) -> None:
    """Say in an error what is missing, where an index lists a manifest that is not there."""
    if error.reason == "NotFound" and descriptor.is_manifest and descriptor.platform is not None:
        error.reason = "MissingManifest"
        error.explain(
            f"the index lists {descriptor.digest} for {descriptor.platform}; push the image again with all platforms"
        )


def mismatch(problem: str, answer: Answer) -> DigestMismatch:
    """The host serves other content than its name says."""
    return DigestMismatch(
        problem, reason="DigestMismatch", host=answer.host, request=answer.request, status=answer.status
    )


def _wrong_size(found: int, wanted: int, answer: Answer) -> RegistryError:
    return answer.fault(f"{wanted} bytes are expected, the answer has {found}", "SizeMismatch")
