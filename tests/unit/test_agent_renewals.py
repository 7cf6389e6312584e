"""What looks at a Lease prove, against what has truly happened to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.agent.renewals import Term, Watched, lapsed, proven, seen_again, term_of
from imageprepull.resources.vouching import VOUCHED, vouches


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (Term("a", "1", "10"), (1.0,)),
        (Term("a", "1", "10", 30), (1.0,)),
        (Term("a", "1", "11", vouches=True), (1.0, 7.0)),
        (Term("a", "1", "11"), (1.0,)),
        (Term("a", "1", "10", vouches=True), (1.0,)),
        (Term("", "1", "11", vouches=True), ()),
        (Term("b", "2", "11", vouches=True), ()),
        (Term("a", "2", "11", vouches=True), ()),
    ],
    ids=[
        "nothing",
        "another length",
        "renewed and vouched for",
        "renewed",
        "not renewed",
        "released",
        "taken by another",
        "taken anew by the same",
    ],
)
def test_only_a_renewal_of_the_same_term_that_vouches_counts(now: Term, expected: tuple[float, ...]) -> None:
    before = Watched(Term("a", "1", "10"), looked=7, since=5, vouched_after=(1,))
    after = seen_again(before, now, 8, 9)
    assert after.vouched_after == expected
    assert (after.term, after.looked) == (now, 8)
    assert after.since == (5 if now.renewed == "10" else 9)


def test_a_lease_is_read_as_it_is_and_an_empty_one_is_nobodys() -> None:
    spec = {"holderIdentity": "a", "acquireTime": "1", "renewTime": "2", "leaseDurationSeconds": 7}
    assert term_of({"spec": spec}) == Term("a", "1", "2", 7)
    assert term_of({}) == term_of({"spec": {"holderIdentity": None}}) == Term()
    assert not vouches({"metadata": {"annotations": {VOUCHED: ""}}, "spec": {}})


@pytest.mark.parametrize(("word", "expected"), [("2", True), ("1", False), ("", False), (None, False)])
def test_an_annotation_vouches_with_the_renewal_that_it_came_with(word: str | None, expected: bool) -> None:
    """An operator that knows nothing of it leaves an older one's word standing."""
    lease = {
        "metadata": {"annotations": {VOUCHED: word} if word is not None else {}},
        "spec": {"renewTime": "2"},
    }
    assert term_of(lease).vouches is expected


def test_nobodys_lease_lapses_as_one_that_is_not_renewed() -> None:
    for term in (Term(), Term("a", "1", "10")):
        first = seen_again(None, term, 1, 2)
        assert not lapsed(seen_again(first, term, 21.9, 22), 5)
        assert lapsed(seen_again(first, term, 22, 23), 5)


@dataclass(frozen=True)
class History:
    """`written`: the terms of a Lease, by time. `looks`: begun, served, answered."""

    written: list[tuple[float, Term]]
    looks: list[tuple[float, float, float]]

    def at(self, moment: float) -> Term:
        return [term for since, term in self.written if since <= moment][-1]

    def watched(self) -> Watched | None:
        def look(before: Watched | None, times: tuple[float, float, float]) -> Watched:
            begun, served, answered = times
            return seen_again(before, self.at(served), begun, answered)

        return reduce(look, self.looks, None)

    def vouched(self, term: Term) -> list[float]:
        """When this reign of a holder was renewed and vouched for: not when it began."""
        reign = [
            (when, one)
            for when, one in self.written
            if (one.holder, one.acquired) == (term.holder, term.acquired)
        ]
        return [when for when, one in reign[1:] if one.vouches]


@st.composite
def histories(draw: st.DrawFn) -> History:
    now, holder, acquired = 0.0, "a", "0"
    written = [(now, Term(holder, acquired, "0"))]
    for number in range(draw(st.integers(0, 12))):
        now += draw(st.floats(0.5, 20))
        event = draw(st.sampled_from(["renew"] * 6 + ["take", "let go"]))
        if event == "take":
            holder, acquired = draw(st.sampled_from("ab")), f"taken {number}"
        vouched = draw(st.sampled_from([True, True, False]))
        term = Term("" if event == "let go" else holder, acquired, str(number + 1), vouches=vouched)
        written.append((now, term))
    looks, begun = [], 0.0
    for _ in range(draw(st.integers(1, 12))):
        begun += draw(st.floats(0, 15))
        served = begun + draw(st.floats(0, 3))
        answered = served + draw(st.floats(0, 3))
        looks.append((begun, served, answered))
        begun = answered
    return History(written, looks)


@given(histories(), st.floats(0, 100), st.floats(0, 30))
def test_what_is_proven_was_vouched_for_twice_since_the_order_was_seen_and_has_not_run_out(
    history: History, seen: float, later: float
) -> None:
    watched = history.watched()
    assert watched is not None
    _, served, answered = history.looks[-1]
    now = answered + later
    if proven(watched, seen, now):
        term = history.at(served)
        assert term.holder
        since = [when for when in history.vouched(term) if seen < when <= served]
        assert len(since) >= 2
        assert now - since[-1] < term.seconds
        # So it is for every order that was seen earlier still.
        assert proven(watched, seen - 1, now)
    if lapsed(watched, 0):
        assert watched.looked - max(when for when, _ in history.written if when <= served) >= 15 - 1e-9 or (
            history.at(served).holder == ""
        )


@given(st.floats(0, 5), st.lists(st.floats(1, 3), min_size=7, max_size=7))
def test_of_a_leader_that_lives_a_few_looks_are_enough(start: float, pauses: list[float]) -> None:
    written = [(5.0 * number, Term("a", "0", str(number), vouches=True)) for number in range(10)]
    times = [start]
    for pause in pauses:
        times.append(times[-1] + pause)
    looks = [(time, time, time) for time in times if time <= start + 13]
    history = History(written, looks)
    watched = history.watched()
    assert watched is not None
    if looks[-1][0] >= start + 10:
        assert proven(watched, start - 0.001, looks[-1][0])
    assert not lapsed(watched, 5)
