"""Daemons of the cluster: started detached, known by a record file, checked by number and start time.

Above: control plane, nodes and registry say what runs. Below: `launch.py` starts it inside its namespaces.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.testbed.cgroups import is_zombie
from tests.testbed.commands import run, wait_until
from tests.testbed.errors import ClusterError

LAUNCHER = Path(__file__).with_name("launch.py")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CLEAN_ENVIRONMENT = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class Process:
    """One daemon: `name` is its component, `record` and `log` are its files."""

    name: str
    record: Path
    log: Path
    cgroups: Sequence[Path] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def pid(self) -> int | None:
        """The host's number of the running process, or None."""
        try:
            record = json.loads(self.record.read_text())
        except FileNotFoundError:
            return None
        pid: int = record["pid"]
        return pid if start_time(pid) == record["started"] and not is_zombie(pid) else None

    @property
    def alive(self) -> bool:
        return self.pid() is not None

    def start(
        self, argv: Sequence[str | Path], *, join: int | None = None, unshare: Sequence[str] = ()
    ) -> None:
        """Start it unless it runs; `join` is a process whose namespaces it enters."""
        if self.alive:
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.record.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(map(str, argv))}\n")
        spec = {
            "argv": [str(word) for word in argv],
            "environment": {**CLEAN_ENVIRONMENT, **self.environment},
            "log": str(self.log),
            "record": str(self.record),
            "cgroups": [str(folder) for folder in self.cgroups],
            "join": join,
            "unshare": list(unshare),
        }
        run(self.name, [sys.executable, "-I", "-S", LAUNCHER, json.dumps(spec)])

    def check_alive(self) -> None:
        """Raise ClusterError with the log when it has ended."""
        if not self.alive:
            raise ClusterError(self.name, "has ended", self.log)

    def stop(self, *, kill: bool = False, grace: float = 10) -> None:
        """End it, by SIGTERM first unless `kill`; returns when it is gone."""
        deadline = time.monotonic() + (0 if kill else grace)

        def ended() -> bool:
            pid = self.pid()
            if pid is None:
                return True
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if time.monotonic() >= deadline else signal.SIGTERM)
            return False

        wait_until(self.name, "ends", ended, timeout=grace + 20, interval=0.1)
        self.record.unlink(missing_ok=True)


def start_time(pid: int) -> str | None:
    """When a process was started, in clock ticks since boot: with its number, it names a process for good."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None
