"""From single results to medians, ratios, the table and the JSON document."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.contenders import OURS
from benchmarks.plan import Outcome
from benchmarks.trial import Result


@dataclass(frozen=True, slots=True)
class Summary:
    """A contender's medians over the rounds that succeeded, for one image. Seconds."""

    contender: str
    runs: int
    ready: float
    done: float
    on_disk: float
    cpu: float
    daemon_cpu: float
    registry_cpu: float
    other_cpu: float
    fastest: float
    slowest: float
    """The range of `ready`."""
    present: float | None = None
    link_share: float | None = None
    beyond_link: float | None = None
    """Seconds from what the link takes at least to ready."""


def summaries(results: Iterable[Result]) -> dict[str, list[Summary]]:
    """By image, contenders in the order in which they first appear."""
    found: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        found.setdefault(result.image, {}).setdefault(result.contender, []).append(result)
    return {
        image: [summary(name, runs) for name, runs in contenders.items()]
        for image, contenders in found.items()
    }


def summary(name: str, runs: Sequence[Result]) -> Summary:
    """Each figure's own median, not one run's."""
    present = [run.present for run in runs if run.present is not None]
    links = [(run.ready, run.link) for run in runs if run.link is not None]
    return Summary(
        contender=name,
        runs=len(runs),
        ready=median(run.ready for run in runs),
        done=median(run.done for run in runs),
        on_disk=median(run.on_disk for run in runs),
        cpu=median(run.cpu for run in runs),
        daemon_cpu=median(run.cpu - run.command_cpu for run in runs),
        registry_cpu=median(run.registry_cpu for run in runs),
        other_cpu=median(run.other_cpu for run in runs),
        fastest=min(run.ready for run in runs),
        slowest=max(run.ready for run in runs),
        present=median(present) if present else None,
        link_share=median(link["share"] for _, link in links) if links else None,
        beyond_link=median(ready - link["link_seconds"] for ready, link in links) if links else None,
    )


def ratios(ours: Summary, theirs: Summary) -> dict[str, float]:
    """Ours divided by theirs; of the disk, ours as it is against theirs after a syncfs."""
    return {
        "ready": ours.ready / theirs.ready,
        "done": ours.done / theirs.done,
        "onDisk": ours.on_disk / theirs.on_disk,
        "cpu": ours.cpu / theirs.cpu,
    }


def table(title: str, rows: Sequence[Summary]) -> Table:
    """One image's figures."""
    drawn = Table(title=title, title_justify="left")
    linked = any(row.link_share is not None for row in rows)
    drawn.add_column("contender", no_wrap=True)
    headers = ["runs", "ready s", "range", "done s", "on disk s", "CPU s", "of daemon", "registry", "other"]
    headers += ["ours/ready", "ours/done", "ours/CPU"]
    headers += ["link used", "beyond link s"] if linked else []
    for header in headers:
        drawn.add_column(header, justify="right")
    ours = next((row for row in rows if row.contender == OURS), None)
    for row in rows:
        cells = [
            row.contender,
            str(row.runs),
            f"{row.ready:.1f}",
            f"{row.fastest:.1f}-{row.slowest:.1f}",
            f"{row.done:.1f}",
            f"{row.on_disk:.1f}",
            f"{row.cpu:.1f}",
            f"{row.daemon_cpu:.1f}",
            f"{row.registry_cpu:.1f}",
            f"{row.other_cpu:.1f}",
        ]
        if ours is None or row is ours:
            cells += ["", "", ""]
        else:
            found = ratios(ours, row)
            cells += [f"{found['ready']:.2f}", f"{found['done']:.2f}", f"{found['cpu']:.2f}"]
        if linked and row.link_share is not None and row.beyond_link is not None:
            cells += [f"{row.link_share:.0%}", f"{row.beyond_link:.1f}"]
        drawn.add_row(*cells)
    return drawn


def show(console: Console, titles: dict[str, str], results: Iterable[Result]) -> None:
    """A table per image; `titles` says what each image is."""
    for image, rows in summaries(results).items():
        console.print(table(titles.get(image, image), rows))
        for row in rows:
            if row.present is not None:
                console.print(
                    f"{row.contender}, image already there: {row.present:.2f} s from exec to the end of the process"
                )


def document(settings: dict[str, Any], environment: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """All that was measured, as JSON."""
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    by_image = {}
    for image, rows in summaries(results).items():
        ours = next((row for row in rows if row.contender == OURS), None)
        by_image[image] = {
            row.contender: {
                "runs": row.runs,
                "ready": row.ready,
                "done": row.done,
                "onDisk": row.on_disk,
                "cpu": row.cpu,
                "daemonCpu": row.daemon_cpu,
                "oursDividedByThis": ratios(ours, row) if ours else None,
            }
            for row in rows
        }
    return json.dumps(
        {
            "settings": settings,
            "environment": environment,
            "medians": by_image,
            "runs": [
                {
                    "round": outcome.turn.round,
                    "image": outcome.turn.image.name,
                    "contender": outcome.turn.contender.name,
                    "failure": outcome.failure,
                    "result": outcome.result.as_json() if outcome.result else None,
                }
                for outcome in outcomes
            ],
        },
        indent=1,
    )


def keep(path: Path, text: str) -> None:
    """Write a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text)
    unfinished.rename(path)
