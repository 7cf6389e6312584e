"""All pulls of a run, in order: contenders alternate, each round begins with another one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.contenders import Contender
from benchmarks.images import Image
from benchmarks.trial import Conditions, PullFailed, Result, trial


@dataclass(frozen=True, slots=True)
class Turn:
    """Who pulls what in which round (from 1)."""

    round: int
    image: Image
    contender: Contender


def turns(images: Sequence[Image], contenders: Sequence[Contender], rounds: int) -> Iterator[Turn]:
    """Image by image, and of each all rounds: no contender is always the first, or always follows the same one."""
    for image in images:
        for number in range(rounds):
            start = number % len(contenders)
            order = [*contenders[start:], *contenders[:start]]
            if number % 2:
                order.reverse()
            for contender in order:
                yield Turn(number + 1, image, contender)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a turn: a result, or why there is none."""

    turn: Turn
    result: Result | None
    failure: str = ""


def run(plan: Sequence[Turn], conditions: Conditions) -> Iterator[Outcome]:
    """Do it, with a line on stderr for each; a contender that fails does not end the run."""
    for number, turn in enumerate(plan, 1):
        label = f"[{number}/{len(plan)}] round {turn.round}, {turn.image.name}, {turn.contender.name}"
        try:
            result = trial(turn.contender, turn.image, conditions)
        except PullFailed as failure:
            sys.stderr.write(f"{label}: FAILED: {failure}\n")
            yield Outcome(turn, None, str(failure))
        else:
            sys.stderr.write(
                f"{label}: ready {result.ready:.1f} s, done {result.done:.1f} s, CPU {result.cpu:.1f} s, "
                f"other {result.other_cpu:.1f} s\n"
            )
            yield Outcome(turn, result)
