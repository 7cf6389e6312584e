"""A spool folder for one process, for callers that no agent cleans up after: `imageprepull pull`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = "lock"


@contextmanager
def private_folder(base: Path) -> Iterator[Path]:
    """A new folder under `base`, gone with the block; those of processes that died are removed on the way.

    Raises:
        OSError: it cannot be made.
    """
    base.mkdir(parents=True, exist_ok=True, mode=0o700)
    for folder in base.iterdir():
        if folder.is_dir() and not _in_use(folder):
            shutil.rmtree(folder, ignore_errors=True)
    folder = base / f"{os.getpid()}-{secrets.token_hex(4)}"
    draft = base / f".{folder.name}"
    draft.mkdir(mode=0o700)
    lock = os.open(draft / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # The name appears with the lock held already: nobody takes it for a dead process's.
        fcntl.flock(lock, fcntl.LOCK_EX)
        draft.rename(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        with contextlib.suppress(OSError):
            base.rmdir()  # only when no other process has one.


def _in_use(folder: Path) -> bool:
    """Whether a living process holds the folder. One without a lock file is being made or removed right now."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(lock)
