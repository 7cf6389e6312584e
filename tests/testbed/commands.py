"""Running short commands, with failures that say what was tried; and waiting for something to become true."""

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.testbed.errors import ClusterError

_inherited: set[int] = set()


def inherit(descriptor: int) -> None:
    """Let every child hold this descriptor: a lock then outlives a killed parent until its last child is done."""
    _inherited.add(descriptor)


def disinherit(descriptor: int) -> None:
    """Take `inherit` back, before the descriptor is closed."""
    _inherited.discard(descriptor)


def inherited() -> tuple[int, ...]:
    """The descriptors that children get."""
    return tuple(_inherited)


def run(component: str, argv: Sequence[str | Path], *, stdin: str | bytes = "", timeout: float = 60) -> str:
    """Standard output of a command; ClusterError with its standard error when it fails or hangs."""
    command = [str(word) for word in argv]
    data = stdin.encode() if isinstance(stdin, str) else stdin
    try:
        done = subprocess.run(
            command, input=data, capture_output=True, check=False, timeout=timeout, pass_fds=inherited()
        )
    except FileNotFoundError:
        raise ClusterError(component, f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(component, f"`{' '.join(command)}` hung for {timeout:.0f} s") from None
    if done.returncode:
        errors = done.stderr.decode(errors="replace").strip() or f"exit status {done.returncode}"
        raise ClusterError(component, f"`{' '.join(command)}`: {errors}")
    return done.stdout.decode(errors="replace")


def write_if_changed(file: Path, text: str) -> None:
    """Daemons watch their files, and some end when one is written: a file that is right is left alone."""
    if not file.exists() or file.read_text() != text:
        file.touch(mode=0o600)
        file.write_text(text)


def wait_until(
    component: str,
    what: str,
    check: Callable[[], bool],
    *,
    timeout: float = 60,
    log: Path | None = None,
    interval: float = 0.05,
) -> None:
    """Ask again until it is so; ClusterError with the log when time is up. `check` itself may give up by raising."""
    deadline = time.monotonic() + timeout
    while not check():
        if time.monotonic() > deadline:
            raise ClusterError(component, f"{what}: not within {timeout:.0f} s", log)
        time.sleep(interval)
