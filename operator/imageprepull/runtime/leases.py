"""Leases: what a pull holds until its image record does. A lease cannot be prolonged, only followed by another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from google.protobuf.empty_pb2 import Empty

from imageprepull.runtime.labels import GC_EXPIRE
from imageprepull.runtime.protos import leases_pb2 as pb
from imageprepull.runtime.rpc import DEADLINE, Rpc

_SERVICE = "/containerd.services.leases.v1.Leases"
# A synchronous delete runs a garbage collection and waits for it.
COLLECTION_DEADLINE = 300.0


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease; its expiry is the label `containerd.io/gc.expire`."""

    id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class LeasedResource:
    """`type` is `content`, `ingests` or `snapshots/<snapshotter>`; `id` a digest, ref or snapshot name."""

    type: str
    id: str


def _lease(message: pb.Lease) -> Lease:
    return Lease(message.id, dict(message.labels), message.created_at.ToDatetime(tzinfo=UTC))


class Leases:
    """The lease service under one namespace."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    async def create(self, id: str, labels: Mapping[str, str], expires_in: float) -> Lease:  # noqa: A002
        """Create a lease that a garbage collection may remove after `expires_in` seconds.

        Raises:
            AlreadyExists: a lease of this ID is there, perhaps from an earlier life of ours.
        """
        expiry = datetime.now(UTC) + timedelta(seconds=expires_in)
        request = pb.CreateRequest(id=id, labels={**labels, GC_EXPIRE: expiry.strftime("%Y-%m-%dT%H:%M:%SZ")})
        answer = await self._rpc.unary(
            f"{_SERVICE}/Create", request, pb.CreateResponse, operation=f"create lease {id}", settle=True
        )
        return _lease(answer.lease)

    async def delete(self, id: str, *, sync: bool = False) -> None:  # noqa: A002
        """Delete a lease; with `sync`, wait until a garbage collection has run. A missing one is NotFound."""
        await self._rpc.unary(
            f"{_SERVICE}/Delete",
            pb.DeleteRequest(id=id, sync=sync),
            Empty,
            operation=f"delete lease {id}",
            deadline=COLLECTION_DEADLINE if sync else DEADLINE,
        )

    async def list(self, filters: Sequence[str] = ()) -> list[Lease]:
        """The leases that match any of the filters (`id==…`, `labels."key"==value`)."""
        answer = await self._rpc.unary(
            f"{_SERVICE}/List", pb.ListRequest(filters=filters), pb.ListResponse, operation="list leases"
        )
        return [_lease(lease) for lease in answer.leases]

    async def add_resource(self, id: str, type: str, resource_id: str) -> None:  # noqa: A002
        """Put an object under a lease. This succeeds for one that does not exist: look afterwards."""
        await self._rpc.unary(
            f"{_SERVICE}/AddResource",
            pb.AddResourceRequest(id=id, resource=pb.Resource(id=resource_id, type=type)),
            Empty,
            operation=f"add {type} {resource_id} to lease {id}",
        )

    async def delete_resource(self, id: str, type: str, resource_id: str) -> None:  # noqa: A002
        """Take an object out of a lease."""
        await self._rpc.unary(
            f"{_SERVICE}/DeleteResource",
            pb.DeleteResourceRequest(id=id, resource=pb.Resource(id=resource_id, type=type)),
            Empty,
            operation=f"take {type} {resource_id} from lease {id}",
        )

    async def resources(self, id: str) -> Sequence[LeasedResource]:  # noqa: A002
        """What a lease holds."""
        answer = await self._rpc.unary(
            f"{_SERVICE}/ListResources",
            pb.ListResourcesRequest(id=id),
            pb.ListResourcesResponse,
            operation=f"list the resources of lease {id}",
        )
        return [LeasedResource(resource.type, resource.id) for resource in answer.resources]
