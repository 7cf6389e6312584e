"""Absent with Delete on its way: started by the reconciler when plan.py says so, carried out by the node.

A removal ends with a collection of the runtime, which may take minutes: it runs beside the pulls, one at a time. It
may be cut off anywhere and is begun again by the next step, or the next agent, as long as the entry stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import structlog

from imageprepull.agent.backoff import Failure
from imageprepull.agent.image import ImageView
from imageprepull.agent.node import Node, NodeError
from imageprepull.agent.plan import Key, key_of
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import NODEPREPULLS
from imageprepull.pulling.removal import IN_USE
from imageprepull.resources.base import decode
from imageprepull.resources.nodeprepull import Desired, DesiredImage, NodePrepull, OnRemoval

logger = structlog.get_logger(__name__)
NOT_CONFIRMED = "OrderNotConfirmed"

Confirm = Callable[[DesiredImage], Awaitable[Sequence[DesiredImage]]]
"""The newest entries of this node when they still order the removal of this one; raises `NodeError` otherwise."""


def ordered(image: DesiredImage) -> bool:
    """Whether an entry asks for the image to be removed."""
    return image.state is Desired.ABSENT and image.on_removal is OnRemoval.DELETE


def wanted_digests(entries: Sequence[DesiredImage]) -> frozenset[str]:
    """What stays: an image is removed only when every entry with its digest says so."""
    return frozenset(entry.digest for entry in entries if not ordered(entry))


def pinned_elsewhere(image: DesiredImage, entries: Sequence[DesiredImage]) -> list[str]:
    """Other references to the same digest whose pins stay."""
    return [
        entry.reference
        for entry in entries
        if entry.digest == image.digest
        and entry.reference != image.reference
        and entry.pin
        and entry.state is not Desired.ABSENT
    ]


class Removals:
    """`failed` and `ended` hear what came of each, on the event loop; `ended` always comes last."""

    def __init__(
        self,
        node: Node,
        tasks: asyncio.TaskGroup,
        confirm: Confirm,
        *,
        failed: Callable[[ImageView, DesiredImage, Failure], None],
        ended: Callable[[ImageView], None],
    ) -> None:
        self._node = node
        self._tasks = tasks
        self._confirm = confirm
        self._failed = failed
        self._ended = ended
        self._running: dict[Key, asyncio.Task[None]] = {}

    @property
    def running(self) -> frozenset[Key]:
        """What is being removed."""
        return frozenset(self._running)

    def start(self, view: ImageView) -> None:
        """Remove the image of an Absent entry."""
        key = key_of(view.desired)
        task = self._tasks.create_task(self._remove(view, view.desired))
        self._running[key] = task

        def forget(_: asyncio.Task[None]) -> None:
            del self._running[key]
            self._ended(view)

        task.add_done_callback(forget)

    async def stop(self) -> None:
        """Cut off what runs."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _remove(self, view: ImageView, image: DesiredImage) -> None:
        try:
            entries = await self._confirm(image)
            kept = await self._node.remove(image, wanted_digests(entries), pinned_elsewhere(image, entries))
        except NodeError as error:
            # Who uses it goes when it goes; the runtime tells, and the slow retry finds what it did not tell.
            patience = error.permanent or error.reason == IN_USE
            self._failed(view, image, Failure(error.reason, str(error), patience, error.retry_after))
        except Exception as error:
            # A defect in one image's removal must not take the node's pulls down with it.
            logger.exception("removal failed unexpectedly", image=image.reference, digest=image.digest)
            self._failed(view, image, Failure("InternalError", f"{type(error).__name__}: {error}"))
        else:
            logger.info("image let go", reference=image.reference, digest=image.digest, kept=kept or None)
            if ordered(view.desired):
                view.released = True
                view.forget_failures()


def order_in(api: ApiClient, node_name: str, uid: Callable[[], str]) -> Confirm:
    """Ask the API server itself: a watch that hangs, or outlived a restored backup, may hold an old order.

    `uid` is the object's that the agent follows.
    """

    async def confirm(image: DesiredImage) -> Sequence[DesiredImage]:
        try:
            found = decode(NodePrepull, await api.get(NODEPREPULLS, node_name))
        except (ApiError, msgspec.ValidationError) as error:
            raise NodeError(NOT_CONFIRMED, f"the order to remove it cannot be read again: {error}") from error
        if found.metadata.uid != uid():
            raise NodeError(NOT_CONFIRMED, "the NodePrepull was deleted since, or made anew")
        entries = found.spec.images
        if not any(key_of(entry) == key_of(image) and ordered(entry) for entry in entries):
            raise NodeError(NOT_CONFIRMED, "the newest NodePrepull does not order it any more")
        return entries

    return confirm
