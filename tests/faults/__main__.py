"""The long run: `python -m tests.faults --version 2.4 --kills 250`. Cut off, it goes on where it was.

Each round has a seed and a line in the journal (tests/journal.py). Rounds of the same engine code add up, whatever
else has changed since: they are kept by a digest of the files that a round executes. `--faults` runs one round again,
as a line printed it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import sys
import time
from pathlib import Path

from tests.faults.faults import (
    FAST,
    PORTABLE,
    Fault,
    Way,
    Wish,
    again,
    random_faults,
    random_way,
    random_wish,
)
from tests.faults.node import machine
from tests.faults.round import Outcome
from tests.faults.stage import DURATION, Stage, stage
from tests.faults.tally import Hit, least_hit, missed, rarest, table
from tests.journal import PASSED, Chunk, Journal

ENGINE = (
    "agent",
    "cli/start.py",
    "kube",
    "oci",
    "pulling",
    "registry",
    "resources",
    "runtime",
    "telemetry",
    "unpacking",
)
"""What the victim runs."""
CHECKOUT = Path(__file__).parents[2]


def engine_digest(checkout: Path = CHECKOUT) -> str:
    """What the rounds are about: the code that they execute, as it is in the checkout."""
    found = hashlib.sha256()
    for part in ENGINE:
        place = checkout / "operator/imageprepull" / part
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            found.update(str(path.relative_to(checkout)).encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:12]


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Campaign:
    """Rounds until enough kills are journaled."""

    def __init__(self, version: str, kills: int, seconds: float) -> None:
        self.journal = Journal(f"faults-{version}")
        self.engine = engine_digest()
        self._version = version
        self._kills = kills
        self._until = time.monotonic() + seconds
        self.done = self.journal.done(self.engine)

    @property
    def hits(self) -> list[Hit]:
        return [Hit.parse(hit) for chunk in self.done.values() for hit in chunk.detail.split()]

    @property
    def failed(self) -> list[Chunk]:
        return [chunk for chunk in self.done.values() if chunk.outcome != PASSED]

    async def run(self) -> None:
        with machine(self._version) as running:
            async with stage(running) as found:
                while len(self.hits) < self._kills and time.monotonic() < self._until:
                    await self._round(found, len(self.done) + 1)

    async def _round(self, found: Stage, seed: int) -> None:
        way, wish = random_way(seed), random_wish(seed)
        faults = random_faults(
            seed, duration=DURATION, way=way, rare=rarest(self.hits, way), wanting=least_hit(self.hits)
        )
        outcome = await found.round(faults, options=way.options, wish=wish)
        verdict = "; ".join(outcome.complaints[:3]) or PASSED
        hits = " ".join(map(str, outcome.hits))
        chunk = Chunk(
            self.engine, seed, len(outcome.hits), verdict, round(outcome.seconds, 1), round(time.time()), hits
        )
        self.journal.add(chunk)
        self.done[seed] = chunk
        say(
            f"{self._version} seed {seed}: {verdict} in {outcome.seconds:.1f} s, {len(self.hits)} kills; {hits}"
        )
        if outcome.complaints:
            show(faults, way, wish, outcome)


def show(faults: list[Fault], way: Way, wish: Wish, outcome: Outcome) -> None:
    say(f"again: {again(faults, way, wish)}")
    log = Journal("faults").path.with_name(f"faults-{time.time():.0f}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("\n".join(outcome.complaints) + "\n\n" + outcome.log)
    say(f"log: {log}")


async def once(version: str, faults: list[Fault], way: Way, wish: Wish) -> int:
    with machine(version) as running:
        async with stage(running) as found:
            outcome = await found.round(faults, options=way.options, wish=wish)
    say(f"{' '.join(map(str, outcome.hits))} in {outcome.seconds:.1f} s, attempts failed: {outcome.reasons}")
    if outcome.spared:
        say(f"found nothing to hit: {' '.join(map(str, outcome.spared))}")
    say("\n".join(outcome.complaints) or PASSED)
    if outcome.complaints:
        show(faults, way, wish, outcome)
    return 1 if outcome.complaints else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--version", choices=["1.6", "2.4"], required=True)
    parser.add_argument("--kills", type=int, default=250, help="in all, earlier runs included")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no round after these")
    parser.add_argument("--faults", nargs="*", type=Fault.parse)
    parser.add_argument("--portable", action="store_true", help="with --faults: on the portable path")
    parser.add_argument(
        "--polite", action="store_true", help="with --faults: of an image that no gate waits for"
    )
    parser.add_argument("--pin", action="store_true", help="with --faults: of an image that is pinned")
    arguments = parser.parse_args()
    if arguments.faults is not None:
        way = PORTABLE if arguments.portable else FAST
        wish = Wish(arguments.polite, arguments.pin)
        return asyncio.run(once(arguments.version, arguments.faults, way, wish))
    campaign = Campaign(arguments.version, arguments.kills, arguments.seconds)
    asyncio.run(campaign.run())
    say(table(campaign.hits))
    say(f"{len(campaign.done)} rounds on engine {campaign.engine}, {len(campaign.failed)} failed")
    for chunk in campaign.failed:
        say(f"seed {chunk.seed}: {chunk.outcome}; {chunk.detail}")
    never = missed(campaign.hits)
    if never:
        say(f"never hit: {', '.join(never)}")
    return 1 if campaign.failed or never or len(campaign.hits) < arguments.kills else 0


if __name__ == "__main__":
    sys.exit(main())
