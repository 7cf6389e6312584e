"""The pure parts of tests/faults: what is done, what counts, and for which code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from imageprepull.pulling.steps import Step
from tests.faults.__main__ import CHECKOUT, ENGINE, engine_digest
from tests.faults.faults import (
    FAST,
    PORTABLE,
    Fault,
    Victim,
    Wish,
    again,
    random_faults,
    random_way,
    random_wish,
)
from tests.faults.tally import ALWAYS, Hit, least_hit, missed, table


def test_a_step_or_a_victim_that_was_never_hit_is_named() -> None:
    hits = [Hit(Victim.AGENT, step.value) for step in Step]
    assert missed(hits) == ["worker", "daemon", "connection"]
    hits += [Hit(victim, Step.FETCHED.value) for victim in ALWAYS]
    assert missed(hits) == []
    assert missed(hits[1:]) == [Step.LEASED.value]


def test_each_step_is_on_one_of_the_ways_and_each_way_gets_its_turn() -> None:
    assert {*FAST.steps, *PORTABLE.steps} == set(Step)
    ways = [random_way(seed) for seed in range(1, 5)]
    assert (ways.count(FAST), ways.count(PORTABLE)) == (3, 1)


def test_images_are_asked_for_politely_and_pinned_on_either_way() -> None:
    asked = {(random_way(seed) is FAST, random_wish(seed)) for seed in range(1, 25)}
    wishes = {Wish(polite=polite, pin=pin) for polite in (True, False) for pin in (True, False)}
    assert asked == {(fast, wish) for fast in (True, False) for wish in wishes}
    few = [random_wish(seed) for seed in range(1, 8)]
    assert (sum(wish.polite for wish in few), sum(wish.pin for wish in few)) == (5, 4)


def test_a_line_says_how_a_round_is_run_again() -> None:
    faults = [Fault(Victim.AGENT, Step.FETCHED.value, 3), Fault(Victim.DAEMON, delay=0.25)]
    said = "--faults agent@fetched#3+0.0000 daemon@#1+0.2500"
    assert again(faults, FAST, Wish()) == said
    assert again(faults, PORTABLE, Wish(polite=True, pin=True)) == f"--portable --polite --pin {said}"
    assert [Fault.parse(word) for word in said.split()[1:]] == faults


def test_on_the_portable_path_nobody_is_to_be_hit_who_is_not_there() -> None:
    faults = [
        fault
        for seed in range(400)
        for fault in random_faults(seed, duration=1.5, way=PORTABLE, wanting=Victim.WORKER)
    ]
    assert {fault.victim for fault in faults} == set(PORTABLE.victims)
    assert {fault.step for fault in faults} <= {"", *PORTABLE.steps}


def test_victims_that_must_be_hit_are_shown_though_none_was() -> None:
    assert [word for word in table([]).splitlines()[0].split() if word in set(Victim)] == [
        victim.value for victim in Victim if victim in ALWAYS
    ]


@pytest.mark.parametrize("victim", [Victim.CONNECTION, Victim.WORKER, Victim.LEASE, Victim.GAP])
def test_what_is_not_there_all_the_time_is_hit_when_it_is(victim: Victim) -> None:
    faults = [fault for seed in range(400) for fault in random_faults(seed, duration=1.5)]
    found = [fault for fault in faults if fault.victim is victim]
    assert found
    assert all(fault.step for fault in found)
    if victim is Victim.CONNECTION:
        assert {fault.step for fault in found} == {Step.FETCHED}


def test_whom_nobody_has_hit_yet_is_hit_next() -> None:
    hits = [Hit(victim, Step.FETCHED.value) for victim in ALWAYS if victim is not Victim.CONNECTION]
    assert least_hit(hits) is Victim.CONNECTION
    faults = [fault for n in range(200) for fault in random_faults(n, duration=1.5, wanting=least_hit(hits))]
    assert sum(fault.victim is Victim.CONNECTION for fault in faults) > 0.25 * len(faults)


def test_runs_add_up_for_the_code_that_a_round_executes(tmp_path: Path) -> None:
    package = tmp_path / "operator/imageprepull"
    for part in (*ENGINE, "controller"):
        path = package / part if part.endswith(".py") else package / part / "code.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    before = engine_digest(tmp_path)
    (package / "controller/code.py").write_text("2")
    assert engine_digest(tmp_path) == before
    for part in ("agent/code.py", "cli/start.py"):
        (package / part).write_text("2")
        assert engine_digest(tmp_path) != before
        (package / part).write_text("1")


def test_all_that_the_victim_imports_is_such_code() -> None:
    source = (CHECKOUT / "tests/faults/victim.py").read_text()
    modules = sorted(set(re.findall(r"^ *from (imageprepull[.\w]*) import", source, re.MULTILINE)))
    assert "imageprepull.agent.reconciler" in modules
    code = (
        f"import sys, {', '.join(modules)}; print(*(n for n in sys.modules if n.startswith('imageprepull.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    parts = {part.removesuffix(".py").replace("/", ".") for part in ENGINE}
    names = {name.removeprefix("imageprepull.") for name in done.stdout.split()} - {"cli"}
    assert [name for name in names if not any(f"{name}.".startswith(f"{part}.") for part in parts)] == []
