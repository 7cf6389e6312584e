"""The journal of long runs, and how a run goes on from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests import nightly
from tests.journal import PASSED, Chunk, Journal

CHUNK = Chunk("abc", 1, 1000, PASSED, 2.5, 1_700_000_000)


def test_what_was_added_is_there(tmp_path: Path) -> None:
    Journal("run", tmp_path / "new").add(CHUNK)
    assert list(Journal("run", tmp_path / "new")) == [CHUNK]
    assert list(Journal("other", tmp_path / "new")) == []


def test_only_the_commit_counts_and_the_last_word(tmp_path: Path) -> None:
    journal = Journal("run", tmp_path)
    failed = dataclasses.replace(CHUNK, outcome="failed")
    for chunk in (failed, CHUNK, dataclasses.replace(CHUNK, commit="old", seed=2)):
        journal.add(chunk)
    assert journal.done("abc") == {1: CHUNK}


def test_a_cut_line_counts_as_not_written(tmp_path: Path) -> None:
    journal = Journal("run", tmp_path)
    journal.add(CHUNK)
    with journal.path.open("a") as file:
        file.write('{"commit": "abc", "seed')
    journal.add(dataclasses.replace(CHUNK, seed=3))
    assert sorted(journal.done("abc")) == [1, 3]


def test_a_run_goes_on_where_it_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEPREPULL_CACHE", str(tmp_path))
    monkeypatch.setattr(nightly, "commit_of", lambda _: "abc")
    monkeypatch.setattr("sys.argv", ["nightly", "differential", "--examples", "2500"])
    ran: list[str] = []

    def run_chunk(command: list[str], environment: dict[str, str]) -> tuple[str, float]:
        ran.append(environment["IMAGEPREPULL_EXAMPLES"])
        if len(ran) == 2:
            raise KeyboardInterrupt
        return PASSED, 1.0

    monkeypatch.setattr(nightly, "run_chunk", run_chunk)
    with pytest.raises(KeyboardInterrupt):
        nightly.main()
    assert nightly.main() == 0
    # The first chunk was not made again; the second had no outcome.
    assert ran == ["1000", "1000", "1000", "500"]
    assert nightly.main() == 0
    assert len(ran) == 4


def test_a_failed_chunk_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEPREPULL_CACHE", str(tmp_path))
    monkeypatch.setattr(nightly, "commit_of", lambda _: "abc")
    monkeypatch.setattr("sys.argv", ["nightly", "fuzz", "--seconds", "700"])
    outcomes = iter(["failed", PASSED, PASSED])
    monkeypatch.setattr(nightly, "run_chunk", lambda *_: (next(outcomes), 1.0))
    assert nightly.main() == 1
    assert nightly.main() == 0
