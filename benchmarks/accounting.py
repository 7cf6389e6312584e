"""CPU seconds and processes of a group of processes, by a cgroup (version 1 cpuacct, or version 2)."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.testbed.cgroups import MOUNT

PREFIX = "imageprepull-bench-"
JOIN = 'echo $$ >"$0" && exec "$@"'
"""For `sh -c`: enter the group whose file is the first argument, then become the command."""
NANO = 1_000_000_000
MICRO = 1_000_000
GONE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Group:
    """A cgroup in the hierarchy that counts CPU time."""

    folder: Path

    def entering(self, command: Sequence[str | Path]) -> list[str]:
        """The command line that enters the group before it becomes `command`."""
        return ["sh", "-c", JOIN, str(self.folder / "cgroup.procs"), *map(str, command)]

    def cpu(self) -> float:
        """Seconds of user and system time of all who are or were in it."""
        usage = self.folder / "cpuacct.usage"
        if usage.exists():
            return int(usage.read_text()) / NANO
        match = re.search(r"^usage_usec (\d+)$", (self.folder / "cpu.stat").read_text(), re.MULTILINE)
        return int(match[1]) / MICRO if match else 0.0

    def pids(self) -> list[int]:
        """Who is in it now."""
        return [int(line) for line in (self.folder / "cgroup.procs").read_text().split()]

    def kill(self) -> None:
        """End all who are in it, and wait until they have gone."""
        deadline = time.monotonic() + GONE_SECONDS
        while (left := self.pids()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)  # the kernel tells nobody when a group is empty
        if left:
            raise TimeoutError(f"processes {left} of {self.folder} do not end")


def _hierarchy() -> Path:
    if (MOUNT / "cgroup.controllers").exists():
        return MOUNT
    return (MOUNT / "cpuacct").resolve()


@contextmanager
def group(name: str) -> Iterator[Group]:
    """A new group; whoever is left in it at the end is killed."""
    for leftover in _hierarchy().glob(f"{PREFIX}*"):
        owner = leftover.name.removeprefix(PREFIX).partition("-")[0]
        if not Path("/proc", owner).exists():
            _remove(Group(leftover))
    found = Group(_hierarchy() / f"{PREFIX}{os.getpid()}-{name}")
    found.folder.mkdir()
    try:
        yield found
    finally:
        _remove(found)


def _remove(found: Group) -> None:
    found.kill()
    deadline = time.monotonic() + GONE_SECONDS
    while True:
        try:
            found.folder.rmdir()
        except OSError:
            # Busy for a moment after its last process has gone.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


@dataclass(frozen=True, slots=True)
class Process:
    """A process at one moment: its parent, its name (15 characters), its own CPU seconds."""

    parent: int
    name: str
    cpu: float

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """None for one that has gone."""
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return cls.parse(text, os.sysconf("SC_CLK_TCK"))

    @classmethod
    def parse(cls, text: str, ticks: int) -> Process:
        """From /proc/PID/stat, whose name may have spaces and parentheses."""
        head, _, tail = text.rpartition(")")
        words = tail.split()
        return cls(int(words[1]), head.partition("(")[2], (int(words[11]) + int(words[12])) / ticks)


def role(pid: int, processes: dict[int, Process]) -> str:
    """A process's name, with "/" for each ancestor of the same name: an agent's workers are told from it."""
    process = processes[pid]
    depth, parent = 0, process.parent
    while parent in processes and processes[parent].name == process.name:
        depth, parent = depth + 1, processes[parent].parent
    return process.name + "/" * depth


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that is not page cache (RssAnon); 0 for one that has gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    match = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return int(match[1]) << 10 if match else 0
