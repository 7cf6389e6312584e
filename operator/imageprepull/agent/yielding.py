"""What unfinished pulls hold gives way to who needs the room more: the node itself, or an image that has none.

Started by the reconciler, carried out by the node. It ends with a collection of the runtime, which may take minutes: it
runs beside pulls, one at a time, and what could not be given back is asked for again by the next step that finds it so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

import structlog

from imageprepull.agent.image import ImageView
from imageprepull.agent.node import Node, NodeError
from imageprepull.agent.plan import Key
from imageprepull.resources.nodeprepull import ImageState

logger = structlog.get_logger(__name__)


def giving_way(views: Collection[ImageView], pressure: bool) -> frozenset[str] | None:
    """The digests of images whose unfinished pulls give back what they hold; None is all there are, named or not.

    Near the kubelet's threshold all: it can collect none of that, and would evict pods. Else those of images that
    have failed, while another one waits for room: what is kept for a slow try must not stand in its way.
    """
    if pressure:
        return None
    if not any(view.gate is not None for view in views):
        return frozenset()
    coming = {view.desired.digest for view in views if view.state is not ImageState.FAILED}
    return frozenset(view.desired.digest for view in views) - coming


class Yielding:
    """`views`: the images of the newest spec. `changed` hears that one of them, or `left`, is another than before."""

    def __init__(
        self,
        node: Node,
        tasks: asyncio.TaskGroup,
        *,
        views: Callable[[], Mapping[Key, ImageView]],
        changed: Callable[[], None],
    ) -> None:
        self.left: int | None = None
        """Pulls that hold something still, though all are to give back. None: not known, or none of them has to."""
        self._node = node
        self._tasks = tasks
        self._views = views
        self._changed = changed
        self._task: asyncio.Task[None] | None = None
        self._counts = False
        """Whether what is being given back is all, for the pressure that there is now."""
        self._problem = ""

    def start(self, *, pressure: bool) -> None:
        """Give back what is to give way now, unless something is being given back already."""
        digests = giving_way(self._views().values(), pressure)
        if digests is not None:
            self.left = None
            # What is left of an earlier pressure says nothing about the next one.
            self._counts = False
            if not digests:
                return
        if self._task is None:
            self._counts = digests is None
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
            self._forget_progress(digests)
        if problem and problem != self._problem:
            logger.warning("unfinished pulls cannot give back what they hold", error=problem)
        self._problem = problem
        if self._counts and left != self.left:
            self.left = left
            self._changed()

    def _forget_progress(self, digests: frozenset[str] | None) -> None:
        """Nothing of these, or of any, is held any more but by pulls at work."""
        for view in self._views().values():
            concerned = digests is None or view.desired.digest in digests
            there = view.running or (view.held is not None and view.held.present)
            if concerned and not there and view.progress is not None:
                # Its layers are here no more, and the next attempt gains with its first byte.
                view.progress = None
                view.best_done = 0
                self._changed()
