"""One life of the victim: the process, and what it says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.faults import Fault

CHECKOUT = Path(__file__).parents[2]
MARKER = "IMAGEPREPULL_FAULTS_LIFE"
"""In the environment of a life, with a name of its own: whatever it starts inherits it, and cannot take it off."""
PATIENCE = 60.0
"""Seconds without a word, after which a life is given up."""


@dataclass
class Life:
    """`lines` come as the victim says them; None is the end of its output."""

    process: asyncio.subprocess.Process
    log: Path
    name: str = ""
    lines: asyncio.Queue[list[str] | None] = field(default_factory=asyncio.Queue)

    async def next(self) -> list[str] | None:
        """What it says next, in words; None when it has ended. Raises TimeoutError, and has it show why in its log."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await self.lines.get()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGUSR2)
            await asyncio.sleep(1)  # it cannot say when it has written all
            raise

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
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()

    def others(self) -> list[str]:
        """The processes that it or its children started, itself excepted: "PID NAME" each."""
        return [f"{pid} {name}" for pid, name in self._started()]

    def kill_others(self) -> None:
        """What a defect has left is not to outlive its round."""
        for pid, _ in self._started():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _started(self) -> list[tuple[int, str]]:
        """By its session, and by the environment for who has left that."""
        marker = f"{MARKER}={self.name}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                pid = int(entry.name)
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                # A dead one that nobody has reaped yet holds nothing any more.
                if pid == self.process.pid or state == "Z":
                    continue
                if os.getsid(pid) == self.process.pid or marker in (entry / "environ").read_bytes().split(
                    b"\0"
                ):
                    found.append((pid, (entry / "comm").read_text().strip()))
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
    name = secrets.token_hex(8)
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            stdin=asyncio.subprocess.DEVNULL,
            cwd=CHECKOUT,
            env={**os.environ, MARKER: name},
            start_new_session=True,
        )
    found = Life(process, log, name)
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
