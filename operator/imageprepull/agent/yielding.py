"""What unfinished pulls hold gives way to who needs the room more: the node itself, or an image that has none.

Started by the reconciler, carried out by the node. It ends with a collection of the runtime, which may take minutes: it
runs beside pulls, one at a time, and what could not be given back is asked for again by the next step that finds it so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog

from imageprepull.agent.image import ImageView
from imageprepull.agent.node import Node, NodeError
from imageprepull.resources.nodeprepull import ImageState

logger = structlog.get_logger(__name__)


def giving_way(views: Iterable[ImageView], pressure: bool) -> frozenset[str] | None:
    """The digests of images whose unfinished pulls give back what they hold; None is all there are, named or not.

    Near the kubelet's threshold all: it can collect none of that, and would evict pods. Else those of images that
    have failed, while another one waits for room: what is kept for a slow try must not stand in its way.
    """
    if pressure:
        return None
    views = list(views)
    if not any(view.gate is not None for view in views):
        return frozenset()
    coming = {view.desired.digest for view in views if view.state is not ImageState.FAILED}
    return frozenset(view.desired.digest for view in views) - coming


class Yielding:
    """`done` hears of which digests, or None for all, nothing is held any more but by pulls at work."""

    def __init__(
        self,
        node: Node,
        tasks: asyncio.TaskGroup,
        *,
        changed: Callable[[], None],
        done: Callable[[frozenset[str] | None], None],
    ) -> None:
        self.left: int | None = None
        """Pulls that hold something still, though all are to give back. None: not known, or none of them has to."""
        self._node = node
        self._tasks = tasks
        self._changed = changed
        self._done = done
        self._task: asyncio.Task[None] | None = None
        self._all = False
        self._problem = ""

    def start(self, digests: frozenset[str] | None) -> None:
        """Give back, unless something is being given back already. Nothing is to be, or no more, without `digests`."""
        self._all = digests is None
        if not self._all:
            self.left = None
            if not digests:
                return
        if self._task is None:
            self._task = self._tasks.create_task(self._give_back(digests))
            self._task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Cut off what runs."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _ended(self, _: asyncio.Task[None]) -> None:
        self._task = None

    async def _give_back(self, digests: frozenset[str] | None) -> None:
        left, problem = None, ""
        try:
            left = await self._node.give_back(digests)
        except NodeError as error:
            problem = f"{error.reason}: {error}"
        except Exception as error:
            # A defect here must not take the node's pulls down with it.
            logger.exception("giving back failed unexpectedly")
            problem = f"InternalError: {type(error).__name__}: {error}"
        else:
            self._done(digests)
        if problem and problem != self._problem:
            logger.warning("unfinished pulls cannot give back what they hold", error=problem)
        self._problem = problem
        if digests is None and self._all and left != self.left:
            self.left = left
            self._changed()
