"""Digests of blobs and the chain IDs of snapshots (OCI image-spec, config.md, "Layer ChainID")."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

MAX_SHOWN = 100
_ANY = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9A-Fa-f]{32,}")
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")


class InvalidDigest(ValueError):
    """Text that is no digest, or one of an algorithm that containerd's content store does not hash."""


def sha256_digest(data: bytes) -> str:
    """The digest of bytes, as `sha256:<64 hex digits>`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check_digest(text: str) -> str:
    """Return `text` when it is a sha256 digest in its only spelling: lower case, 64 hex digits.

    containerd's local content store names and verifies blobs by sha256 alone, so that other algorithms
    could only fail later.

    Raises:
        InvalidDigest: says which of the two is wrong.
    """
    if _SHA256.fullmatch(text):
        return text
    shown = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
    if _ANY.fullmatch(text) and not text.startswith("sha256:"):
        raise InvalidDigest(
            f"digest {shown!r}: only sha256 is supported, containerd's store hashes nothing else"
        )
    raise InvalidDigest(f"{shown!r} is not a digest: sha256: and 64 lower-case hex digits are expected")


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain ID of every layer, bottom first: what containerd names the committed snapshots by."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(sha256_digest(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain
