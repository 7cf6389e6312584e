"""One agent per spool, whatever happens to the directory."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from imageprepull.agent.spool_lock import try_lock


def test_a_second_agent_is_not_let_in(tmp_path: Path) -> None:
    spool = tmp_path / "new" / "spool"
    first = try_lock(spool)
    assert first is not None
    assert try_lock(spool) is None
    os.close(first)
    second = try_lock(spool)
    assert second is not None
    os.close(second)
    assert spool.stat().st_mode & 0o777 == 0o700


def test_nor_after_somebody_emptied_the_directory(tmp_path: Path) -> None:
    first = try_lock(tmp_path)
    assert first is not None
    for path in tmp_path.iterdir():
        path.unlink()
    assert try_lock(tmp_path) is None
    os.close(first)


def test_a_lock_on_what_was_removed_before_it_was_had_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    plain = fcntl.flock
    holders: list[int] = []

    def late(handle: int, how: int) -> Any:
        """Between the opening and the lock another agent comes, and finds a new directory."""
        if not holders:
            holders.append(-1)
            shutil.rmtree(spool)
            holders[0] = try_lock(spool) or -1
        return plain(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert try_lock(spool) is None
    assert holders[0] > 0
    os.close(holders[0])
