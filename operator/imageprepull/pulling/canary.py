"""Whether layers may be unpacked from outside the daemon here: done once with a layer of nothing, leaving nothing.

About fifteen cheap calls. Everything that the fast path relies on is tried as it is used later, because no version,
name or mount type tells it: what is proxied, remapped, elsewhere or forbidden shows only when it is done.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from imageprepull.pulling.cleanup import finish_anyway, patiently
from imageprepull.pulling.exchange import exchange
from imageprepull.pulling.labels import extract_key
from imageprepull.pulling.layer_folders import Roots, UnknownMounts, layer_folders
from imageprepull.pulling.leases import drop_lease
from imageprepull.pulling.threads import in_thread
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.errors import InvalidRequest, NotFound, PreconditionFailed, Unsupported
from imageprepull.unpacking.workers import Workers

OVERLAYFS = "overlayfs"
_LEASE_SECONDS = 600.0
_CLEANUP = 30.0
_CAPABILITY = bytes.fromhex("0000000200040000000000000000000000000000")
"""vfs_cap_data of version 2 with CAP_NET_BIND_SERVICE permitted, as `setcap` writes it."""


class NotHere(Exception):
    """Why not, in words for a status."""


async def try_staging(
    containerd: Containerd, snapshotter: str, root: Path, workers: Workers | None, labels: Mapping[str, str]
) -> Roots:
    """Stage, exchange and measure a layer; returns where the snapshotter's folder is.

    Args:
        containerd: the connection, without a lease.
        snapshotter: the one that pulls use.
        root: its folder as this process sees it.
        workers: who would unpack.
        labels: whose lease it is, in case that nobody comes to remove it.

    Raises:
        NotHere: it cannot be done.
        RuntimeFault: the runtime does not answer.
    """
    if workers is None:
        raise NotHere("there are no workers in this process")
    roots = await _asked(containerd, snapshotter, root)
    if (why_not := await workers.probe()) is not None:
        raise NotHere(f"workers cannot be confined: {why_not}")
    lease = f"imageprepull-canary-{secrets.token_hex(8)}"
    canary = _Canary(containerd.with_lease(lease), snapshotter, roots, labels)
    try:
        # In here: the daemon may have made it, though its answer was lost.
        await containerd.leases.create(lease, labels, _LEASE_SECONDS)
        await canary.fly()
    except (UnknownMounts, Unsupported, InvalidRequest) as error:
        raise NotHere(f"{snapshotter} does not do as overlayfs does: {error}") from error
    except OSError as error:
        raise NotHere(f"cannot work in the folder of the snapshots: {error}") from error
    finally:
        await finish_anyway(patiently(lambda: canary.clean_up(lease), _CLEANUP), _CLEANUP)
    return roots


async def _asked(containerd: Containerd, snapshotter: str, root: Path) -> Roots:
    """What the runtime says of its snapshotter, and the kernel of the runtime."""
    if snapshotter != OVERLAYFS:
        raise NotHere(f"the snapshotter is {snapshotter}, not {OVERLAYFS}")
    if (uid := await containerd.peer_uid()) != 0:
        raise NotHere(f"the runtime runs as user {uid}, not as root")
    try:
        plugins = await containerd.introspection.plugins(["type==io.containerd.snapshotter.v1"])
    except Unsupported as error:
        raise NotHere(f"the runtime does not tell about its snapshotter: {error}") from error
    plugin = next((plugin for plugin in plugins if plugin.id == OVERLAYFS and not plugin.failure), None)
    if plugin is None:
        raise NotHere(f"the runtime has no working {OVERLAYFS}")
    if address := plugin.exports.get("address"):
        raise NotHere(f"{OVERLAYFS} is a proxy for {address}")
    if not (named := plugin.exports.get("root")):
        raise NotHere(f"the runtime does not tell where {OVERLAYFS} keeps its files")
    return Roots(PurePosixPath(named), root)


class _Canary:
    def __init__(
        self, containerd: Containerd, snapshotter: str, roots: Roots, labels: Mapping[str, str]
    ) -> None:
        self._snapshots = containerd.snapshots
        self._containerd = containerd
        self._snapshotter = snapshotter
        self._roots = roots
        self._labels = labels
        self._made: list[str] = []

    async def fly(self) -> None:
        parent = f"imageprepull-canary {secrets.token_hex(8)}"
        below, _ = await self._prepare("")
        await self._snapshots.commit(self._snapshotter, parent, below, self._labels)
        self._made[-1] = parent
        staging, staged = await self._prepare("")
        empty = await self._inodes(staging)
        await in_thread((staged / "canary").mkdir)
        if await self._inodes(staging) != empty + 1:
            raise NotHere(f"the runtime does not see what is written to {staged}: it is not the same folder")
        await in_thread(lambda: _try_privileges(staged))
        await in_thread(lambda: _compare_labels(staged))
        full = await self._inodes(staging)
        layer, prepared = await self._prepare(parent)
        if await in_thread(lambda: staged.stat().st_dev != prepared.stat().st_dev):
            raise NotHere("the snapshots are not on one file system")
        await in_thread(lambda: exchange(staged, prepared))
        if not await in_thread((prepared / "canary").is_dir):
            raise NotHere("directories of the snapshots cannot be exchanged")
        if (await self._inodes(layer), await self._inodes(staging)) != (full, empty):
            raise NotHere("the runtime does not see directories exchanged")

    async def clean_up(self, lease: str) -> None:
        """Children first; the lease's collection would take the rest, but not now."""
        for name in reversed(self._made):
            try:
                await self._snapshots.remove(self._snapshotter, name)
            except (NotFound, PreconditionFailed):
                continue
        await drop_lease(self._containerd, lease)

    async def _prepare(self, parent: str) -> tuple[str, Path]:
        key = extract_key("canary")
        self._made.append(key)
        mounts = await self._snapshots.prepare(self._snapshotter, key, parent, self._labels)
        return key, layer_folders(mounts, self._roots).upper

    async def _inodes(self, key: str) -> int:
        return (await self._snapshots.usage(self._snapshotter, key)).inodes


def _try_privileges(folder: Path) -> None:
    """What layers need beyond files and directories. Raises OSError, with what it was tried on."""
    inside = folder / "canary"
    os.mknod(inside / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    os.setxattr(inside, "trusted.overlay.opaque", b"y")
    file = inside / "file"
    file.touch()
    os.chown(file, 1, 1)
    os.setxattr(file, "security.capability", _CAPABILITY)


def _compare_labels(folder: Path) -> None:
    """SELinux gives what we make our own level; pods that have another could not read the layer.

    Raises:
        NotHere: the label differs from that of what the runtime makes.
    """
    theirs, ours = _selinux(folder), _selinux(folder / "canary")
    if theirs != ours:
        raise NotHere(
            f"SELinux labels what is written from here {ours!r}, and the runtime's folders {theirs!r}: "
            "run the agent with seLinuxOptions {type: spc_t, level: s0}"
        )


def _selinux(path: Path) -> str:
    try:
        return os.getxattr(path, "security.selinux").rstrip(b"\0").decode(errors="replace")
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return ""
        raise
