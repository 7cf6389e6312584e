"""A process that unpacks chains with the product's own workers, apart from pytest: workers must be forked before
there are threads or gRPC. Asked and answered in MessagePack over a socket pair; `ours.py` is the other end.

It does what a pull does with a layer, but for the runtime: worker into an empty directory, inheritance from the
layers below once they are known, owner and mode of the root as containerd prepares it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import msgspec

from imageprepull.unpacking.frontier import Frontier
from imageprepull.unpacking.jobs import ExtractJob, InheritJob, Limits, Refused
from imageprepull.unpacking.workers import WorkerDied, Workers

_LENGTH = 4


class Job(msgspec.Struct, frozen=True):
    """Unpack `blob` into the empty directory `target` above the directories `lowers`, top first."""

    blob: str
    detect: bool
    target: str
    lowers: tuple[str, ...]
    limits: Limits = Limits()


class Answer(msgspec.Struct, frozen=True):
    """`trouble`: not a refusal but a mistake, which fails the test."""

    diff_id: str = ""
    size: int = 0
    reason: str = ""
    refusal: str = ""
    final: bool = False
    entry: bytes = b""
    trouble: str = ""
    cpu: float = 0.0
    """Seconds of the workers, for the system included."""


async def unpack(workers: Workers, job: Job) -> Answer:
    """One layer, into an existing directory."""
    descriptors: list[int] = []
    try:
        root = _open(Path(job.target), descriptors)
        lowers = [_open(Path(lower), descriptors) for lower in job.lowers]
        blob = os.open(job.blob, os.O_RDONLY | os.O_CLOEXEC)
        descriptors.append(blob)
        size = os.fstat(blob).st_size
        extracted = await workers.extract(
            ExtractJob(
                size=size,
                detect=job.detect,
                bottom=not lowers,
                # Either way of a worker, about half of the layers each.
                threads=1 + size % 2,
                limits=job.limits,
            ),
            root=root,
            blob=blob,
            frontier=Frontier(size, size),
            progress=lambda _: None,
        )
        if lowers and extracted.implicit:
            inherit = InheritJob(implicit=extracted.implicit, lowers=len(lowers))
            await workers.inherit(inherit, root=root, lowers=lowers)
        if lowers:
            below = os.fstat(lowers[0])
            os.fchown(root, below.st_uid, below.st_gid)
        os.fchmod(root, 0o755)
    except Refused as error:
        refusal = error.refusal
        return Answer(
            reason=refusal.reason, refusal=refusal.message, final=refusal.final, entry=refusal.entry
        )
    except (OSError, WorkerDied) as error:
        return Answer(trouble=f"{type(error).__name__}: {error}")
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return Answer(diff_id=extracted.diff_id, size=extracted.unpacked_bytes)


def _children_cpu(workers: Workers) -> float:
    """What the zygote's reaped children took: fields 16 and 17 of proc(5)'s stat, counted behind the name."""
    fields = Path(f"/proc/{workers._pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def _open(directory: Path, descriptors: list[int]) -> int:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    descriptors.append(descriptor)
    return descriptor


async def serve(workers: Workers, sock: socket.socket) -> None:
    """Until the other end closes."""
    reader, writer = await asyncio.open_connection(sock=sock)
    decoder = msgspec.msgpack.Decoder(Job)
    try:
        while True:
            head = await reader.readexactly(_LENGTH)
            job = decoder.decode(await reader.readexactly(int.from_bytes(head, "little")))
            before = _children_cpu(workers)
            answer = await unpack(workers, job)
            answer = msgspec.structs.replace(answer, cpu=_children_cpu(workers) - before)
            packed = msgspec.msgpack.encode(answer)
            writer.write(len(packed).to_bytes(_LENGTH, "little") + packed)
            await writer.drain()
    except asyncio.IncompleteReadError:
        pass
    finally:
        writer.close()
        await workers.close()


def main() -> None:
    workers = Workers.start()
    asyncio.run(serve(workers, socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
