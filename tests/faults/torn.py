"""Killing the daemon in the middle of a transaction: at one of the fdatasyncs by which it writes its metadata.

A change of snapshots is two transactions, one within the other: the snapshotter's own and that of the metadata, each
with two fdatasyncs. In between them they say different things.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.faults.node import Machine

SYNCS = 4
_ATTACHED = b"attached"
_PATIENCE = 60


async def kill_at_sync(machine: Machine, number: int, go_on: Callable[[], None]) -> None:
    """Call `go_on` when the daemon is watched, and return when it has died at its `number`th fdatasync from now."""
    process = machine.daemon.process
    assert process is not None
    tracer = await asyncio.create_subprocess_exec(
        "strace", "-f", "-e", "trace=fdatasync", "-e", f"inject=fdatasync:signal=KILL:when={number}",
        "-p", str(process.pid),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert tracer.stderr is not None
    try:
        async with asyncio.timeout(_PATIENCE):
            while _ATTACHED not in (line := await tracer.stderr.readline()):
                assert line, "strace did not attach"
            go_on()
            # The tracer ends with the last thread of the daemon.
            await tracer.stderr.read()
            await asyncio.to_thread(process.wait, _PATIENCE)
            await tracer.wait()
    except BaseException:
        tracer.kill()
        await tracer.wait()
        raise
    machine.daemon.process = None
