"""Which path layers take into their snapshots, fast or portable, and why: found out when first needed, then known.

`canary` finds it out; `layers` acts on it; the agent shows it. Forgotten when the daemon may be another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

from imageprepull.pulling.canary import NotHere, try_staging
from imageprepull.pulling.errors import PullError
from imageprepull.pulling.layer_folders import Roots
from imageprepull.runtime.connection import Containerd
from imageprepull.unpacking.workers import Workers

log = structlog.get_logger(__name__)

PathWish = Literal["auto", "fast", "portable"]
"""`fast` never falls back: what cannot go that way fails."""


@dataclass(frozen=True, slots=True)
class ExtractionPath:
    """`none`: fast was asked for and is impossible. `roots` are known where the path is fast."""

    path: Literal["fast", "portable", "none"]
    reason: str
    roots: Roots | None = None


class Extraction:
    """The choice for each snapshotter of one runtime.

    Args:
        containerd: the connection, without a lease.
        root: the snapshotter's folder as this process sees it.
        workers: who unpacks; None where nobody does.
        wish: what the user asked for.
    """

    def __init__(self, containerd: Containerd, root: Path, workers: Workers | None, wish: PathWish) -> None:
        self.wish = wish
        self.workers = workers
        self._containerd = containerd
        self._root = root
        self._known: dict[str, ExtractionPath] = {}
        self._shown: dict[str, ExtractionPath] = {}
        self._turn = asyncio.Lock()

    @property
    def workers_alive(self) -> bool:
        """Whether there is anybody to unpack."""
        return self.workers is not None and self.workers.alive

    async def choose(self, snapshotter: str, labels: Mapping[str, str]) -> ExtractionPath:
        """The path for a snapshotter's layers. `labels` say whose the canary's lease is.

        Raises:
            RuntimeFault: the runtime does not answer; nothing is known then.
        """
        async with self._turn:
            known = self._known.get(snapshotter)
            if known is None:
                known = await self._find(snapshotter, labels)
                if known != self._shown.get(snapshotter):
                    log.info("extraction path", path=known.path, reason=known.reason)
                self._known[snapshotter] = self._shown[snapshotter] = known
        return self._now(known)

    def shown(self, snapshotter: str) -> ExtractionPath | None:
        """What was found last, also when it is to be found anew."""
        found = self._shown.get(snapshotter)
        return None if found is None else self._now(found)

    def known(self, snapshotter: str) -> bool:
        """Whether it need not be found out."""
        return snapshotter in self._known

    def forget(self) -> None:
        """The daemon may be another one."""
        self._known.clear()

    def _now(self, found: ExtractionPath) -> ExtractionPath:
        if found.path == "fast" and not self.workers_alive:
            return self._not_fast("the process that starts workers has died")
        return found

    def _not_fast(self, reason: str) -> ExtractionPath:
        return ExtractionPath("none" if self.wish == "fast" else "portable", reason)

    async def _find(self, snapshotter: str, labels: Mapping[str, str]) -> ExtractionPath:
        if self.wish == "portable":
            return ExtractionPath("portable", "asked for")
        try:
            roots = await try_staging(self._containerd, snapshotter, self._root, self.workers, labels)
        except NotHere as no:
            return self._not_fast(str(no))
        return ExtractionPath("fast", "a canary went through", roots)


def required(path: ExtractionPath) -> ExtractionPath:
    """The same path, if it is one.

    Raises:
        PullError: FastPathImpossible.
    """
    if path.path == "none":
        raise PullError(
            "FastPathImpossible",
            f"the fast path was asked for and is impossible here: {path.reason}; ask for auto",
            permanent=True,
        )
    return path
