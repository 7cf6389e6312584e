"""The diff service: containerd itself extracts a committed blob into a snapshot's mounts."""

from __future__ import annotations

from collections.abc import Sequence

from imageprepull.oci.descriptor import Descriptor
from imageprepull.runtime.mounts import Mount, to_message
from imageprepull.runtime.protos import diff_pb2 as pb
from imageprepull.runtime.protos import types_pb2
from imageprepull.runtime.rpc import Rpc


class Diff:
    """The diff service under one namespace and lease."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    async def apply(
        self, descriptor: Descriptor, mounts: Sequence[Mount], *, deadline: float | None = None
    ) -> Descriptor:
        """Extract the blob; the answer's digest is that of the plain tar, to be compared with the diff ID.

        There is neither progress nor, by default, a deadline: how long a layer may take is the caller's to say.
        """
        layer = types_pb2.Descriptor(
            media_type=descriptor.media_type, digest=descriptor.digest, size=descriptor.size
        )
        answer = await self._rpc.unary(
            "/containerd.services.diff.v1.Diff/Apply",
            pb.ApplyRequest(diff=layer, mounts=[to_message(mount) for mount in mounts]),
            pb.ApplyResponse,
            operation=f"extract layer {descriptor.digest}",
            deadline=deadline,
        )
        applied = answer.applied
        return Descriptor(media_type=applied.media_type, digest=applied.digest, size=applied.size)
