"""Starts zygotes for tests.

Through a process of its own and not by Workers.start(): by the time a test runs, pytest's process may have threads
(asyncio's, gRPC's), and a fork of those is what Workers refuses and Python 3.12 warns about.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from imageprepull.unpacking.frontier import Frontier
from imageprepull.unpacking.jobs import Extracted, ExtractJob
from imageprepull.unpacking.messages import Settings
from imageprepull.unpacking.workers import Workers

ROOT = Path(__file__).parents[2]
SCENARIOS = Settings(
    confine=False,
    extract="tests.unit.unpacking_scenarios:extract",
    inherit="tests.unit.unpacking_scenarios:inherit",
)

_SERVE = """
import json, os, sys
from imageprepull.unpacking import capabilities
from imageprepull.unpacking.messages import Settings
from imageprepull.unpacking.zygote import serve
if (kept := json.loads(sys.argv[4])) is not None and os.geteuid() == 0:
    capabilities.limit_to(kept)
serve(int(sys.argv[1]), int(sys.argv[2]), Settings(**json.loads(sys.argv[3])))
"""


@contextmanager
def zygote(settings: Settings, *, kept: Sequence[int] | None = None) -> Iterator[Workers]:
    """`kept`: capabilities that it has at most, by number; all by default."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    arguments = msgspec.json.encode(settings).decode()
    with theirs:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _SERVE,
                str(theirs.fileno()),
                str(os.getpid()),
                arguments,
                json.dumps(kept),
            ],
            pass_fds=[theirs.fileno()],
            cwd=ROOT,
        )
    with ours:
        try:
            yield Workers(ours, process.pid, confine=settings.confine, stall=20)
        finally:
            process.kill()
            process.wait()


class Stage:
    """An empty directory and a blob for one job after the other."""

    def __init__(self, workers: Workers, folder: Path) -> None:
        self.workers = workers
        self.root = folder / "root"
        self.root.mkdir()
        self._blob = folder / "blob"
        self.progress: list[int] = []

    async def run(
        self,
        scenario: str,
        argument: object = None,
        *,
        frontier: Frontier | None = None,
        nice: int = 0,
        hurry: asyncio.Event | None = None,
    ) -> Extracted:
        self._blob.write_text(f"{scenario} {json.dumps(argument)}", encoding="ascii")
        size = frontier.size if frontier else self._blob.stat().st_size
        root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        blob = os.open(self._blob, os.O_RDONLY)
        try:
            return await self.workers.extract(
                ExtractJob(size=size, detect=True, bottom=True),
                root=root,
                blob=blob,
                frontier=frontier or Frontier(size, size),
                progress=self.progress.append,
                nice=nice,
                hurry=hurry,
            )
        finally:
            os.close(root)
            os.close(blob)

    async def ask(
        self, scenario: str, argument: object = None, *, frontier: Frontier | None = None, nice: int = 0
    ) -> object:
        """What the scenario returned."""
        return json.loads((await self.run(scenario, argument, frontier=frontier, nice=nice)).diff_id)


def children(pid: int) -> list[int]:
    """Processes forked by `pid`, zombies too."""
    return [
        int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    ]


async def until(condition: Callable[[], object]) -> None:
    """Look again and again: what happens in other processes sets no event here."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def awaited(frontier: Frontier) -> bool:
    """Whether a worker waits for it now."""
    return any(not waiter.done() for waiter in frontier._waiters)


def gone(pid: int) -> bool:
    """Ended; whoever is its parent now may not have reaped it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
