"""The arithmetic of the benchmark: amounts, order of pulls, medians, ratios, the table and the JSON."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from benchmarks import units
from benchmarks.contenders import Contender
from benchmarks.daemon import Setup
from benchmarks.images import Image
from benchmarks.link import use_of
from benchmarks.plan import Outcome, Turn, turns
from benchmarks.report import document, ratios, show, summaries, summary
from benchmarks.trial import Result

IMAGE = Image("eight", "sha256:m", "type", "sha256:c", "sha256:t", ("sha256:l",), 10, 20, 3)
RESULT = Result(
    contender="ours",
    image="eight",
    ready=4.0,
    done=5.0,
    on_disk=6.0,
    cpu=8.0,
    command_cpu=6.0,
    cpu_by_role={},
    registry_cpu=0.5,
    other_cpu=1.0,
    stolen_cpu=0.0,
    anonymous={},
    at_once={},
    registry={},
)


def result(contender: str, ready: float, **fields: Any) -> Result:
    return replace(RESULT, contender=contender, ready=ready, **fields)


def contender(name: str) -> Contender:
    return Contender(name, Setup(), ("true",))


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("125M", 125_000_000),
        ("50MB/s", 50_000_000),
        ("8Mi", 8 << 20),
        ("8MiB", 8 << 20),
        ("7", 7),
        ("1.5k", 1500),
    ],
)
def test_a_rate_is_written_as_people_do(text: str, amount: int) -> None:
    assert units.size(text) == amount


@pytest.mark.parametrize(("text", "amount"), [("20ms", 0.02), ("0.5", 0.5), ("3s", 3.0)])
def test_a_time_is_written_as_people_do(text: str, amount: float) -> None:
    assert units.seconds(text) == pytest.approx(amount)


@pytest.mark.parametrize("text", ["", "fast", "12Q", "-3M"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        units.size(text)
    with pytest.raises(ValueError, match="is not a"):
        units.seconds(text)


def test_every_contender_pulls_once_per_round_and_none_is_always_first() -> None:
    contenders = [contender(name) for name in "abc"]
    plan = list(turns([IMAGE], contenders, 3))
    rounds = [[turn.contender.name for turn in plan if turn.round == number] for number in (1, 2, 3)]
    assert [sorted(names) for names in rounds] == [["a", "b", "c"]] * 3
    assert len({names[0] for names in rounds}) > 1


def test_each_figure_has_its_own_median_and_ready_its_range() -> None:
    runs = [
        result("ours", 1.0, cpu=9.0, present=0.3),
        result("ours", 2.0, cpu=1.0, present=0.1),
        result("ours", 7.0, cpu=5.0),
    ]
    found = summary("ours", runs)
    assert (found.ready, found.cpu, found.fastest, found.slowest) == (2.0, 5.0, 1.0, 7.0)
    assert found.present == pytest.approx(0.2)
    assert found.link_share is None


def test_ratios_are_ours_divided_by_theirs() -> None:
    ours = summary("ours", [result("ours", 4.0)])
    theirs = summary("tuned", [result("tuned", 10.0, done=10.0, on_disk=12.0, cpu=20.0)])
    assert ratios(ours, theirs) == {"ready": 0.4, "done": 0.5, "onDisk": 0.5, "cpu": 0.4}


def test_results_are_kept_apart_by_image_in_order() -> None:
    found = summaries([result("b", 1), result("a", 2), result("b", 3), result("a", 4, image="zstd")])
    assert {image: [row.contender for row in rows] for image, rows in found.items()} == {
        "eight": ["b", "a"],
        "zstd": ["a"],
    }


def test_the_table_shows_ratios_only_beside_others() -> None:
    output = io.StringIO()
    results = [result("ours", 4.0, present=0.25), result("tuned", 10.0, done=10.0, cpu=16.0)]
    show(Console(file=output, width=160), {"eight": "eight: an image"}, results)
    lines = output.getvalue().splitlines()
    tuned = next(line for line in lines if "tuned" in line)
    assert "0.40" in tuned
    assert "0.50" in tuned
    assert "already there: 0.25 s" in lines[-1]


def test_the_document_has_failures_and_ratios() -> None:
    outcomes = [
        Outcome(Turn(1, IMAGE, contender("ours")), RESULT),
        Outcome(Turn(1, IMAGE, contender("tuned")), result("tuned", 8.0)),
        Outcome(Turn(1, IMAGE, contender("broken")), None, "it broke"),
    ]
    found = json.loads(document({"rounds": 1}, {"cores": 2}, outcomes))
    assert found["medians"]["eight"]["tuned"]["oursDividedByThis"]["ready"] == 0.5
    assert [run["failure"] for run in found["runs"]] == ["", "", "it broke"]
    assert found["runs"][0]["result"]["cpu"] == 8.0


def test_link_use_counts_from_the_first_byte_to_the_last() -> None:
    samples = [(0.25, 0), (0.5, 0), (0.75, 25), (2.5, 200), (2.75, 200)]
    use = use_of(samples, rate=100.0)
    assert (use.first_byte, use.last_byte, use.size) == (0.5, 2.5, 200)
    assert use.share == pytest.approx(1.0)
    assert use.link_seconds == pytest.approx(2.0)


def test_a_link_without_traffic_was_not_used() -> None:
    assert use_of([(0.25, 0)], rate=100.0).share == 0
    assert use_of([], rate=100.0).size == 0
