"""What can go wrong between us and the container runtime, as types.

`rpc.py` turns every failed call into one of these; `pulling` decides by them what to try again. The table follows
containerd's errdefs/pkg/errgrpc. Two codes are ambiguous on the wire and told apart by their text: UNAVAILABLE is
a locked ingest or a lost connection, and NOT_FOUND is the object of the call or the lease in its header.
"""

from __future__ import annotations

import re
from typing import ClassVar, Protocol

import grpc


class RuntimeFault(Exception):
    """A call to the container runtime failed.

    `reason` is CamelCase for a status, `temporary` whether the same call may succeed later, `operation` what was
    asked and of which object, `detail` what the runtime said.
    """

    reason: ClassVar[str] = "RuntimeFault"
    temporary: ClassVar[bool] = False

    def __init__(self, operation: str, detail: str) -> None:
        super().__init__(f"{operation}: {detail}")
        self.operation = operation
        self.detail = detail


class NotFound(RuntimeFault):
    """The object of the call does not exist."""

    reason = "NotFound"


class AlreadyExists(RuntimeFault):
    """The object exists. Old versions do not add it to the lease: AddResource, then look whether it is there."""

    reason = "AlreadyExists"


class InvalidRequest(RuntimeFault):
    """The runtime refuses the request as it is."""

    reason = "InvalidRequest"


class PreconditionFailed(RuntimeFault):
    """The state of the object does not allow it: a wrong digest or size at commit, a snapshot with children."""

    reason = "PreconditionFailed"


class OutOfRange(RuntimeFault):
    """The offset of a write is not where the ingest stands."""

    reason = "OutOfRange"


class Locked(RuntimeFault):
    """Somebody else is writing the same ingest."""

    reason = "IngestLocked"
    temporary = True


class LeaseGone(RuntimeFault):
    """The lease of the call was deleted or has expired: what it held may vanish at any moment."""

    reason = "LeaseGone"
    temporary = True


class Unavailable(RuntimeFault):
    """No connection, or it broke during the call: whether the call took effect is unknown."""

    reason = "RuntimeUnavailable"
    temporary = True


class TimedOut(RuntimeFault):
    """No answer within the deadline: whether the call took effect is unknown."""

    reason = "RuntimeTimeout"
    temporary = True


class DiskFull(RuntimeFault):
    """The runtime has no space or no inodes left."""

    reason = "DiskFull"
    temporary = True


class DiskFailed(RuntimeFault):
    """The runtime cannot write or read its disk."""

    reason = "DiskError"
    temporary = True


class PermissionDenied(RuntimeFault):
    """We may not use the socket."""

    reason = "RuntimePermissionDenied"


class SocketMissing(RuntimeFault):
    """There is no socket at the address."""

    reason = "RuntimeSocketMissing"
    temporary = True


class NotContainerd(RuntimeFault):
    """Something answers at the address, but it is not containerd."""

    reason = "NotContainerd"


class Unsupported(RuntimeFault):
    """The runtime lacks the service: its plug-in is disabled, failed, or does not exist in this version."""

    reason = "RuntimeUnsupported"


class ParentBroken(RuntimeFault):
    """The directory of the snapshot to stand on is gone, though the runtime has it on record (containerd issue 3369)."""

    reason = "BrokenChain"


class RpcFailure(Protocol):
    """What `grpc.RpcError` and `grpc.aio.AioRpcError` have in common, though no class of grpc says so."""

    def code(self) -> grpc.StatusCode:
        """The status of the call."""
        ...

    def details(self) -> str | None:
        """What the server said, or grpc itself."""
        ...


_LOCKED = re.compile(r"\bref \S+ locked\b")
# "lease does not exist" from calls under a lease, `lease "x": not found` from the lease service.
_LEASE_GONE = re.compile(r"\blease does not exist\b|\blease \"[^\"]*\": not found")
_PARENT_BROKEN = re.compile(r"\bfailed to stat parent: .*(no such file or directory|not a directory)")
_DISK_FULL = re.compile(r"no space left on device|disk quota exceeded")
_DISK_FAILED = re.compile(r"input/output error|read-only file system")

_BY_CODE: dict[grpc.StatusCode, type[RuntimeFault]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionFailed,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRange,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
    # A call that we cancelled ourselves never gets here; the server cancels when it shuts down.
    grpc.StatusCode.CANCELLED: Unavailable,
}


def classify(code: grpc.StatusCode, detail: str) -> type[RuntimeFault]:
    """The kind of fault behind a status and its text."""
    if _DISK_FULL.search(detail):
        return DiskFull
    if _DISK_FAILED.search(detail):
        return DiskFailed
    if _PARENT_BROKEN.search(detail):
        return ParentBroken
    if code is grpc.StatusCode.UNAVAILABLE and _LOCKED.search(detail):
        return Locked
    if code is grpc.StatusCode.NOT_FOUND and _LEASE_GONE.search(detail):
        return LeaseGone
    return _BY_CODE.get(code, RuntimeFault)


def from_rpc(operation: str, failure: RpcFailure) -> RuntimeFault:
    """The fault that a failed call means."""
    code, detail = failure.code(), failure.details() or "no details given"
    fault = classify(code, detail)
    return fault(operation, detail if fault is not RuntimeFault else f"{code.name}: {detail}")
