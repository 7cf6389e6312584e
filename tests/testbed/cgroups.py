"""The cgroups of a cluster, on version 1, hybrid and version 2 hosts alike.

Every process of a cluster is below /imageprepull-<name> in every hierarchy, put there before it runs its program:
so all of them are found again, whatever else was forgotten.

    imageprepull-<name>/control/system      etcd, API server, …
    imageprepull-<name>/<node>/system       containerd, kubelet, …: version 2 wants processes in leaves only
    imageprepull-<name>/<node>/kubepods     made by the kubelet, whose cgroupRoot is the folder above
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from tests.testbed.commands import wait_until

MOUNT = Path("/sys/fs/cgroup")
UNIFIED_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "pids")


def hierarchies() -> list[Path]:
    """The mount points of all hierarchies; symbolic links (cpu,cpuacct) are followed once."""
    if (MOUNT / "cgroup.controllers").exists():
        return [MOUNT]
    return sorted({entry.resolve() for entry in MOUNT.iterdir() if (entry / "cgroup.procs").exists()})


def make(path: str) -> list[Path]:
    """Make this cgroup in every hierarchy and return its folders."""
    return [_make(hierarchy, path) for hierarchy in hierarchies()]


def _make(hierarchy: Path, path: str) -> Path:
    folder = hierarchy
    for part in path.split("/"):
        if hierarchy == MOUNT:
            available = (folder / "cgroup.controllers").read_text().split()
            for controller in UNIFIED_CONTROLLERS:
                if controller in available:
                    (folder / "cgroup.subtree_control").write_text(f"+{controller}")
        parent, folder = folder, folder / part
        folder.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):
            # Version 1: a new cpuset is empty, and no process may enter it.
            if hierarchy != MOUNT and (folder / file).exists() and not (folder / file).read_text().strip():
                (folder / file).write_text((parent / file).read_text())
    return folder


def folders(path: str) -> list[Path]:
    """All folders of this cgroup and below, deepest first, in every hierarchy where they exist."""
    found: list[Path] = []
    for hierarchy in hierarchies():
        found += [Path(entry) for entry, _, _ in os.walk(hierarchy / path, topdown=False)]
    return found


def pids(path: str) -> set[int]:
    """Every process in this cgroup or below, by the host's numbers; dead ones that nobody collected are left out."""
    found: set[int] = set()
    for folder in folders(path):
        with contextlib.suppress(OSError):
            found |= {int(line) for line in (folder / "cgroup.procs").read_text().split()}
    return {pid for pid in found if not is_zombie(pid)}


def is_zombie(pid: int) -> bool:
    """Dead, whether or not its parent has noticed; also true for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def kill(path: str, component: str) -> None:
    """End every process of this cgroup, frozen ones too, and wait until none is left."""

    def none_left() -> bool:
        for state in _freezers(path):
            with contextlib.suppress(OSError):
                state.write_text("0" if state.name == "cgroup.freeze" else "THAWED")
        left = pids(path)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    wait_until(component, f"processes of {path} end", none_left, timeout=30)


def freeze(path: str, frozen: bool) -> None:
    """Stop, or let go on, every process of a cgroup: a node that hangs."""
    for state in _freezers(path):
        if state.name == "cgroup.freeze":
            state.write_text("1" if frozen else "0")
        else:
            state.write_text("FROZEN" if frozen else "THAWED")


def _freezers(path: str) -> Iterator[Path]:
    """Top-down: a frozen parent keeps its children frozen."""
    version2 = hierarchies() == [MOUNT]
    for folder in reversed(folders(path)):
        state = folder / ("cgroup.freeze" if version2 else "freezer.state")
        if state.exists():
            yield state


def remove(path: str, component: str) -> None:
    """Remove the cgroup's folders. The kernel needs a moment after the last process has gone."""

    def gone() -> bool:
        for folder in folders(path):
            with contextlib.suppress(OSError):
                folder.rmdir()
        return not folders(path)

    wait_until(component, f"cgroups {path} are removed", gone, timeout=20)
