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
from pathlib import Path

from imageprepull.pulling.labels import LEASE
from imageprepull.pulling.sidecars import read_sidecar
from imageprepull.pulling.steps import Step
from imageprepull.runtime.connection import Containerd
from tests.containerd.conftest import SNAPSHOTTER, collect_garbage
from tests.containerd.pull_bench import start_daemon
from tests.faults.check import clear, complaints, early_records, empty, first, mounts
from tests.faults.faults import STARTED, Fault, Victim, Wish
from tests.faults.life import Life, life
from tests.faults.node import Machine, connected
from tests.faults.registry import CountingRegistry
from tests.faults.tally import Hit
from tests.faults.torn import SYNCS, kill_at_sync
from tests.testbed.images import BuiltImage

_LONGEST = 150.0
"""Seconds of a round."""
_LOG = 20_000
"""Characters of the victim's log that a failure shows."""
_ORPHANS = 20.0
"""Seconds that the kernel may take to end what an agent leaves behind."""


@dataclass
class Outcome:
    """`complaints` are empty for a good round. `reasons`: what attempts failed with; `steps`: how often each was done.

    `hits` are faults that hit something; `spared` those that found nothing to hit, as a connection that was over.
    """

    hits: list[Hit] = field(default_factory=list)
    spared: list[Hit] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    steps: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    log: str = field(default="", repr=False)

    @property
    def message(self) -> str:
        """What was found and the end of the victim's log, for a test that fails."""
        return f"{first(self.complaints)}\n{self.log[-_LOG:]}"


@dataclass
class Round:
    machine: Machine
    registry: CountingRegistry
    image: BuiltImage
    reference: str
    defect: str = ""
    options: Sequence[str] = ()
    wish: Wish = field(default_factory=Wish)
    torn: int = 0
    """How many of the daemon's writes to disk were hit in rounds before."""
    pause: random.Random = field(default_factory=lambda: random.Random(1))

    async def run(self, faults: Sequence[Fault]) -> Outcome:
        """Leaves the machine empty, whatever was found."""
        self.registry.forget()
        self._left = list(faults)
        self._torn = self.torn
        self._spooled: set[str] = set()
        self._kept: frozenset[str] = frozenset()
        self._mounted = mounts(self.machine)
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
            options=(*self.options, *self.wish.options),
        ) as victim:
            step = STARTED
            while (line := await victim.next()) is not None:
                match line:
                    case ["step", name, *subject]:
                        step = name
                        self._outcome.steps[name] += 1
                        self._note(name, subject)
                    case ["fault" | "spared" as word, _, who, *_]:
                        self._left.pop(0)
                        hit = word == "fault" and await self._strike(Victim(who), victim)
                        (self._outcome.hits if hit else self._outcome.spared).append(Hit(Victim(who), step))
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
        match step:
            case Step.FETCHED:
                digest, _, span = " ".join(subject).partition(" ")
                start, _, end = span.partition("-")
                self.registry.finish(digest, int(start), int(end))
            case Step.DOCUMENTED:
                self.registry.documents |= {self.image.manifest.digest, self.image.config.digest}
            case Step.LEASED:
                self._spooled.clear()  # an attempt begins: it keeps what it fetches itself.
            case Step.SPOOLED:
                self._spooled |= set(subject)
            case Step.KEPT:
                self._kept = frozenset(self._spooled)

    async def _strike(self, who: Victim, victim: Life) -> bool:
        """Do what is the parent's to do; whether anything was hit."""
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
                return self.registry.cut() > 0
            case Victim.PAUSE:
                await stopped(victim)
                victim.go_on()
            case Victim.LEASE | Victim.GAP:
                await stopped(victim)
                async with connected(self.machine) as containerd:
                    lost = await (
                        self._lose_leases(containerd) if who is Victim.LEASE else self._tear(containerd)
                    )
                victim.go_on()
                return lost > 0
            case _:
                pass
        return True

    async def _lose_leases(self, containerd: Containerd) -> int:
        leases = await containerd.leases.list([f'labels."{LEASE}"'])
        for lease in leases:
            await containerd.leases.delete(lease.id, sync=True)
        # Until records hold them, documents go with it.
        self.registry.documents.clear()
        return len(leases)

    async def _tear(self, containerd: Containerd) -> int:
        """A collection takes the record first, then the files, and tells nobody who works there."""
        # The runtime's own is due after so many changes, counted from the last: not now, when it would take all of a tree.
        await collect_garbage(containerd)
        active = await containerd.snapshots.list(SNAPSHOTTER, ["kind==active"])
        staging = [found for found in active if "staging" in found.name]
        for found in staging:
            await containerd.snapshots.remove(SNAPSHOTTER, found.name)
        _lose_files(self.machine.snapshots)
        return len(staging)

    async def _bury(self, victim: Life) -> None:
        """What must hold as soon as the agent is dead."""
        await self._alone(victim)
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
                self.machine,
                containerd,
                self.image,
                self.reference,
                since,
                kept=self._kept,
                pinned=self.wish.pin,
            )
            if await victim.stop():
                outcome.complaints.append(f"the agent ended with {victim.process.returncode}")
            await self._alone(victim)
            outcome.complaints += [
                f"{point} is left mounted" for point in mounts(self.machine) - self._mounted
            ]
            outcome.complaints += await empty(self.machine, containerd)

    async def _alone(self, victim: Life) -> None:
        """What outlives the agent is complained of, and killed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ORPHANS):
                # Orphans are killed by the kernel; it takes its time.
                while victim.others():  # noqa: ASYNC110 - the kernel tells nobody.
                    await asyncio.sleep(0.01)
        if left := victim.others():
            self._outcome.complaints.append(f"processes outlive the agent: {left}")
            victim.kill_others()


async def stopped(victim: Life) -> None:
    """Wait until the kernel says that every thread of it stands still, or that it has died."""
    await asyncio.to_thread(os.waitid, os.P_PID, victim.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


def _lose_files(snapshots: Path) -> None:
    """One of each tree that is being unpacked. Where a real collection takes a folder meanwhile, it has done that."""
    for snapshot in list(snapshots.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            for tree in snapshot.glob("fs/[0-9]*-[0-9]*"):
                for lost in [path for path in sorted(tree.rglob("*")) if path.is_file()][:1]:
                    lost.unlink()
