"""A group of processes that lives and dies with one init process in a PID namespace of its own.

Each node is one, with mount, network and UTS namespaces; the control plane is one, with a PID namespace only. Killing
the init makes the kernel kill all the rest, unmount what was mounted, free the loop device and the interfaces.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.testbed import cgroups
from tests.testbed.binaries import path
from tests.testbed.commands import wait_until
from tests.testbed.errors import ClusterError
from tests.testbed.layout import Layout
from tests.testbed.processes import Process


@dataclass(frozen=True, slots=True)
class Sandbox:
    """`name` is "control" or the node's; `namespaces` are what it has beside the PID namespace."""

    layout: Layout
    name: str
    namespaces: tuple[str, ...] = ()

    @property
    def cgroup(self) -> str:
        """Of all its processes; below it `system` holds those that we start."""
        return f"{self.layout.cgroup}/{self.name}"

    def process(self, component: str, environment: Mapping[str, str] | None = None) -> Process:
        """One daemon of this sandbox."""
        return Process(
            f"{self.name}/{component}",
            self.layout.records / f"{self.name}.{component}.json",
            self.layout.logs / f"{self.name}-{component}.log",
            cgroups.make(f"{self.cgroup}/system"),
            environment or {},
        )

    @property
    def init(self) -> Process:
        return self.process("init")

    def pid(self) -> int:
        """The init's number on the host; ClusterError when the sandbox does not run."""
        pid = self.init.pid()
        if pid is None:
            raise ClusterError(self.name, "does not run; `up` starts it", self.init.log)
        return pid

    def start(self, argv: Sequence[str | Path] = ()) -> None:
        """Start the init, through `argv` if given, which must become it in the end."""
        program = path("pause")
        if self.init.alive:
            return
        # Whatever outlived its init, or was started by an `up` that was killed.
        cgroups.kill(self.cgroup, self.name)
        self.init.start(argv or [program], unshare=["pid", *self.namespaces])

        def ready() -> bool:
            self.init.check_alive()
            return Path(f"/proc/{self.pid()}/exe").resolve().name == program.name

        wait_until(self.name, "namespaces and mounts are set up", ready, timeout=30, log=self.init.log)

    def stop(self) -> None:
        """Kill everything in it. Its cgroup stays, empty."""
        cgroups.kill(self.cgroup, self.name)
        for record in self.layout.records.glob(f"{self.name}.*.json"):
            record.unlink()
