"""What `kubectl image-prepull status` and `wait` make of an object. Pure: documents in, text or verdict out."""

from __future__ import annotations

import argparse
import io
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from imageprepull.cli import repair, retry, wait
from imageprepull.cli.screen import headline
from imageprepull.cli.status_view import detailed, overview, settled, size_text
from imageprepull.cli.wait import verdict
from imageprepull.cli.waiting import DONE, FAILED, duration
from imageprepull.resources.base import decode
from imageprepull.resources.imageprepull import ImagePrepull

LAYERS = [{"digest": f"sha256:{number:064x}", "size": 10_000_000 * number} for number in (1, 2, 3)]


def condition(kind: str, status: str, reason: str, message: str = "", generation: int = 2) -> dict[str, Any]:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": generation,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


def document(*conditions: dict[str, Any], **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "models", "namespace": "ml", "generation": 2, "resourceVersion": "7"},
        "spec": {"images": [{"image": "registry.example/llm:1"}]},
        "status": {"conditions": list(conditions), **status},
    }


def in_work() -> dict[str, Any]:
    return document(
        condition("Ready", "False", "Pulling", "1 of 2 nodes"),
        readyNodes="1/2",
        progress="50%",
        nodes={"desired": 2, "ready": 1, "pulling": 1, "waiting": 0, "failed": 0, "skipped": 0},
        bytes={"total": 120_000_000, "done": 60_000_000},
        images=[
            {
                "image": "registry.example/llm:1",
                "digest": "sha256:" + "a" * 64,
                "nodesReady": 1,
                "platforms": [
                    {
                        "platform": "linux/amd64",
                        "manifest": "sha256:" + "b" * 64,
                        "config": "sha256:" + "c" * 64,
                        "size": 60_000_000,
                        "layers": LAYERS,
                    }
                ],
            }
        ],
        nodeDetails=[
            {
                "node": "a",
                "state": "ready",
                "images": [{"image": "registry.example/llm:1", "state": "Ready", "layerStates": "EAA"}],
            },
            {
                "node": "b",
                "state": "pulling",
                "images": [
                    {
                        "image": "registry.example/llm:1",
                        "state": "Pulling",
                        "layers": [
                            {"state": "Applied", "done": 10_000_000},
                            {"state": "Downloading", "done": 5_000_000},
                            {"state": "Waiting"},
                        ],
                    }
                ],
            },
        ],
    )


def drawn(renderable: Any) -> str:
    output = io.StringIO()
    Console(file=output, width=160, color_system=None).print(renderable)
    return output.getvalue()


def test_every_layer_is_shown_with_its_state_on_every_node() -> None:
    lines = drawn(detailed(in_work(), layers=False)).splitlines()
    rows = [line.split() for line in lines if "00000000000" in line]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert "Exists" in rows[0]
    assert "Applied" in rows[0]
    assert rows[1][-2:] == ["Downloading", "25%"]
    assert rows[2][-1] == "Waiting"


def test_the_headline_tells_the_story_in_one_line() -> None:
    line = headline(decode(ImagePrepull, in_work()))
    assert line == "ml/models  Ready=False (Pulling)  nodes 1/2  50%  60.0 MB of 120.0 MB  1 of 2 nodes"


def test_an_object_that_nobody_looked_at_asks_for_the_operator() -> None:
    bare = document()
    del bare["status"]
    assert "is it running?" in drawn(detailed(bare, layers=False))
    assert not settled(bare)


def test_a_failure_is_shown_with_its_example() -> None:
    broken = document(
        condition("Ready", "False", "Failed"),
        failures=[{"reason": "NotFound", "count": 3, "exampleNode": "b", "message": "no such tag"}],
    )
    assert "3 x NotFound (e.g. b): no such tag" in drawn(detailed(broken, layers=False))


def test_markup_in_messages_is_shown_not_interpreted() -> None:
    hostile = document(condition("Ready", "False", "Pulling", "[bold]x[/bold] [link=http://e]y"))
    assert "[bold]x[/bold] [link=http://e]y" in drawn(detailed(hostile, layers=False))


def test_the_overview_has_a_line_an_object() -> None:
    assert "models" in drawn(overview([in_work()], "ml"))
    assert "No ImagePrepull in namespace ml" in drawn(overview([], "ml"))


@pytest.mark.parametrize(
    ("conditions", "code"),
    [
        ([], None),
        ([condition("Ready", "True", "Ready")], DONE),
        ([condition("Ready", "True", "Ready", generation=1)], None),
        ([condition("Ready", "False", "Pulling")], None),
        ([condition("Ready", "False", "X"), condition("Stalled", "True", "InvalidReference")], FAILED),
        ([condition("Stalled", "True", "InvalidReference", generation=1)], None),
        ([condition("Stalled", "False", "Fine")], None),
    ],
)
def test_wait_ends_on_ready_and_on_stalled_of_this_generation(
    conditions: list[dict[str, Any]], code: int | None
) -> None:
    assert verdict(document(*conditions))[0] == code


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"), (3 * 10**12, "3.0 TB")],
)
def test_sizes_are_decimal(count: int, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("1.5", 1.5), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("1h0m5s", 3605)],
)
def test_a_timeout_is_written_as_for_kubectl(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("command", [wait, retry, repair])
def test_whoever_names_no_time_waits_for_the_same_finite_one(command: ModuleType) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert parser.parse_args(["name"]).timeout == 600
    assert parser.parse_args(["name", "--timeout=0"]).timeout == 0, "for ever, when it is asked for"
    assert "10m" in " ".join(parser.format_help().split()).partition("--timeout TIME")[2]


@pytest.mark.parametrize("text", ["", "soon", "-1", "5d", "m", "1m2h", "nan", "inf"])
def test_what_is_no_time_is_refused_with_examples(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="10m"):
        duration(text)
