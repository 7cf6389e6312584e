"""Waiting for another writer of the same blob, on a clock that the test turns."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from imageprepull.runtime.content_lock import LockPatience, LockWatch, Verdict

PATIENCE = LockPatience(first_pause=0.05, longest_pause=1.0, without_progress=30.0)


def run(watch: LockWatch, offsets: Sequence[int | None]) -> list[tuple[float, Verdict]]:
    """Look at each offset after the pause that was asked for."""
    now, seen = 0.0, []
    for offset in offsets:
        now += watch.pause
        seen.append((now, watch.see(offset, now)))
    return seen


def test_ingest_that_is_gone_is_opened_at_once() -> None:
    assert LockWatch(PATIENCE, 0.0).see(None, 0.05) is Verdict.OPEN


def test_writer_that_moves_is_waited_for_without_end() -> None:
    verdicts = {verdict for _, verdict in run(LockWatch(PATIENCE, 0.0), list(range(500)))}
    assert verdicts == {Verdict.WAIT}


def test_ingest_that_stands_still_is_tried_rarely_and_then_passed_by() -> None:
    seen = run(LockWatch(PATIENCE, 0.0), [7] * 60)
    passed = next(now for now, verdict in seen if verdict is Verdict.PASS_BY)
    tries = [now for now, verdict in seen if verdict is Verdict.OPEN and now < passed]
    assert 30 <= passed <= 31
    assert tries[0] < 0.5
    assert len(tries) <= 10


def test_a_byte_starts_the_patience_anew() -> None:
    seen = run(LockWatch(PATIENCE, 0.0), [7] * 30 + [8] * 40)
    passed = next(now for now, verdict in seen if verdict is Verdict.PASS_BY)
    assert passed > 50


@given(st.lists(st.none() | st.integers(0, 3), max_size=200))
def test_nobody_is_passed_by_early_and_pauses_stay_in_bounds(offsets: list[int | None]) -> None:
    watch, now, moved, last = LockWatch(PATIENCE, 0.0), 0.0, 0.0, None
    for offset in offsets:
        assert PATIENCE.first_pause <= watch.pause <= PATIENCE.longest_pause
        now += watch.pause
        verdict = watch.see(offset, now)
        if offset is not None and last is not None and offset != last:
            moved = now
        last = offset if offset is not None else last
        assert verdict is not Verdict.PASS_BY or now - moved >= PATIENCE.without_progress
