"""How many polite workers may unpack at once while the node's disks are busy: by the kernel's pressure stall figures.

/proc/pressure/io says for how much of the last ten seconds some task waited for a disk. Whoever waits is a neighbour
or ourselves; either way more of us at once would only make all wait longer. Urgent pulls don't follow it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from imageprepull.pulling.threads import in_thread

log = structlog.get_logger(__name__)
_SOME = re.compile(r"^some avg10=([0-9]+(?:\.[0-9]+)?) ", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PressureTerms:
    """Percent of time and seconds. Between `low` and `high` nothing changes: else it would swing with its own effect.

    `path`: without the file (no PSI in the kernel) there is no limit. `interval`: between two steps of one worker.
    """

    path: Path = Path("/proc/pressure/io")
    interval: float = 5
    low: float = 15
    high: float = 40


def next_limit(limit: int, most: int, stalled: float | None, terms: PressureTerms) -> int:
    """The workers at once from now on, at least one; `stalled` is `some avg10`, None where there is none."""
    if stalled is None:
        return most
    if stalled >= terms.high:
        limit -= 1
    elif stalled <= terms.low:
        limit += 1
    return max(1, min(most, limit))


def read_stalled(path: Path) -> float | None:
    """`some avg10` of a pressure file; None where there is no such file, or it has another form."""
    try:
        found = _SOME.search(path.read_text())
    except OSError:
        return None
    return float(found[1]) if found else None


async def follow(terms: PressureTerms, most: int, apply: Callable[[int], None]) -> None:
    """Have `apply` called with each new limit, until cancelled. Ends at once where there is no pressure to see."""
    limit = most
    while (stalled := await in_thread(lambda: read_stalled(terms.path))) is not None:
        wanted = next_limit(limit, most, stalled, terms)
        if wanted != limit:
            log.info("polite unpacking follows the disks", stalled_percent=stalled, at_once=wanted)
            apply(wanted)
            limit = wanted
        await asyncio.sleep(terms.interval)
    apply(most)
