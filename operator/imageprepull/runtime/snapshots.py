"""Snapshots: unpacked layers, committed under their chain IDs, and the active ones that become such."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from imageprepull.runtime.errors import NotFound
from imageprepull.runtime.mounts import Mount, from_message
from imageprepull.runtime.protos import snapshots_pb2 as pb
from imageprepull.runtime.rpc import DEADLINE, Rpc

__all__ = ["Mount", "SnapshotInfo", "SnapshotKind", "Snapshots", "Usage"]

_SERVICE = "/containerd.services.snapshots.v1.Snapshots"
# Commit walks the layer to measure it, and waits for every other writer of the metadata meanwhile.
COMMIT_DEADLINE = 300.0


class SnapshotKind(StrEnum):
    """Only a committed snapshot is finished."""

    UNKNOWN = "unknown"
    VIEW = "view"
    ACTIVE = "active"
    COMMITTED = "committed"


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """`name` is the chain ID of a committed layer, the key of an active snapshot.

    `created`, in nanoseconds since the epoch, tells a snapshot from a later one of the same name.
    """

    name: str
    parent: str
    kind: SnapshotKind
    labels: Mapping[str, str] = field(default_factory=dict)
    created: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot takes on the disk; `size` in bytes."""

    size: int
    inodes: int


def _info(message: pb.Info) -> SnapshotInfo:
    kind = SnapshotKind(pb.Kind.Name(message.kind).lower())
    return SnapshotInfo(
        message.name, message.parent, kind, dict(message.labels), message.created_at.ToNanoseconds()
    )


class Snapshots:
    """The snapshot service under one namespace and lease."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    async def prepare(
        self, snapshotter: str, key: str, parent: str, labels: Mapping[str, str]
    ) -> list[Mount]:
        """Make an active snapshot on `parent` ("" for none).

        Raises:
            AlreadyExists: the key is in use, or the snapshot that the label `containerd.io/snapshot.ref` names is
                there. Versions before 1.6.32 and 1.7.18 do not lease it: AddResource, then `stat`.
            NotFound: there is no such parent.
            ParentBroken: its directory is gone.
        """
        request = pb.PrepareSnapshotRequest(
            snapshotter=snapshotter, key=key, parent=parent, labels=dict(labels)
        )
        answer = await self._rpc.unary(
            f"{_SERVICE}/Prepare",
            request,
            pb.PrepareSnapshotResponse,
            operation=f"prepare snapshot {key} on {parent or 'nothing'}",
            settle=True,
        )
        return [from_message(mount) for mount in answer.mounts]

    async def view(
        self, snapshotter: str, key: str, parent: str, labels: Mapping[str, str] = MappingProxyType({})
    ) -> list[Mount]:
        """Make a snapshot that shows `parent` and cannot be written to; to be removed like an active one.

        Raises:
            NotFound: there is no such parent.
            ParentBroken: its directory is gone.
        """
        answer = await self._rpc.unary(
            f"{_SERVICE}/View",
            pb.ViewSnapshotRequest(snapshotter=snapshotter, key=key, parent=parent, labels=dict(labels)),
            pb.ViewSnapshotResponse,
            operation=f"view snapshot {parent}",
            settle=True,
        )
        return [from_message(mount) for mount in answer.mounts]

    async def mounts(self, snapshotter: str, key: str) -> list[Mount]:
        """How to mount an active snapshot."""
        answer = await self._rpc.unary(
            f"{_SERVICE}/Mounts",
            pb.MountsRequest(snapshotter=snapshotter, key=key),
            pb.MountsResponse,
            operation=f"mounts of snapshot {key}",
        )
        return [from_message(mount) for mount in answer.mounts]

    async def commit(
        self,
        snapshotter: str,
        name: str,
        key: str,
        labels: Mapping[str, str],
        *,
        deadline: float = COMMIT_DEADLINE,
    ) -> None:
        """Turn the active snapshot `key` into the finished `name`. Only the labels given here stay.

        Raises:
            AlreadyExists: somebody else committed `name`; `key` is still there and must be removed.
        """
        request = pb.CommitSnapshotRequest(snapshotter=snapshotter, name=name, key=key, labels=dict(labels))
        await self._rpc.unary(
            f"{_SERVICE}/Commit",
            request,
            Empty,
            operation=f"commit snapshot {key} as {name}",
            deadline=deadline,
        )

    async def stat(self, snapshotter: str, name: str) -> SnapshotInfo | None:
        """The snapshot, or None. This adds nothing to a lease."""
        try:
            answer = await self._rpc.unary(
                f"{_SERVICE}/Stat",
                pb.StatSnapshotRequest(snapshotter=snapshotter, key=name),
                pb.StatSnapshotResponse,
                operation=f"look up snapshot {name}",
            )
        except NotFound:
            return None
        return _info(answer.info)

    async def list(self, snapshotter: str, filters: Sequence[str] = ()) -> list[SnapshotInfo]:
        """The snapshots that match any of the filters (`kind==active`, `labels."key"==value`)."""
        answers = self._rpc.stream(
            f"{_SERVICE}/List",
            pb.ListSnapshotsRequest(snapshotter=snapshotter, filters=filters),
            pb.ListSnapshotsResponse,
            operation="list snapshots",
        )
        return [_info(info) async for answer in answers for info in answer.info]

    async def remove(self, snapshotter: str, name: str) -> None:
        """Remove a snapshot.

        Raises:
            NotFound: it is gone already.
            PreconditionFailed: it has children.
        """
        await self._rpc.unary(
            f"{_SERVICE}/Remove",
            pb.RemoveSnapshotRequest(snapshotter=snapshotter, key=name),
            Empty,
            operation=f"remove snapshot {name}",
        )

    async def usage(self, snapshotter: str, name: str, *, deadline: float = DEADLINE) -> Usage:
        """What a snapshot takes; for an active one the runtime walks its files."""
        answer = await self._rpc.unary(
            f"{_SERVICE}/Usage",
            pb.UsageRequest(snapshotter=snapshotter, key=name),
            pb.UsageResponse,
            operation=f"usage of snapshot {name}",
            deadline=deadline,
        )
        return Usage(answer.size, answer.inodes)

    async def update_labels(self, snapshotter: str, name: str, labels: Mapping[str, str]) -> SnapshotInfo:
        """Set these labels and leave the others; an empty value removes one."""
        request = pb.UpdateSnapshotRequest(
            snapshotter=snapshotter,
            info=pb.Info(name=name, labels=dict(labels)),
            update_mask=FieldMask(paths=[f"labels.{key}" for key in labels]),
        )
        answer = await self._rpc.unary(
            f"{_SERVICE}/Update", request, pb.UpdateSnapshotResponse, operation=f"label snapshot {name}"
        )
        return _info(answer.info)
