"""One pull by one contender on a fresh disk, measured from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.accounting import Group, group
from benchmarks.contenders import OURS, Contender
from benchmarks.daemon import BenchDaemon
from benchmarks.disk import Disk, fresh_disk
from benchmarks.images import WARM_UP, Image, Store
from benchmarks.link import Link, LinkWatch
from benchmarks.machine import CpuClock, drop_caches
from benchmarks.registry import Registry
from benchmarks.watch import Watch

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PULL_SECONDS = 1800.0
PRESENT_PULLS = 7
ENVIRONMENT = {"PATH": PATH, "HOME": str(Path.home()), "LANG": "C.UTF-8"}


class PullFailed(Exception):
    """A contender did not bring the image; the message has the end of what it and its daemon said."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What all pulls of a run have in common. Bytes per second; 0 is no limit."""

    store: Store
    registry: Registry
    link: Link | None = None
    disk_rate: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """One pull. Seconds from exec of the command; CPU seconds of user and system time; bytes."""

    contender: str
    image: str
    ready: float
    done: float
    on_disk: float
    cpu: float
    command_cpu: float
    """Of `cpu`, what the command and its children took; the rest is the daemon's."""
    cpu_by_role: dict[str, float]
    """As last seen of each process: see `Watch.cpu_by_role`."""
    registry_cpu: float
    other_cpu: float
    stolen_cpu: float
    anonymous: dict[str, int]
    at_once: dict[str, int]
    registry: dict[str, int]
    inside: dict[str, Any] = field(default_factory=dict)
    """What the command itself measured, if it told in JSON."""
    present: float | None = None
    """Of a further pull of the image that is there: median seconds."""
    link: dict[str, float] | None = None

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Said:
    """What a command left: its standard output, CPU seconds of it and its children."""

    output: str
    cpu: float


