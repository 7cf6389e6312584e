"""`python -m benchmarks.neighbour`: how long a neighbour's fsync takes while an image is pulled beside it.

The neighbour (fsync_loop) has a cgroup of its own and a file on the disk that the runtime is on, as a pod with an
emptyDir or a database on the node's disk has. Its waits are counted before the pull (quiet), from exec to the exit of the
pull's command (pull), and until a syncfs after it has ended (to disk): what a pull leaves in the page cache is written
back after it, and hurts as well.

How to read the table
    p50, p99, max   milliseconds of write and fsync, medians over the rounds of each round's figure
    ours/…          the p99 to disk of each of ours, divided by that of each containerd; not above 1 is the aim

The kernel is shared by whatever runs on the machine: measure with nobody else at work.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from benchmarks.accounting import group
from benchmarks.contenders import chosen
from benchmarks.daemon import containerds
from benchmarks.images import NAMES, WARM_UP, Image, Store, alone, cache
from benchmarks.machine import Unfit, check, environment
from benchmarks.plan import Turn, turns
from benchmarks.registry import registry
from benchmarks.trial import Bench, Conditions, PullFailed, bench
from benchmarks.units import size
from tests.testbed import cgroups
from tests.testbed.daemon import DaemonFailedError
from tests.testbed.errors import ClusterError

DEFAULT = ("ours-polite", "ours", "tuned-2.4", "stock-2.4")
OURS = ("ours", "ours-polite", "ours-portable", "ours-1.6")
QUIET = 5.0
"""Seconds of the neighbour alone, on the same disk, before each pull."""
ENTER = 'for group in $0; do echo $$ >"$group/cgroup.procs"; done; exec "$@"'
PATIENCE = 60.0
CHECKOUT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds of write and fsync in one phase."""

    count: int
    p50: float
    p99: float
    longest: float

    @classmethod
    def of(cls, samples: Sequence[tuple[float, float]], start: float, end: float) -> Waits:
        """Of the samples (started, waited) that overlap the phase; one that began before it and hung counts."""
        found = sorted(waited for began, waited in samples if began < end and began + waited >= start)
        if not found:
            return cls(0, 0.0, 0.0, 0.0)
        return cls(len(found), percentile(found, 50), percentile(found, 99), found[-1])


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent do not exceed; `ordered` ascends and is not empty."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Result:
    """One pull beside the neighbour. `seconds` of the command; `on_disk` until a syncfs after it had ended."""

    contender: str
    image: str
    seconds: float
    on_disk: float
    quiet: Waits
    pull: Waits
    to_disk: Waits


@contextmanager
def neighbour(folder: Path, result: Path) -> Iterator[None]:
    """At work within the block, in a cgroup of its own in every hierarchy; then `result` has its samples."""
    name = f"imageprepull-bench-{os.getpid()}-neighbour"
    groups = " ".join(map(str, cgroups.make(name)))
    command = [sys.executable, "-m", "benchmarks.fsync_loop", str(folder / "neighbour"), str(result)]
    process = subprocess.Popen(  # noqa: S603 - our own
        ["/bin/sh", "-c", ENTER, groups, *command], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )
    try:
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise PullFailed("the neighbour did not begin")
        yield
        process.terminate()
        if process.wait(PATIENCE):
            raise PullFailed(f"the neighbour ended with {process.returncode}")
    finally:
        cgroups.kill(name, "neighbour")
        process.wait(PATIENCE)
        cgroups.remove(name, "neighbour")


def beside(made: Bench, image: Image, quiet: float) -> Result:
    """One pull on a fresh bench. Raises PullFailed."""
    made.pull(made.conditions.store.image(WARM_UP))
    made.conditions.store.read_ahead(image)
    made.disk.sync()
    # Not on the disk that is measured.
    with TemporaryDirectory(prefix="imageprepull-neighbour-") as folder:
        result = Path(folder) / "samples"
        with neighbour(made.disk.folder, result):
            began = time.monotonic()
            time.sleep(quiet)
            started = time.monotonic()
            made.pull(image)
            ended = time.monotonic()
            made.disk.sync()
            synced = time.monotonic()
        samples = [(moment, waited) for moment, waited in json.loads(result.read_text())]
    return Result(
        contender=made.contender.name,
        image=image.name,
        seconds=ended - started,
        on_disk=synced - started,
        quiet=Waits.of(samples, began, started),
        pull=Waits.of(samples, started, ended),
        to_disk=Waits.of(samples, started, synced),
    )


def run(plan: Sequence[Turn], conditions: Conditions, quiet: float) -> Iterator[Result]:
    """All turns, with a line on stderr for each; a contender that fails does not end the run."""
    for number, turn in enumerate(plan, 1):
        label = f"[{number}/{len(plan)}] round {turn.round}, {turn.image.name}, {turn.contender.name}"
        try:
            with bench(turn.contender, conditions) as made:
                result = beside(made, turn.image, quiet)
        except PullFailed as failure:
            sys.stderr.write(f"{label}: FAILED: {failure}\n")
            continue
        sys.stderr.write(
            f"{label}: {result.seconds:.1f} s, p99 {result.quiet.p99 * 1e3:.1f} ms quiet, "
            f"{result.pull.p99 * 1e3:.1f} ms meanwhile, {result.to_disk.p99 * 1e3:.1f} ms to disk\n"
        )
        yield result


