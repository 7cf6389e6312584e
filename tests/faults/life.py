"""One life of the victim: the process, and what it says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.faults import Fault

CHECKOUT = Path(__file__).parents[2]
PATIENCE = 60.0
"""Seconds without a word, after which a life is given up."""


@dataclass
class Life:
    """`lines` come as the victim says them; None is the end of its output."""

    process: asyncio.subprocess.Process
    log: Path
    lines: asyncio.Queue[list[str] | None] = field(default_factory=asyncio.Queue)

    async def next(self) -> list[str] | None:
        """What it says next, in words; None when it has ended. Raises TimeoutError."""
        async with asyncio.timeout(PATIENCE):
            return await self.lines.get()

    async def until(self, word: str) -> list[str]:
        """Read on until a line that begins so."""
        while (line := await self.next()) is not None:
            if line[0] == word:
                return line
        raise AssertionError(f"the victim ended before it said {word!r}:\n{self.tail()}")

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def tell_of_daemon(self) -> None:
        """There is a new one: only now it can say that it is idle."""
        with contextlib.suppress(ProcessLookupError):  # killed meanwhile
            self.process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        self.process.kill()

    async def stop(self) -> int:
        """As the kubelet does it."""
        self.process.terminate()
        async with asyncio.timeout(20):
            return await self.process.wait()

    def others(self) -> list[str]:
        """The processes of its session but itself and the parent of the workers."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError, ProcessLookupError):
                pid = int(entry.name)
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                # A dead one that nobody has reaped yet holds nothing any more.
                if os.getsid(pid) == self.process.pid and pid != self.process.pid and state != "Z":
                    found.append(f"{pid} {(entry / 'comm').read_text().strip()}")
        return found

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@contextlib.asynccontextmanager
async def life(
    folder: Path,
    reference: str,
    digest: str,
    faults: Sequence[Fault] = (),
    *,
    boot: Path,
    log: Path,
    defect: str = "",
    options: Sequence[str] = (),
) -> AsyncIterator[Life]:
    """A victim that is gone with the block."""
    # However the test ends.
    command = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "--",
        sys.executable,
        "-m",
        "tests.faults.victim",
        f"--folder={folder}",
        f"--reference={reference}",
    ]
    command += [f"--digest={digest}", f"--boot-id-file={boot}", f"--defect={defect}", *options]
    command += [f"--fault={fault}" for fault in faults]
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            stdin=asyncio.subprocess.DEVNULL,
            cwd=CHECKOUT,
            start_new_session=True,
        )
    found = Life(process, log)
    reading = asyncio.create_task(_read(process, found.lines))
    try:
        yield found
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def _read(process: asyncio.subprocess.Process, lines: asyncio.Queue[list[str] | None]) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        lines.put_nowait(line.decode().split())
    lines.put_nowait(None)
