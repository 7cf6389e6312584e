"""Chains through our own unpacker: the same workers as in a pull, in a process of their own (unpacker.py)."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from imageprepull.unpacking.jobs import Limits
from tests.containerd.differential.layers import Chain, Outcome
from tests.containerd.differential.trees import scan
from tests.containerd.differential.unpacker import Answer, Job

PATIENCE = 60.0
"""Seconds for one layer."""
CHECKOUT = Path(__file__).parents[3]

USUAL = Limits()
Damage = Callable[[Path], None]
"""Spoils a tree before it is compared: how the suite proves that it would notice."""


class Ours:
    """`apply` unpacks a chain below `folder`, which is on the same file system as containerd's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        self._decoder = msgspec.msgpack.Decoder(Answer)
        self.cpu = 0.0
        """Seconds that the last layer took, of processors, not of the clock."""
        self._start()

    def close(self) -> None:
        self._sock.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            # Its workers die with their parent, which dies with it.
            self._process.kill()
            self._process.wait(10)

    def _start(self) -> None:
        self._sock, there = socket.socketpair()
        self._sock.settimeout(PATIENCE)
        with there:
            command = [sys.executable, "-m", "tests.containerd.differential.unpacker", str(there.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[there.fileno()], cwd=CHECKOUT)

    def apply(self, chain: Chain, *, damage: Damage | None = None, limits: Limits = USUAL) -> list[Outcome]:
        """What became of each layer; ends with the first that was refused. Raises AssertionError on mistakes."""
        with self.laid_out(chain, damage=damage, limits=limits) as (outcomes, _):
            return outcomes

    @contextlib.contextmanager
    def laid_out(
        self, chain: Chain, *, damage: Damage | None = None, limits: Limits = USUAL, look: bool = True
    ) -> Iterator[tuple[list[Outcome], list[Path]]]:
        """The same, with the directories of the layers, from the bottom up, while the context lasts.

        `look`: read the trees for comparison.
        """
        since = time.time()
        work = self.folder / "work"
        work.mkdir()
        # Whoever gets out of a layer's directory lands here.
        canary = work / "canary"
        canary.mkdir()
        (canary / "file").write_bytes(b"sings")
        alive = scan(canary, 0)
        outcomes: list[Outcome] = []
        layers: list[Path] = []
        try:
            for position, layer in enumerate(chain):
                blob, target = work / f"blob-{position}", work / f"{position}"
                blob.write_bytes(layer.blob)
                # As containerd makes an upper directory; its owner is given by the unpacker.
                target.mkdir(0o755)
                lowers = tuple(str(lower) for lower in reversed(layers))
                answer = self._ask(Job(str(blob), layer.detect, str(target), lowers, limits))
                self.cpu = answer.cpu
                assert not answer.trouble, answer.trouble
                assert sorted(child.name for child in work.iterdir()) == _expected(position)
                assert scan(canary, 0) == alive, "something outside of the layer was touched"
                if answer.reason:
                    outcomes.append(_refused(answer))
                    break
                if damage is not None and position == len(chain) - 1:
                    damage(target)
                tree = scan(target, since) if look else {}
                outcomes.append(Outcome(tree, answer.diff_id, answer.size))
                layers.append(target)
            yield outcomes, layers
        finally:
            shutil.rmtree(work)

    def _ask(self, job: Job) -> Answer:
        packed = msgspec.msgpack.encode(job)
        try:
            self._sock.sendall(len(packed).to_bytes(4, "little") + packed)
            return self._decoder.decode(self._receive(int.from_bytes(self._receive(4), "little")))
        except OSError as error:
            # The next case gets another one.
            self._process.kill()
            self.close()
            self._start()
            raise AssertionError(f"no answer within {PATIENCE} s: {error}") from error

    def _receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._sock.recv(count - len(data))
            if not piece:
                raise ConnectionResetError("the unpacker's process died")
            data += piece
        return data


def _refused(answer: Answer) -> Outcome:
    return Outcome(refusal=answer.refusal, reason=answer.reason, final=answer.final, entry=answer.entry)


def _expected(position: int) -> list[str]:
    """What a chain's folder holds after the layer at `position`."""
    made = [str(number) for number in range(position + 1)]
    return sorted([*made, *(f"blob-{number}" for number in made), "canary"])


@contextlib.contextmanager
def ours(folder: Path) -> Iterator[Ours]:
    """Our unpacker, working below `folder`."""
    unpacker = Ours(folder)
    try:
        yield unpacker
    finally:
        unpacker.close()
