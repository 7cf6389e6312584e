"""How long an image that keeps vanishing waits before it is brought back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from imageprepull.agent.losing import REASON, Losses, LossPace, lost

PACE = LossPace(base=30, cap=900, forget=3600)


def test_the_first_loss_is_mended_at_once() -> None:
    assert lost(Losses(), 100, PACE, 0.5, "x") == (Losses(1, 100), None)


def test_further_ones_wait_twice_as_long_each_and_no_longer_than_the_cap() -> None:
    losses, delays = Losses(), []
    for number in range(9):
        losses, backoff = lost(losses, 100.0 + number, PACE, 1, "x")
        delays.append(backoff.delay if backoff else 0)
    assert delays == [0, 30, 60, 120, 240, 480, 900, 900, 900]


def test_it_says_what_is_missing_and_who_may_be_at_fault() -> None:
    _, backoff = lost(Losses(1, 100), 200, PACE, 0, "the snapshot 7")
    assert backoff is not None
    assert (backoff.reason, backoff.final) == (REASON, False)
    assert "2 times" in backoff.message
    assert "Missing now: the snapshot 7" in backoff.message


def test_what_was_long_ago_is_forgotten() -> None:
    assert lost(Losses(7, 100), 3700, PACE, 0, "x") == (Losses(1, 3700), None)


@given(st.lists(st.floats(0, 10_000), max_size=20), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_never_longer_than_the_cap_nor_shorter_than_half_of_the_base(
    gaps: list[float], uniform: float
) -> None:
    losses, now = Losses(), 0.0
    for gap in gaps:
        now += gap
        losses, backoff = lost(losses, now, PACE, uniform, "x")
        if backoff is not None:
            assert PACE.base / 2 <= backoff.delay <= PACE.cap
