"""The way into the runtime: connect, make sure that it is containerd, and offer its services.

`Containerd` is one namespace, and one lease at most, on one socket. `pulling` and `agent` start here.
"""

from __future__ import annotations

import asyncio
import re
import socket
import stat
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from imageprepull.runtime.content import Content
from imageprepull.runtime.cri import Cri
from imageprepull.runtime.diff import Diff
from imageprepull.runtime.errors import (
    NotContainerd,
    PermissionDenied,
    RuntimeFault,
    SocketMissing,
    TimedOut,
    Unavailable,
    Unsupported,
)
from imageprepull.runtime.events import Events
from imageprepull.runtime.images import Images
from imageprepull.runtime.introspection import Introspection
from imageprepull.runtime.leases import Leases
from imageprepull.runtime.protos import version_pb2
from imageprepull.runtime.rpc import Channels, Rpc
from imageprepull.runtime.snapshots import Snapshots

# How grpc says that the other side speaks something else.
_OTHER_PROTOCOL = re.compile(r"HTTP/2|http1\.x")

# pid, uid, gid: unix(7), SO_PEERCRED.
_UCRED = struct.Struct("iII")

DEFAULT_ADDRESS = "unix:///run/containerd/containerd.sock"


class Containerd:
    """containerd's services, bound to a namespace and perhaps a lease."""

    def __init__(self, rpc: Rpc, version: str) -> None:
        self._rpc = rpc
        self.version = version
        self.content = Content(rpc)
        self.snapshots = Snapshots(rpc)
        self.diff = Diff(rpc)
        self.images = Images(rpc)
        self.leases = Leases(rpc)
        self.introspection = Introspection(rpc)
        self.cri = Cri(rpc)
        self.events = Events(rpc)

    @property
    def namespace(self) -> str:
        """`k8s.io` is the one that the kubelet uses."""
        return self._rpc.namespace

    @property
    def lease(self) -> str:
        """The lease of all calls, "" for none."""
        return self._rpc.lease

    def with_lease(self, lease_id: str) -> Containerd:
        """The same connection, with what is written or prepared held by a lease."""
        return Containerd(self._rpc.with_lease(lease_id), self.version)

    async def peer_uid(self, *, patience: float = 10.0) -> int:
        """The user ID of the daemon as the kernel knows it, mapped into our user namespace.

        Raises:
            RuntimeFault: nobody listens.
        """
        path = Path(self._rpc.channels.target.removeprefix("unix:"))
        credentials = await _probe(path, patience)
        return int(_UCRED.unpack(credentials)[1])

    async def ask_version(self, *, deadline: float = 10.0) -> str:
        """Ask the runtime for its version anew: a daemon may have been replaced behind the socket."""
        return await _ask_version(self._rpc, deadline)


@asynccontextmanager
async def connect(
    address: str = DEFAULT_ADDRESS,
    *,
    namespace: str = "k8s.io",
    timeout: float = 10.0,  # noqa: ASYNC109 - it bounds connecting only, not the use
) -> AsyncIterator[Containerd]:
    """Connect to the socket at `address` (`unix:///…` or a path) and verify that containerd answers.

    Later losses of the connection are healed by themselves: calls fail with Unavailable while the daemon is away.

    Raises:
        SocketMissing, PermissionDenied, NotContainerd, Unavailable, TimedOut: within about `timeout` seconds.
    """
    path = socket_path(address)
    await _probe(path, timeout)
    channels = Channels(f"unix:{path}")
    try:
        rpc = Rpc(channels, namespace)
        yield Containerd(rpc, await _identify(rpc, path, timeout))
    finally:
        await channels.close()


def socket_path(address: str) -> Path:
    """The absolute path in an address, which is `unix:///…`, `unix:…` or the path itself."""
    return Path(address.removeprefix("unix:")).resolve()


def _is_socket(path: Path) -> bool:
    return stat.S_ISSOCK(path.stat().st_mode)


async def _probe(path: Path, patience: float) -> bytes:
    """Open and close a connection: the errors of the socket itself tell more than what grpc makes of them.

    Returns the peer's credentials, a `struct ucred`.
    """
    operation = f"connect to {path}"
    try:
        is_socket = _is_socket(path)
    except FileNotFoundError:
        raise SocketMissing(operation, "no such file: is containerd running, is this its address?") from None
    except OSError as error:
        raise _socket_fault(operation, error) from error
    if not is_socket:
        raise NotContainerd(operation, "this is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            async with asyncio.timeout(patience):
                await asyncio.get_running_loop().sock_connect(probe, str(path))
            return probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        except ConnectionRefusedError:
            raise Unavailable(operation, "nobody listens on this socket: containerd is not running") from None
        except TimeoutError:
            raise TimedOut(operation, f"not accepted within {patience} s") from None
        except OSError as error:
            raise _socket_fault(operation, error) from error


def _socket_fault(operation: str, error: OSError) -> RuntimeFault:
    if isinstance(error, PermissionError):
        return PermissionDenied(operation, "permission denied: the socket of containerd is root's")
    return Unavailable(operation, error.strerror or str(error))


async def _ask_version(rpc: Rpc, deadline: float) -> str:
    answer = await rpc.unary(
        "/containerd.services.version.v1.Version/Version",
        Empty(),
        version_pb2.VersionResponse,
        operation="ask for the version",
        deadline=deadline,
    )
    return answer.version


async def _identify(rpc: Rpc, path: Path, patience: float) -> str:
    """The version, or what the answer says about who is there instead."""
    operation = f"ask {path} for containerd's version"
    try:
        version = await _ask_version(rpc, patience)
    except Unsupported:
        raise NotContainerd(operation, "a gRPC server answers, but it is not containerd") from None
    except TimedOut:
        raise TimedOut(
            operation, f"no answer within {patience} s: containerd hangs, or it is something else"
        ) from None
    except Unavailable as fault:
        if _OTHER_PROTOCOL.search(fault.detail):
            raise NotContainerd(operation, f"no gRPC server answers: {fault.detail}") from None
        raise Unavailable(
            operation,
            f"closed without an answer: containerd is stopping, or this is another server: {fault.detail}",
        ) from None
    if not version:
        raise NotContainerd(operation, "the answer has no version")
    return version
