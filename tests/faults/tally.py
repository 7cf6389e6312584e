"""How many faults fell into each step, by victim. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from imageprepull.pulling.steps import Step
from tests.faults.faults import STARTED, SWEPT, Victim, Way

ALWAYS = (Victim.AGENT, Victim.WORKER, Victim.DAEMON, Victim.CONNECTION)
"""None of these may have been left out."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A fault that hit its victim when this step was the last one done."""

    victim: Victim
    step: str

    def __str__(self) -> str:
        return f"{self.victim}@{self.step}"

    @classmethod
    def parse(cls, text: str) -> Hit:
        victim, _, step = text.partition("@")
        return cls(Victim(victim), step)


def counted(hits: Iterable[Hit]) -> Counter[str]:
    """Hits by step."""
    return Counter(hit.step for hit in hits)


def missed(hits: Sequence[Hit]) -> list[str]:
    """The steps that no fault fell into, and the victims that none has hit."""
    found = counted(hits)
    never = [step.value for step in Step if not found[step.value]]
    return never + [victim.value for victim in ALWAYS if not any(hit.victim is victim for hit in hits)]


def rarest(hits: Iterable[Hit], way: Way) -> Step:
    """The step of a way that is to be hit next."""
    found = counted(hits)
    return min(way.steps, key=lambda step: found[step.value])


def least_hit(hits: Sequence[Hit]) -> Victim:
    """The victim that is to be hit next."""
    return min(ALWAYS, key=lambda victim: sum(hit.victim is victim for hit in hits))


def table(hits: Sequence[Hit]) -> str:
    """A row for each step, a column for each victim that was hit or has to be."""
    victims = [victim for victim in Victim if victim in ALWAYS or any(hit.victim is victim for hit in hits)]
    cells = Counter((hit.step, hit.victim) for hit in hits)
    steps = [STARTED, SWEPT, *(step.value for step in Step)]
    lines = [f"{'last step done':16}" + "".join(f"{victim:>12}" for victim in victims) + f"{'all':>7}"]
    for step in steps:
        row = [cells[step, victim] for victim in victims]
        lines.append(f"{step:16}" + "".join(f"{count:>12}" for count in row) + f"{sum(row):>7}")
    total = [sum(hit.victim is victim for hit in hits) for victim in victims]
    lines.append(f"{'all':16}" + "".join(f"{count:>12}" for count in total) + f"{len(hits):>7}")
    return "\n".join(lines)
