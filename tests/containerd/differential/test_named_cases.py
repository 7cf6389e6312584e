"""Every named layer through containerd 1.6, 2.4 and ours: the same tree, or refused by all."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.containerd.differential.cases import ALL
from tests.containerd.differential.cases.table import Case, Expected
from tests.containerd.differential.comparison import compare, unpack
from tests.containerd.differential.layers import Outcome
from tests.containerd.differential.ours import Ours
from tests.containerd.differential.reference import Reference

REFUSING = (Expected.REFUSED, Expected.HANDED_ON_REFUSED, Expected.HOST_TOOLS)


def of_containerd(outcome: list[Outcome], case: Case) -> bool:
    return outcome[-1].accepted and len(outcome) == len(case.chain)


def test_names_of_cases_are_unique() -> None:
    assert [name for name, count in Counter(case.name for case in ALL).items() if count > 1] == []


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_layer_becomes_what_containerd_makes_of_it(case: Case, theirs: Reference, mine: Ours) -> None:
    ours, reference = unpack(case.chain, mine, theirs)
    found = []
    for version, outcomes in reference.items():
        expected = case.by(version)
        accepted = of_containerd(outcomes, case)
        if accepted is (expected in REFUSING):
            found.append(
                f"{version}: the table is wrong, containerd says: {outcomes[-1].refusal or 'accepted'}"
            )
        if expected is Expected.LIMITED:
            assert ours[-1].final
        elif expected is Expected.HOST_TOOLS:
            assert ours[-1].accepted
        elif case.other_tree == version:
            assert compare(ours, outcomes), "the versions agree by now"
        elif expected is case.expected:  # else the other version is the one that we follow
            found += [f"{version}: {line}" for line in compare(ours, outcomes)]
    handed_on = case.expected in (Expected.HANDED_ON, Expected.HANDED_ON_REFUSED)
    if handed_on != ours[-1].handed_on:
        found.append(f"ours: {'not ' * handed_on}handed on: {ours[-1].reason} {ours[-1].refusal}")
    assert found == []
