"""The plug-in that has the runtime collect after every change."""

from __future__ import annotations

from imageprepull.oci.descriptor import OCI_LAYER, Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.content import Content
from tests.containerd.collecting import CHANGES, collected

BODIES = (b"a blob that only a lease holds", b"another one")
BLOB, OTHER = (Descriptor(OCI_LAYER, sha256_digest(body), len(body)) for body in BODIES)


async def test_what_nothing_holds_is_gone_with_the_next_change(
    containerd: Containerd, leased: Containerd
) -> None:
    put = collected(Content.put)
    await put(leased.content, "blob", BLOB, BODIES[0], {})
    assert await containerd.content.info(BLOB.digest) is not None
    await leased.leases.delete_resource("test", "content", BLOB.digest)
    await put(leased.content, "other", OTHER, BODIES[1], {})
    assert await containerd.content.info(BLOB.digest) is None
    assert await containerd.content.info(OTHER.digest) is not None


def test_every_change_is_one_that_there_is() -> None:
    assert all(callable(getattr(service, name)) for service, names in CHANGES.items() for name in names)
