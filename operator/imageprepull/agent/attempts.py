"""The work on images that takes long: pulls, and comparisons with blobs. Each a task of the agent's group.

An image has one at a time. The reconciler starts and stops them as plan.py says, and is told when one has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import structlog

from imageprepull.agent.accounts import Accounts
from imageprepull.agent.backoff import Failure
from imageprepull.agent.comparing import compared
from imageprepull.agent.image import ImageView
from imageprepull.agent.node import Node, NodeError
from imageprepull.agent.plan import Key, key_of
from imageprepull.pulling.progress import ImageProgress
from imageprepull.resources.nodeprepull import DesiredImage
from imageprepull.telemetry.metrics import AgentMetrics

logger = structlog.get_logger(__name__)


class Attempts:
    """`changed` hears that a view changed, `pulled` that an image was brought, `ended` which work is over.

    `removed` hears before that, that a comparison has removed what was broken. `release` is awaited when no next attempt
    at an image needs what this one and earlier ones have kept.
    """

    def __init__(
        self,
        node: Node,
        tasks: asyncio.TaskGroup,
        accounts: Accounts,
        *,
        metrics: AgentMetrics,
        changed: Callable[[], None],
        pulled: Callable[[], None],
        removed: Callable[[], None],
        release: Callable[[DesiredImage], Awaitable[None]],
        ended: Callable[[Key], None],
    ) -> None:
        self._node = node
        self._tasks = tasks
        self._accounts = accounts
        self._metrics = metrics
        self._changed = changed
        self._pulled = pulled
        self._removed = removed
        self._release = release
        self._ended = ended
        self._running: dict[Key, asyncio.Task[None]] = {}
        self._views: dict[Key, ImageView] = {}

    @property
    def running(self) -> frozenset[Key]:
        """What has not ended, entries that vanished included."""
        return frozenset(self._running)

    @property
    def views(self) -> Mapping[Key, ImageView]:
        """Of what runs."""
        return self._views

    def pull(self, view: ImageView) -> None:
        """Try to bring an image."""
        view.running = True
        view.lack = None
        view.progress = ImageProgress(view.desired.reference, on_change=self._changed)
        if view.backoff is not None:
            self._metrics.retries.inc()
        self._run(view, self._pull(view, view.asked, view.progress))

    def compare(self, view: ImageView) -> None:
        """Compare an image with its blobs. Like a pull it has the image for itself."""
        view.running = view.verifying = True
        self._run(view, self._compare(view, view.desired))

    def cancel(self, key: Key) -> None:
        """Stop what runs; it has ended only when `ended` is told so."""
        self._running[key].cancel()

    async def stop(self) -> None:
        """Cancel everything and wait until it has cleaned up; leases stay, so that pulls resume."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _run(self, view: ImageView, work: Coroutine[Any, Any, None]) -> None:
        key = key_of(view.desired)
        task = self._tasks.create_task(work)
        self._running[key] = task
        self._views[key] = view
        self._metrics.working.set(len(self._running))
        # Not a `finally` in the coroutine: one that is cancelled before its first step never enters it.
        task.add_done_callback(lambda ended: self._over(key, view, ended))
        self._changed()

    def _over(self, key: Key, view: ImageView, task: asyncio.Task[None]) -> None:
        del self._running[key]
        del self._views[key]
        verified, view.running, view.verifying = view.verifying, False, False
        self._metrics.working.set(len(self._running))
        if not verified:
            if task.cancelled():
                self._metrics.pull_ended("cancelled")
            if view.progress is not None:
                self._metrics.downloaded(view.progress.bytes_by_host)
        self._ended(key)

    async def _compare(self, view: ImageView, image: DesiredImage) -> None:
        if await compared(self._node, view, image, self._accounts):
            self._removed()

    async def _pull(self, view: ImageView, image: DesiredImage, progress: ImageProgress) -> None:
        """One attempt, and what follows from it; never fails but by a cancellation."""
        try:
            pulled = await self._node.pull(image, progress)
        except NodeError as error:
            failure = Failure(
                error.reason, str(error), error.permanent, error.retry_after, resumable=error.resumable
            )
            view.lack = error.no_room
        except Exception as error:
            # A defect in one image's pull must not take the node's other images down with it.
            logger.exception("pull failed unexpectedly", image=image.reference, digest=image.digest)
            failure = Failure("InternalError", f"{type(error).__name__}: {error}")
        else:
            view.pulled = pulled
            self._metrics.pull_ended("succeeded")
            for phase, seconds in pulled.seconds.items():
                self._metrics.took(phase, seconds)
            self._pulled()
            return
        self._metrics.pull_ended("failed", failure.reason)
        done = sum(layer.done for layer in progress.layers)
        backoff = self._accounts.failed(view, image, failure, done)
        logger.warning(
            "pull failed",
            image=image.reference,
            digest=image.digest,
            reason=failure.reason,
            message=failure.message,
            attempts=backoff.attempts,
            final=backoff.final,
            next_attempt_seconds=round(backoff.delay, 1),
        )
        if backoff.gives_up:
            # Within the pull's slot: a next attempt must not take the lease that is being dropped.
            await self._release(view.desired)
