"""What is to happen to a pull, and when: made from a seed, passed to the victim as text. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from imageprepull.pulling.steps import Step


class Victim(StrEnum):
    """`ZYGOTE` is the parent of the workers. `LEASE`: another tool deletes the pull's lease, and a collection runs.
    `GAP`: that collection was at the staged trees, and is not through yet. `TORN`: the daemon dies while it writes its
    metadata: at the first of its next fdatasyncs, next time at the second, and so on. `PAUSE`: nothing happens to
    anybody; the agent stands still until it is told to go on.
    """

    AGENT = "agent"
    WORKER = "worker"
    ZYGOTE = "zygote"
    DAEMON = "daemon"
    CONNECTION = "connection"
    LEASE = "lease"
    GAP = "gap"
    TORN = "torn"
    PAUSE = "pause"


WITHOUT_DAEMON = frozenset({Victim.AGENT, Victim.WORKER, Victim.ZYGOTE, Victim.CONNECTION})
"""What can be hit while the daemon is down."""
STARTED = "started"
"""The step before all steps: the agent runs, and has looked at nothing."""
SWEPT = "swept"
BEFORE_RECORDS = (
    Step.LEASED,
    Step.DOCUMENTED,
    Step.ASKED,
    Step.FETCHED,
    Step.STAGED,
    Step.SPOOLED,
    Step.UNPACKED,
    Step.INHERITED,
    Step.PREPARED,
    Step.EXCHANGED,
    Step.VOUCHED,
    Step.COMMITTED,
    Step.UNSTAGED,
)
"""In this order each is reached again by a life that begins after a death at any earlier one."""
AFTER_RECORDS = (
    Step.VISIBLE,
    Step.RELEASED,
    Step.KEEPING,
    Step.PLACED,
    Step.INGESTED,
    Step.KEPT,
    Step.SYNCED,
    Step.BELIEVED,
)
"""When these are reached the image is there: a next life has nothing to pull."""
FAST_STEPS = (*BEFORE_RECORDS, Step.RECORDED, *AFTER_RECORDS)
PORTABLE_STEPS = (
    Step.LEASED,
    Step.DOCUMENTED,
    Step.ASKED,
    Step.FETCHED,
    Step.SPOOLED,
    Step.PLACED,
    Step.INGESTED,
    Step.PREPARED,
    Step.APPLIED,
    Step.COMMITTED,
    Step.RECORDED,
    Step.VISIBLE,
    Step.RELEASED,
    Step.SYNCED,
    Step.BELIEVED,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """`victim` is hit `delay` seconds after the `occurrence`th time (from 1) that the pull has done `step`.

    Without a step: `delay` seconds after the pull began, or after the fault before this one.
    """

    victim: Victim
    step: str = ""
    occurrence: int = 1
    delay: float = 0.0

    def __str__(self) -> str:
        return f"{self.victim}@{self.step}#{self.occurrence}+{self.delay:.4f}"

    @classmethod
    def parse(cls, text: str) -> Fault:
        victim, _, moment = text.partition("@")
        step, _, rest = moment.partition("#")
        occurrence, _, delay = rest.partition("+")
        return cls(Victim(victim), step, int(occurrence), float(delay))


@dataclass(frozen=True, slots=True)
class Way:
    """A path that layers take, as far as it can be hit.

    `victims`: each as often as it is named. `moments`: of what is not there all the time, the steps after which it is,
    before the pull has gone on for long. `options` are the agent's.
    """

    steps: tuple[Step, ...]
    victims: tuple[Victim, ...]
    moments: Mapping[Victim, Sequence[Step]]
    options: tuple[str, ...] = ()


FAST = Way(
    steps=FAST_STEPS,
    victims=(
        *[Victim.AGENT] * 5,
        *[Victim.DAEMON] * 5,
        *[Victim.WORKER] * 2,
        *[Victim.CONNECTION] * 2,
        Victim.ZYGOTE,
        Victim.LEASE,
        Victim.GAP,
    ),
    moments={
        Victim.WORKER: (Step.STAGED, Step.FETCHED, Step.UNPACKED, Step.COMMITTED),
        Victim.CONNECTION: (Step.FETCHED,),
        Victim.LEASE: (*BEFORE_RECORDS, Step.RECORDED, Step.KEEPING, Step.INGESTED),
        Victim.GAP: (
            Step.STAGED,
            Step.FETCHED,
            Step.SPOOLED,
            Step.UNPACKED,
            Step.INHERITED,
            Step.PREPARED,
        ),
    },
)
PORTABLE = Way(
    steps=PORTABLE_STEPS,
    victims=(*[Victim.AGENT] * 5, *[Victim.DAEMON] * 5, *[Victim.CONNECTION] * 2, *[Victim.LEASE] * 2),
    moments={
        Victim.CONNECTION: (Step.FETCHED,),
        Victim.LEASE: PORTABLE_STEPS[: PORTABLE_STEPS.index(Step.VISIBLE)],
    },
    options=("--extraction=portable",),
)
_OFTEN = (
    Step.FETCHED,
    Step.SPOOLED,
    Step.UNPACKED,
    Step.PREPARED,
    Step.EXCHANGED,
    Step.VOUCHED,
    Step.APPLIED,
    Step.COMMITTED,
    Step.PLACED,
    Step.INGESTED,
    Step.BELIEVED,
)
_LAYERS = 12


@dataclass(frozen=True, slots=True)
class Wish:
    """How the image is asked for, as far as its pull differs: `polite` beside the node's pods, where no gate waits."""

    polite: bool = False
    pin: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """Those of the agent, and of `python -m tests.faults`."""
        return ("--polite",) * self.polite + ("--pin",) * self.pin


