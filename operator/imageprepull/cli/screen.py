"""Where an ImagePrepull is shown: redrawn in place on a terminal, a line a change in a pipe or log."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live

from imageprepull.cli.status_view import condition, detailed, size_text
from imageprepull.resources.base import decode
from imageprepull.resources.imageprepull import ImagePrepull


def console() -> Console:
    """Standard output; wide enough for a digest when it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def headline(prepull: ImagePrepull) -> str:
    """The object in one line, for logs and pipes."""
    status, reason, message = condition(prepull, "Ready")
    counted = prepull.status.bytes
    amount = f"  {size_text(counted.done)} of {size_text(counted.total)}" if counted and counted.total else ""
    return (
        f"{prepull.metadata.namespace}/{prepull.metadata.name}  Ready={status} ({reason})"
        f"  nodes {prepull.status.ready_nodes or '-'}  {prepull.status.progress or '-'}{amount}"
        + (f"  {message}" if message else "")
    )


class Screen:
    """Redraws on a terminal; elsewhere prints the headline whenever it changed."""

    def __init__(self, *, layers: bool) -> None:
        self._layers = layers
        self._console = console()
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._last = ""

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, document: dict[str, Any]) -> None:
        """Draw the object as it is now."""
        if self._live:
            self._live.update(detailed(document, layers=self._layers), refresh=True)
            return
        line = headline(decode(ImagePrepull, document))
        if line != self._last:
            print(line, flush=True)
            self._last = line
