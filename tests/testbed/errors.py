"""The one failure of the testbed: which component, what happened, and the last lines of its log."""

from collections import deque
from pathlib import Path

LOG_LINES = 15


class ClusterError(Exception):
    """Something of the throw-away cluster did not do what it had to; `component` says which part."""

    def __init__(self, component: str, message: str, log: Path | None = None) -> None:
        self.component = component
        self.log = log
        text = f"{component}: {message}"
        if log is not None and (lines := last_lines(log)):
            text += f"\n  last lines of {log}:\n" + "\n".join(f"    {line}" for line in lines)
        super().__init__(text)


def last_lines(log: Path, count: int = LOG_LINES) -> list[str]:
    """The last `count` lines of a log, each cut to 400 characters; empty where there is no log yet."""
    try:
        with log.open(errors="replace") as lines:
            return [line.rstrip()[:400] for line in deque(lines, maxlen=count)]
    except FileNotFoundError:
        return []
