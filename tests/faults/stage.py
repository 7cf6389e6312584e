"""Machine, registry and image together, ready for rounds: for the tests and for the long run."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from tests.containerd.pull_bench import fake_serve
from tests.faults import image
from tests.faults.faults import Fault, Wish
from tests.faults.node import Machine, lay_out_reference
from tests.faults.registry import CountingRegistry
from tests.faults.round import Outcome, Round
from tests.faults.tally import Hit
from tests.testbed.images import BuiltImage

RATE = 25_000_000
"""Bytes per second: a pull lasts about a second, and downloads, unpacks and commits at once for most of it."""
DURATION = 1.5
"""Seconds from the agent's first look at the runtime to the end of an undisturbed pull, and a little more."""


@dataclass
class Stage:
    machine: Machine
    registry: CountingRegistry
    image: BuiltImage
    reference: str
    hits: list[Hit] = field(default_factory=list)
    """Of all rounds so far."""

    async def round(
        self,
        faults: Sequence[Fault],
        *,
        defect: str = "",
        options: Sequence[str] = (),
        wish: Wish = Wish(),  # noqa: B008 - frozen.
        torn: int = 0,
    ) -> Outcome:
        """One pull through these faults, from an empty machine to an empty machine."""
        outcome = await Round(
            self.machine,
            self.registry,
            self.image,
            self.reference,
            defect=defect,
            options=options,
            wish=wish,
            torn=torn,
        ).run(faults)
        self.hits += outcome.hits
        return outcome


@contextlib.asynccontextmanager
async def stage(machine: Machine) -> AsyncIterator[Stage]:
    """`machine` must be empty; the reference trees are laid out first, unless they are there."""
    built = image.build()
    if not machine.reference:
        await lay_out_reference(machine, built)
    async with CountingRegistry(RATE) as registry:
        reference = fake_serve(registry, built)
        machine.daemon.trust(registry.address)
        yield Stage(machine, registry, built, reference)
