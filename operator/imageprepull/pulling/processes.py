"""Whose lease it is when nobody sweeps: `imageprepull pull` marks leases with its process, and looks for dead ones.

A pull that was killed, or whose daemon was, cannot delete its lease; the next call of the command does.
"""

from __future__ import annotations

import os
from pathlib import Path

from imageprepull.pulling.labels import LEASE, LEASE_PROCESS
from imageprepull.pulling.leases import discard_lease
from imageprepull.runtime.connection import Containerd

_START_TIME = 19  # field 22 of proc(5) stat, counted after the command's closing parenthesis.


def process_label(boot_id: str, pid: int | None = None) -> str:
    """Boot, PID namespace, PID and start time: together they name a process for good."""
    pid = pid or os.getpid()
    return f"{boot_id}/{_namespace()}/{pid}/{_started(pid) or 0}"


def process_lease_labels(owner: str, boot_id: str) -> dict[str, str]:
    """The labels of this process's leases, by which `discard_dead` knows them when it has died."""
    return {LEASE: owner, LEASE_PROCESS: process_label(boot_id)}


def is_dead(label: str, boot_id: str) -> bool:
    """Whether the process of a label is known to be gone; one of another PID namespace may be alive."""
    try:
        boot, namespace, pid, started = label.split("/")
        if boot != boot_id:
            return True
        return namespace == _namespace() and _started(int(pid)) != int(started)
    except ValueError:
        return False


async def discard_dead(containerd: Containerd, owner: str, boot_id: str) -> list[str]:
    """Discard the leases of `owner` whose processes are gone; their IDs."""
    found = await containerd.leases.list([f'labels."{LEASE}"=="{owner}"'])
    dead = [lease.id for lease in found if is_dead(lease.labels.get(LEASE_PROCESS, ""), boot_id)]
    for lease_id in dead:
        await discard_lease(containerd, lease_id)
    return dead


def _namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot; None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[_START_TIME])
