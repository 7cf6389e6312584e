"""Absent with Delete on its way: started by the reconciler when plan.py says so, carried out by the node.

A removal ends with a collection of the runtime, which may take minutes: it runs beside the pulls, one at a time. It
may be cut off anywhere and is begun again by the next step, or the next agent, as long as the entry stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from math import inf

import structlog

from imageprepull.agent.accounts import Accounts, Delays
from imageprepull.agent.backoff import Failure
from imageprepull.agent.clock import Clock
from imageprepull.agent.image import ImageView
from imageprepull.agent.node import Node, NodeError
from imageprepull.agent.operator_lease import OPERATOR_AWAY
from imageprepull.agent.orders import NOT_CONFIRMED, Confirm, pinned_elsewhere, staying_digests
from imageprepull.agent.plan import Key, key_of
from imageprepull.pulling.removal import IN_USE
from imageprepull.resources.nodeprepull import DesiredImage

logger = structlog.get_logger(__name__)


class Removals:
    """`unpinned` hears that a pin may be gone, long before the image; `ended` which removal is over, however it ended.

    `newest`: the node's entries as the agent follows them.
    """

    def __init__(
        self,
        node: Node,
        tasks: asyncio.TaskGroup,
        accounts: Accounts,
        confirm: Confirm | None,
        *,
        clock: Clock,
        delays: Delays,
        newest: Callable[[], Sequence[DesiredImage]],
        unpinned: Callable[[], None],
        ended: Callable[[ImageView], None],
    ) -> None:
        """`confirm`: None is for where there is no API server; the entries as the agent follows them count."""
        self._node = node
        self._tasks = tasks
        self._accounts = accounts
        self._confirm = confirm or self._followed
        self._clock = clock
        self._newest = newest
        self._unpinned = unpinned
        self._ended = ended
        # Who uses it goes when it goes; the runtime tells, and the slow retry finds what it did not tell.
        self._patience = {
            IN_USE: delays.retry_slow,
            NOT_CONFIRMED: delays.retry_order,
            OPERATOR_AWAY: delays.retry_order,
        }
        self._ask_again = delays.ask_again
        self._freed = -inf
        """When containers were last heard to have gone."""
        self._running: dict[Key, asyncio.Task[None]] = {}
        self._waiting: set[Key] = set()
        """Those of them that have removed nothing yet: their orders are being confirmed."""

    @property
    def running(self) -> frozenset[Key]:
        """What is being removed."""
        return frozenset(self._running)

    def start(self, view: ImageView) -> None:
        """Remove the image of an Absent entry."""
        key = key_of(view.desired)
        task = self._tasks.create_task(self._remove(view, view.desired))
        self._running[key] = task
        self._waiting.add(key)

        def forget(_: asyncio.Task[None]) -> None:
            del self._running[key]
            self._waiting.discard(key)
            self._ended(view)

        task.add_done_callback(forget)

    def look_again(self) -> None:
        """The node's entries changed: what was taken back while it was being confirmed does not hold its image up."""
        for key in self._waiting:
            if not any(key_of(entry) == key and entry.to_be_deleted for entry in self._newest()):
                self._running[key].cancel()

    def note_freed(self) -> None:
        """Containers are gone: whoever looks for them now, or has just looked, may have found one of them all the same.

        The runtime says that a container has gone before its CRI leaves it out of its list.
        """
        self._freed = self._clock.now()

    async def stop(self) -> None:
        """Cut off what runs."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _remove(self, view: ImageView, image: DesiredImage) -> None:
        began = self._clock.now()
        try:
            # As for any Absent entry, whoever confirms it: a pin is set again as easily, and must not keep an image
            # from the kubelet's collection for as long as the order waits.
            await self._node.unpin(image, pinned_elsewhere(image, self._newest()))
            self._unpinned()
            entries = await self._confirm(image)
            self._waiting.discard(key_of(image))
            kept = await self._node.remove(image, lambda: staying_digests(image, entries, self._newest()))
        except NodeError as error:
            failure = Failure(error.reason, str(error), error.permanent, error.retry_after)
            self._failed(view, image, failure, began)
        except Exception as error:
            # A defect in one image's removal must not take the node's pulls down with it.
            logger.exception("removal failed unexpectedly", image=image.reference, digest=image.digest)
            failure = Failure("InternalError", f"{type(error).__name__}: {error}")
            self._failed(view, image, failure, began)
        else:
            taken_back = not view.desired.to_be_deleted
            logger.info(
                "the order to remove an image was taken back" if taken_back else "image let go",
                reference=image.reference,
                digest=image.digest,
                kept=kept or None,
            )
            if not taken_back:
                view.released = True
                view.forget_failures()

    async def _followed(self, _: DesiredImage) -> Sequence[DesiredImage]:
        return self._newest()

    def _failed(self, view: ImageView, image: DesiredImage, failure: Failure, began: float) -> None:
        if not view.desired.to_be_deleted:
            return  # it was taken back meanwhile: what has become of it holds nothing up.
        if view.backoff is None or view.backoff.reason != failure.reason:
            logger.warning(
                "not removed", image=image.reference, reason=failure.reason, message=failure.message
            )
        if failure.reason == IN_USE and self._freed > began - self._ask_again:
            self._accounts.waits(view, failure, self._ask_again)
        elif failure.reason in self._patience:
            self._accounts.waits(view, failure, self._patience[failure.reason])
        else:
            self._accounts.failed(view, image, failure, 0)