@dataclass(frozen=True, slots=True)
class Summary:
    """A contender's medians over its rounds, in seconds."""

    contender: str
    runs: int
    seconds: float
    quiet_p99: float
    pull_p50: float
    pull_p99: float
    pull_longest: float
    to_disk_p99: float


def summaries(results: Sequence[Result]) -> list[Summary]:
    """In the order in which contenders first appear."""
    names = dict.fromkeys(result.contender for result in results)
    return [_summary(name, [one for one in results if one.contender == name]) for name in names]


def _summary(name: str, runs: Sequence[Result]) -> Summary:
    return Summary(
        name,
        len(runs),
        median(run.seconds for run in runs),
        median(run.quiet.p99 for run in runs),
        median(run.pull.p50 for run in runs),
        median(run.pull.p99 for run in runs),
        median(run.pull.longest for run in runs),
        median(run.to_disk.p99 for run in runs),
    )


def show(console: Console, image: str, found: Sequence[Summary]) -> None:
    """The table of one image."""
    table = Table(title=f"a neighbour's fsync beside the pull of {image}, ms", title_justify="left")
    table.add_column("contender")
    for column in ("rounds", "pull s", "quiet p99", "p50", "p99", "max", "to disk p99"):
        table.add_column(column, justify="right")
    for one in found:
        waits = (one.quiet_p99, one.pull_p50, one.pull_p99, one.pull_longest, one.to_disk_p99)
        table.add_row(
            one.contender, str(one.runs), f"{one.seconds:.1f}", *(f"{wait * 1e3:.1f}" for wait in waits)
        )
    console.print(table)
    for ours in (one for one in found if one.contender in OURS):
        against = [
            f"{ours.to_disk_p99 / theirs.to_disk_p99:.2f} of {theirs.contender}"
            for theirs in found
            if theirs.contender not in OURS and theirs.to_disk_p99
        ]
        if against:
            console.print(f"{ours.contender}: p99 to disk {', '.join(against)}", highlight=False)


def parser() -> argparse.ArgumentParser:
    """All flags."""
    main = argparse.ArgumentParser(
        prog="python -m benchmarks.neighbour",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = main.add_argument
    add("--image", choices=NAMES, default="eight", help="default: %(default)s")
    add("--contender", action="append", default=[], metavar="NAME", help=f"default: {', '.join(DEFAULT)}")
    add("--command", action="append", default=[], metavar="NAME=DAEMON:COMMAND", help="as of benchmarks")
    add("--rounds", type=int, default=3, help="pulls by each (default: %(default)s)")
    add("--disk-rate", type=size, default=0, metavar="RATE", help="slow the disk down, such as 125M")
    add("--quiet", type=float, default=QUIET, metavar="SECONDS", help="default: %(default)s")
    add("--json", type=Path, metavar="FILE", help="default: in the cache, named after the time")
    add("--force", action="store_true", help="measure even while others work")
    return main


def measure(arguments: argparse.Namespace) -> int:
    """Pull, print, keep; 1 when a pull failed."""
    contenders = chosen(arguments.contender or DEFAULT, arguments.command, sync=False)
    problems = check(force=arguments.force)
    store = Store()
    image = store.image(arguments.image)
    path = arguments.json or cache() / "results" / f"neighbour-{time.strftime('%Y%m%d-%H%M%S')}.json"
    document = {
        "environment": environment(containerds()) | {"problems": problems},
        "diskRate": arguments.disk_rate,
    }
    plan = list(turns([image], contenders, arguments.rounds))
    results: list[Result] = []
    with ExitStack() as stack:
        cpu_group = stack.enter_context(group("registry"))
        served = stack.enter_context(registry("static", store, cache() / "registry", cpu_group))
        for result in run(plan, Conditions(store, served, None, arguments.disk_rate), arguments.quiet):
            results.append(result)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(document | {"results": [asdict(one) for one in results]}, indent=1))
    console = Console(width=None if sys.stdout.isatty() else 160)
    show(console, image.name, summaries(results))
    for line in (*problems, str(path)):
        console.print(line, highlight=False, soft_wrap=True)
    return int(len(results) < len(plan))


def main() -> int:
    """Entry; 2 when it cannot measure here."""
    arguments = parser().parse_args()
    if os.geteuid() != 0:
        sys.stderr.write("benchmarks: mounts and cgroups need root\n")
        return 2
    try:
        with alone(cache() / "lock", "measuring"):
            return measure(arguments)
    except (Unfit, ValueError, ClusterError, DaemonFailedError) as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
