"""One pull from nothing to idle through all its faults, then the look at the whole node."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from imageprepull.pulling.labels import LEASE
from imageprepull.pulling.sidecars import read_sidecar
from imageprepull.pulling.steps import Step
from imageprepull.runtime.connection import Containerd
from tests.containerd.conftest import SNAPSHOTTER
from tests.containerd.pull_bench import start_daemon
from tests.faults.check import clear, complaints, early_records, empty
from tests.faults.faults import STARTED, Fault, Victim
from tests.faults.life import Life, life
from tests.faults.node import Machine, connected
from tests.faults.registry import CountingRegistry
from tests.faults.tally import Hit
from tests.faults.torn import SYNCS, kill_at_sync
from tests.testbed.images import BuiltImage

_LONGEST = 150.0
"""Seconds of a round."""


@dataclass
class Outcome:
    """`complaints` are empty for a good round. `reasons`: what attempts failed with; `steps`: how often each was done."""

    hits: list[Hit] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    steps: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    log: str = field(default="", repr=False)


@dataclass
class Round:
    machine: Machine
    registry: CountingRegistry
    image: BuiltImage
    reference: str
    defect: str = ""
    options: Sequence[str] = ()
    pause: random.Random = field(default_factory=lambda: random.Random(1))

    async def run(self, faults: Sequence[Fault]) -> Outcome:
        """Leaves the machine empty, whatever was found."""
        self.registry.forget()
        self._left = list(faults)
        self._torn = 0
        self._outcome = Outcome()
        since, started = time.time(), time.monotonic()
        log = self.machine.folder / "victim.log"
        log.unlink(missing_ok=True)
        try:
            async with asyncio.timeout(_LONGEST):
                while not await self._live(since):
                    pass
        except TimeoutError:
            self._outcome.complaints.append("not finished in time")
        self._outcome.seconds = time.monotonic() - started
        if self._outcome.complaints:
            self._outcome.log = log.read_text(errors="replace")
            await clear(self.machine)
        return self._outcome

    async def _live(self, since: float) -> bool:
        """One life of the agent; whether the image was finished and looked at."""
        found = self.machine
        async with life(
            found.folder,
            self.reference,
            self.image.digest,
            self._left,
            boot=found.boot,
            log=found.folder / "victim.log",
            defect=self.defect,
            options=self.options,
        ) as victim:
            step = STARTED
            while (line := await victim.next()) is not None:
                match line:
                    case ["step", name, *subject]:
                        step = name
                        self._outcome.steps[name] += 1
                        self._note(name, subject)
                    case ["fault", _, who, *_]:
                        self._left.pop(0)
                        self._outcome.hits.append(Hit(Victim(who), step))
                        await self._strike(Victim(who), victim)
                    case ["failed", reason, *_]:
                        self._outcome.reasons.append(reason)
                    case ["given-up"]:
                        self._outcome.complaints.append(f"given up: {self._outcome.reasons[-1:]}")
                        return True
                    case ["idle"]:
                        await self._look(victim, since)
                        return True
            await victim.process.wait()
            await self._bury(victim)
        return False

    def _note(self, step: str, subject: list[str]) -> None:
        if step == Step.FETCHED:
            digest, _, span = " ".join(subject).partition(" ")
            start, _, end = span.partition("-")
            self.registry.finish(digest, int(start), int(end))

    async def _strike(self, who: Victim, victim: Life) -> None:
        match who:
            case Victim.DAEMON:
                await asyncio.to_thread(self.machine.daemon.kill)
                await asyncio.sleep(self.pause.choice((0, 0, 0.3)))  # it is down for a while, as on a node.
                await start_daemon(self.machine)  # type: ignore[arg-type]
                victim.tell_of_daemon()
            case Victim.TORN:
                await stopped(victim)
                self._torn = self._torn % SYNCS + 1
                await kill_at_sync(self.machine, self._torn, victim.go_on)
                await start_daemon(self.machine)  # type: ignore[arg-type]
                victim.tell_of_daemon()
            case Victim.CONNECTION:
                self.registry.cut()
            case Victim.PAUSE:
                await stopped(victim)
                victim.go_on()
            case Victim.LEASE | Victim.GAP:
                await stopped(victim)
                async with connected(self.machine) as containerd:
                    await (_lose_leases(containerd) if who is Victim.LEASE else self._tear(containerd))
                victim.go_on()
            case _:
                pass

    async def _tear(self, containerd: Containerd) -> None:
        """A collection takes the record first, then the files, and tells nobody who works there."""
        for found in await containerd.snapshots.list(SNAPSHOTTER, ["kind==active"]):
            if "staging" in found.name:
                await containerd.snapshots.remove(SNAPSHOTTER, found.name)
        for tree in self.machine.snapshots.glob("*/fs/[0-9]*-[0-9]*"):
            with contextlib.suppress(FileNotFoundError):  # a real one is at it, too
                for lost in [path for path in sorted(tree.rglob("*")) if path.is_file()][:1]:
                    lost.unlink()

    async def _bury(self, victim: Life) -> None:
        """What must hold as soon as the agent is dead."""
        async with asyncio.timeout(5):
            # Orphans are killed by the kernel; it takes its time.
            while left := victim.others():  # noqa: ASYNC110 - the kernel tells nobody.
                await asyncio.sleep(0.01)
        if left:
            self._outcome.complaints.append(f"processes outlive the agent: {left}")
        async with connected(self.machine) as containerd:
            self._outcome.complaints += await early_records(containerd, self.image, self.reference)
        for path in self.machine.spool.glob("*.json"):
            sidecar = read_sidecar(path)
            if sidecar is None:
                continue
            for start, end in sidecar.ranges:
                self.registry.finish(sidecar.digest, start, end)

    async def _look(self, victim: Life, since: float) -> None:
        outcome = self._outcome
        outcome.complaints += self.registry.complaints
        others = victim.others()
        # The parent of the workers may itself have been a victim.
        if any("zygote" not in other for other in others):
            outcome.complaints.append(f"workers without work: {others}")
        async with connected(self.machine) as containerd:
            outcome.complaints += await complaints(
                self.machine, containerd, self.image, self.reference, since
            )
            if await victim.stop():
                outcome.complaints.append(f"the agent ended with {victim.process.returncode}")
            if left := victim.others():
                outcome.complaints.append(f"processes outlive the agent: {left}")
            outcome.complaints += await empty(self.machine, containerd)


async def stopped(victim: Life) -> None:
    """Wait until the kernel says that every thread of it stands still, or that it has died."""
    await asyncio.to_thread(os.waitid, os.P_PID, victim.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


async def _lose_leases(containerd: Containerd) -> None:
    for lease in await containerd.leases.list([f'labels."{LEASE}"']):
        await containerd.leases.delete(lease.id, sync=True)
