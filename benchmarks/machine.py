"""The state of the machine: what a result must tell of it, and when measuring makes no sense."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TMPFS_LIMIT = 1 << 30
LOAD_PER_CORE = 0.5
CHECKOUT = Path(__file__).parents[1]


class Unfit(Exception):
    """The machine is in no state for a measurement; the message says why."""


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def tmpfs_in_use(mounts: str, used: Callable[[str], int]) -> dict[str, int]:
    """Bytes in each tmpfs of a /proc/mounts text, by mount point, if more than `TMPFS_LIMIT`."""
    found = {}
    for line in mounts.splitlines():
        _, mountpoint, kind, *_ = line.split(" ")
        if kind in ("tmpfs", "ramfs"):
            size = used(mountpoint)
            if size > TMPFS_LIMIT:
                found[mountpoint] = size
    return found


def _used(mountpoint: str) -> int:
    try:
        return shutil.disk_usage(mountpoint).used
    except OSError:
        return 0


def check(*, force: bool) -> list[str]:
    """What is wrong with the machine, for the result; raises Unfit unless `force`.

    A large tmpfs is never accepted: it shrinks the limits for dirty pages, and every contender takes twice as long.
    """
    large = tmpfs_in_use(Path("/proc/mounts").read_text(), _used)
    if large:
        names = ", ".join(f"{name} ({size / 1e9:.1f} GB)" for name, size in large.items())
        raise Unfit(f"a tmpfs holds more than {TMPFS_LIMIT >> 30} GiB: {names}")
    load = os.getloadavg()[0]
    if load <= LOAD_PER_CORE * cores():
        return []
    problem = f"load average {load:.1f} on {cores()} cores"
    if not force:
        raise Unfit(f"{problem}: others are working; wait, or --force")
    return [problem]


def drop_caches() -> None:
    """Write everything back and forget every clean page."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


@dataclass(frozen=True, slots=True)
class CpuClock:
    """Seconds that all cores were busy and stolen since boot."""

    busy: float
    stolen: float

    @classmethod
    def now(cls) -> CpuClock:
        """From /proc/stat."""
        return cls.parse(Path("/proc/stat").read_text(), os.sysconf("SC_CLK_TCK"))

    @classmethod
    def parse(cls, text: str, ticks: int) -> CpuClock:
        """From the first line: user, nice, system, idle, iowait, irq, softirq and steal in ticks."""
        user, nice, system, _, _, irq, softirq, steal = (
            int(word) for word in text.split("\n", maxsplit=1)[0].split()[1:9]
        )
        return cls((user + nice + system + irq + softirq) / ticks, steal / ticks)


def _said_by(*command: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=30, check=False, cwd=CHECKOUT
        )
    except OSError as error:
        return str(error)
    return done.stdout.strip() or done.stderr.strip()


def environment(containerds: dict[str, Path]) -> dict[str, object]:
    """What a reader needs to judge a result: kernel, cores, memory, versions, commit."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    changed = _said_by("git", "status", "--porcelain", "--untracked-files=no")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "cpu": cpu[1] if cpu else "",
        "cores": cores(),
        "memoryBytes": int(memory[1]) << 10 if memory else 0,
        "dirtyRatio": Path("/proc/sys/vm/dirty_ratio").read_text().strip(),
        "dirtyBackgroundRatio": Path("/proc/sys/vm/dirty_background_ratio").read_text().strip(),
        "python": platform.python_version(),
        "containerd": {name: _said_by(str(path), "--version") for name, path in containerds.items()},
        "commit": _said_by("git", "rev-parse", "HEAD"),
        "changedFiles": changed.splitlines(),
        "loadAverage": os.getloadavg()[0],
    }