def random_way(seed: int) -> Way:
    """Every fourth pull goes the portable path."""
    return FAST if seed % 4 else PORTABLE


def random_wish(seed: int) -> Wish:
    """Two of three are polite, as they are by default; on either path every other one is pinned."""
    return Wish(polite=seed % 3 > 0, pin=seed // 4 % 2 > 0)


def again(faults: Sequence[Fault], way: Way, wish: Wish) -> str:
    """The options of `python -m tests.faults` for these."""
    portable = ("--portable",) if way is PORTABLE else ()
    return " ".join((*portable, *wish.options, "--faults", *map(str, faults)))


def random_faults(
    seed: int,
    *,
    duration: float,
    way: Way = FAST,
    rare: Step | None = None,
    wanting: Victim | None = None,
    most: int = 3,
) -> list[Fault]:
    """Up to `most` kills of one pull that lasts `duration` seconds undisturbed.

    Half of them at a random time, which falls into the long steps, or now and then before the first one; half a few
    milliseconds after a step, or the short ones would never be hit: every other time after `rare`, if given, or a
    random one. What is there for a part of the pull only is hit a few milliseconds after a step of that part. Every
    fourth hits `wanting`, if given and the `way` has it.
    """
    chance = random.Random(seed)
    return [_random_fault(chance, duration, way, rare, wanting) for _ in range(chance.randint(1, most))]


def _random_fault(
    chance: random.Random, duration: float, way: Way, rare: Step | None, wanting: Victim | None
) -> Fault:
    victim = chance.choice(way.victims)
    if wanting is not None and wanting in way.victims and chance.random() < 0.25:
        victim = wanting
    if victim in way.moments:
        step = chance.choice(way.moments[victim])
        occurrence = chance.randint(1, _LAYERS) if step in _OFTEN else 1
        return Fault(victim, step.value, occurrence, chance.uniform(0, 0.005))
    if chance.random() < 0.5:
        return Fault(victim, delay=chance.uniform(0, duration if chance.random() < 0.9 else duration / 50))
    step = rare if rare is not None and chance.random() < 0.5 else chance.choice(way.steps)
    occurrence = chance.randint(1, _LAYERS) if step in _OFTEN else 1
    return Fault(victim, step.value, occurrence, chance.choice((0.0, 0.0, chance.uniform(0, 0.005))))
