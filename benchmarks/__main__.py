"""`python -m benchmarks`: compare pulls. How to read what it prints is in the package's docstring (`__init__.py`)."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

import benchmarks
from benchmarks import report
from benchmarks.accounting import group
from benchmarks.contenders import DEFAULT, Contender, chosen, known
from benchmarks.daemon import containerds
from benchmarks.disk import fresh_disk
from benchmarks.images import NAMES, Image, Store, alone, cache
from benchmarks.link import slow_link
from benchmarks.machine import Unfit, check, environment
from benchmarks.plan import Outcome, run, turns
from benchmarks.registry import KINDS, registry
from benchmarks.trial import Conditions
from benchmarks.units import seconds, size
from tests.testbed.daemon import DaemonFailedError
from tests.testbed.errors import ClusterError


def parser() -> argparse.ArgumentParser:
    """All flags."""
    main = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = main.add_argument
    add("--image", action="append", choices=(*NAMES, "all"), help="repeatable (default: eight)")
    add("--contender", action="append", default=[], metavar="NAME", help=f"default: {', '.join(DEFAULT)}")
    add(
        "--command",
        action="append",
        default=[],
        metavar="NAME=DAEMON:COMMAND",
        help="one more; DAEMON is 2.4, 2.4-tuned or 1.6, COMMAND has {image} {socket} {certs} {folder}",
    )
    add("--rounds", type=int, default=3, help="pulls of each by each (default: %(default)s)")
    add("--disk-rate", type=size, default=0, metavar="RATE", help="slow the disk down, such as 125M")
    add("--link", type=size, default=0, metavar="RATE", help="slow the registry down in all, such as 50M")
    add("--delay", type=seconds, default=0.0, metavar="TIME", help="with --link: per request, such as 20ms")
    add("--sync", action="store_true", help="files are on disk before the image counts as pulled")
    add("--registry", choices=KINDS, default="static", help="who serves (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="default: in the cache, named after the time")
    add("--force", action="store_true", help="measure even while others work")
    add("--list", action="store_true", help="list images and contenders, and end")
    return main


def describe(image: Image) -> str:
    """What an image is, for a title."""
    return (
        f"{image.name}: {len(image.layers)} layers, {image.compressed / 1e9:.2f} GB compressed, "
        f"{image.unpacked / 1e9:.2f} GB in {image.files} files"
    )


def circumstances(arguments: argparse.Namespace) -> str:
    """What was slowed down."""
    parts = []
    if arguments.disk_rate:
        parts.append(f"disk {arguments.disk_rate / 1e6:.0f} MB/s")
    if arguments.link:
        parts.append(f"link {arguments.link / 1e6:.0f} MB/s, {arguments.delay * 1e3:.0f} ms per request")
    if arguments.sync:
        parts.append("synced before it counts")
    return "; ".join(parts)


def listing() -> str:
    """What can be chosen."""
    lines = [describe(image) for image in Store().images().values()] or ["no image was made yet"]
    lines += [
        f"{one.name}: containerd {one.setup.version}: {' '.join(one.command)}" for one in known().values()
    ]
    return "\n".join(lines) + "\n"


def measure(arguments: argparse.Namespace, contenders: Sequence[Contender]) -> int:
    """Pull, print, keep; 1 when a pull failed."""
    problems = check(force=arguments.force)
    store = Store()
    names = arguments.image or ["eight"]
    images = [store.image(name) for name in (NAMES if "all" in names else names)]
    surroundings = environment(containerds()) | {"problems": problems}
    settings = {
        "contenders": {one.name: {"setup": str(one.setup), "command": one.command} for one in contenders},
        "images": [describe(image) for image in images],
        "rounds": arguments.rounds,
        "diskRate": arguments.disk_rate,
        "linkRate": arguments.link,
        "delay": arguments.delay,
        "sync": arguments.sync,
        "registry": arguments.registry,
    }
    path = arguments.json or cache() / "results" / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        cpu_group = stack.enter_context(group("registry"))
        folder = cache() / "registry"
        served = stack.enter_context(registry(arguments.registry, store, folder, cpu_group))
        store.read_ahead(images[0])
        surroundings["registryBytesPerSecond"] = round(served.measure(images[0]))
        if arguments.disk_rate:
            with fresh_disk(arguments.disk_rate) as disk:
                surroundings["diskBytesPerSecond"] = round(disk.measure())
        link = None
        if arguments.link:
            link = stack.enter_context(slow_link(served, folder, arguments.link, arguments.delay))
        conditions = Conditions(store, served, link, arguments.disk_rate)
        for outcome in run(list(turns(images, contenders, arguments.rounds)), conditions):
            outcomes.append(outcome)
            # After each: an interrupted run has told what it knew.
            report.keep(path, report.document(settings, surroundings, outcomes))
    console = Console(width=None if sys.stdout.isatty() else 200)
    results = [outcome.result for outcome in outcomes if outcome.result]
    report.show(console, {image.name: describe(image) for image in images}, results)
    for line in (circumstances(arguments), *problems, str(path)):
        if line:
            console.print(line, highlight=False, soft_wrap=True)
    return int(any(outcome.failure for outcome in outcomes))


def main() -> int:
    """Entry of `python -m benchmarks`; 2 when it cannot measure here."""
    arguments = parser().parse_args()
    if os.geteuid() != 0:
        sys.stderr.write("benchmarks: mounts and cgroups need root\n")
        return 2
    try:
        if arguments.list:
            sys.stdout.write(listing())
            return 0
        contenders = chosen(arguments.contender, arguments.command, sync=arguments.sync)
        with alone(cache() / "lock", "measuring"):
            return measure(arguments, contenders)
    except (Unfit, ValueError, ClusterError, DaemonFailedError) as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