class Resident:
    """An agent of ours in its place of work (resident.py)."""

    def __init__(self, daemon: BenchDaemon, group: Group) -> None:
        """Start it and wait until it is ready. Raises PullFailed."""
        self._said = daemon.folder / "resident"
        command = [sys.executable, "-m", "benchmarks.resident", f"unix://{daemon.socket}"]
        with self._said.open("wb") as errors:
            self._process = subprocess.Popen(  # noqa: S603 - ours
                group.entering(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=Path(__file__).parents[1],
                env=ENVIRONMENT,
                text=True,
            )
        self.wait_for("ready")

    def tell(self, reference: str) -> None:
        """Have it pull an image; it does not wait for that."""
        if self._process.stdin is not None:
            self._process.stdin.write(f"{reference}\n")
            self._process.stdin.flush()

    def wait_for(self, word: str) -> None:
        """Wait for what it says next. Raises PullFailed for anything else."""
        said = self._process.stdout.readline().strip() if self._process.stdout is not None else ""
        if said != word:
            raise PullFailed(f"the resident did not say {word!r}: {self._said.read_text()[-2000:]}")


@dataclass(frozen=True, slots=True)
class Bench:
    """A contender's daemon on a disk that nobody has used."""

    contender: Contender
    conditions: Conditions
    disk: Disk
    daemon: BenchDaemon
    group: Group
    resident: Resident | None = None

    def reference(self, image: Image) -> str:
        """How the contender asks for an image of the store."""
        link = self.conditions.link
        return self.conditions.registry.reference(image, link.host if link else "")

    def pull(self, image: Image) -> Said:
        """Run the command to its end, beside the resident's pull where there is one. Raises PullFailed."""
        if self.resident is not None:
            self.resident.tell(self.reference(image))
        command = self.contender.command_line(
            image=self.reference(image),
            socket=self.daemon.socket,
            certs=self.daemon.certs_d,
            folder=self.daemon.folder,
        )
        output, errors = self.daemon.folder / "stdout", self.daemon.folder / "stderr"
        with output.open("wb") as out, errors.open("wb") as err:
            process = subprocess.Popen(  # noqa: S603 - commands of contenders
                self.group.entering(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=ENVIRONMENT,
            )
            # Not Popen's own wait: it throws the usage away.
            overdue = threading.Timer(PULL_SECONDS, process.kill)
            overdue.start()
            _, status, usage = os.wait4(process.pid, 0)
            overdue.cancel()
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said = errors.read_text(errors="replace")[-2000:]
            name, log = self.contender.name, self.daemon.log_tail(15)
            raise PullFailed(f"{name} ended with {process.returncode}: {said}\n{log}")
        return Said(output.read_text(errors="replace"), usage.ru_utime + usage.ru_stime)

    def measure(self, image: Image) -> Result:
        """The pull that counts. Raises PullFailed when the image is not there afterwards."""
        registry = self.conditions.registry
        link = LinkWatch(self.conditions.link) if self.conditions.link else None
        before, registry_before, clock = self.group.cpu(), registry.group.cpu(), CpuClock.now()
        watch = Watch(self.daemon.socket, self.reference(image), image, self.group)
        with watch, link or nullcontext():
            started = time.monotonic()
            said = self.pull(image)
            ended = time.monotonic()
            cpu = self.group.cpu() - before
            registry_cpu = registry.group.cpu() - registry_before
            now = CpuClock.now()
        if watch.ready is None:
            raise PullFailed(
                f"{self.contender.name} ended well, but the CRI or the snapshot lacks {image.name}"
            )
        done = ended - started
        ready = min(done, watch.ready - started)
        inside = _document(said.output)
        asked = registry.stats()
        return Result(
            contender=self.contender.name,
            image=image.name,
            ready=ready,
            done=_kept(ready, inside) or done,
            on_disk=done + self.disk.sync(),
            cpu=cpu,
            command_cpu=said.cpu,
            cpu_by_role=watch.cpu_by_role(),
            registry_cpu=registry_cpu,
            other_cpu=now.busy - clock.busy - cpu - registry_cpu,
            stolen_cpu=now.stolen - clock.stolen,
            anonymous=dict(watch.anonymous),
            at_once=dict(watch.at_once),
            registry=asked,
            inside=inside,
            present=self.again(image),
            link=link.use().as_json() if link else None,
        )

    def again(self, image: Image) -> float | None:
        """Seconds to find an image that is there. Only of ours: others ask the registry."""
        if self.contender.name != OURS:
            return None
        seconds = []
        for _ in range(PRESENT_PULLS):
            started = time.monotonic()
            self.pull(image)
            seconds.append(time.monotonic() - started)
        return median(seconds)


@contextmanager
def bench(contender: Contender, conditions: Conditions) -> Iterator[Bench]:
    """A new one, gone afterwards with its daemon and its disk."""
    with fresh_disk(conditions.disk_rate) as disk, group("run") as cpu_group:
        daemon = BenchDaemon(contender.setup.version, disk.folder, setup=contender.setup, group=cpu_group)
        drop_caches()
        try:
            daemon.start()
            daemon.trust(conditions.link.host if conditions.link else conditions.registry.host)
            resident = Resident(daemon, cpu_group) if contender.beside else None
            yield Bench(contender, conditions, disk, daemon, cpu_group, resident)
        finally:
            # The group's end is the resident's, too.
            daemon.kill()


def trial(contender: Contender, image: Image, conditions: Conditions) -> Result:
    """Pull once, on a bench of its own. Raises PullFailed."""
    with bench(contender, conditions) as made:
        # Loads the contender's binaries and tries its way before the clock runs.
        made.pull(conditions.store.image(WARM_UP))
        if made.resident is not None:
            made.resident.wait_for("pulled")
        conditions.store.read_ahead(image)
        made.disk.sync()
        conditions.registry.stats()
        return made.measure(image)


def _kept(ready: float, inside: dict[str, Any]) -> float | None:
    """When the blobs were kept, on the clock that `ready` was taken with; None where the command does not say."""
    try:
        return ready + float(inside["secondsKept"]) - float(inside["secondsReady"])
    except (KeyError, TypeError):
        return None


def _document(said: str) -> dict[str, Any]:
    """The JSON object that a command printed, without the list of layers; empty for other output."""
    try:
        found = json.loads(said)
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if name != "layers"}
