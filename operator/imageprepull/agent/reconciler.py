"""Desired against present on one node: asks the runtime, plans, and carries the plan out. Level triggered.

Above it stand the NodePrepull's informer and the runtime's events, which only wake it; below plan.py decides and a
`Node` acts. A step decides synchronously on what was asked just before; its pulls run as tasks of the agent's group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from imageprepull.agent.backoff import Backoff, Failure, after_failure
from imageprepull.agent.backoff import Pace as RetryPace
from imageprepull.agent.clock import Clock
from imageprepull.agent.comparing import compared
from imageprepull.agent.disk import waiting
from imageprepull.agent.image import Gate, ImageView
from imageprepull.agent.losing import LossPace, lost
from imageprepull.agent.node import Node, NodeError
from imageprepull.agent.plan import Key, Observed, key_of, next_due, plan
from imageprepull.agent.removal import Confirm, Removals, pinned_elsewhere
from imageprepull.pulling.progress import ImageProgress
from imageprepull.pulling.removal import IN_USE
from imageprepull.pulling.space import DISK_FULL, INSUFFICIENT_DISK, NODE_DISK_PRESSURE, NoRoom
from imageprepull.resources.nodeprepull import Desired, DesiredImage, ImageState
from imageprepull.telemetry.metrics import AgentMetrics

logger = structlog.get_logger(__name__)
NO_ROOM = (INSUFFICIENT_DISK, DISK_FULL, NODE_DISK_PRESSURE)


@dataclass(frozen=True, slots=True)
class Delays:
    """Seconds. `ask_again`: after the runtime did not answer. `resync`: everything is asked anew, jittered."""

    resync: float = 300
    ask_again: float = 2
    retry_base: float = 2
    retry_slow: float = 900
    losses: LossPace = field(default_factory=LossPace)


class Reconciler:
    """The images of one node. `step()` does what is to be done now; `run()` repeats it whenever woken or due."""

    def __init__(
        self,
        node: Node,
        tasks: asyncio.TaskGroup,
        *,
        clock: Clock,
        metrics: AgentMetrics,
        on_change: Callable[[], None],
        delays: Delays = Delays(),
        confirm: Confirm | None = None,
        gate: Callable[[NoRoom | None], Gate | None] = lambda _: None,
    ) -> None:
        """`confirm` vouches for a removal; None is for where there is no API server: the spec as taken counts.

        `gate`: why a pull may not start, given what its last attempt had no room for.
        """
        self.views: dict[Key, ImageView] = {}
        """The images of the newest spec, in its order; what a status shows."""
        self.problem = ""
        """Why the runtime could not be asked; empty when it answers."""
        self.last_step = clock.now()
        self._node = node
        self._tasks = tasks
        self._clock = clock
        self._metrics = metrics
        self._on_change = on_change
        self._delays = delays
        self._gate = gate
        self._desired: list[DesiredImage] = []
        self._frozen = True
        self._running: dict[Key, asyncio.Task[None]] = {}
        self._working: dict[Key, ImageView] = {}
        self._orphans: dict[Key, DesiredImage] = {}
        """Images whose entries are gone and that may have left a lease."""
        self._suspect: set[Key] = set()
        self._woken = asyncio.Event()
        self._removals = Removals(
            node, tasks, confirm or self._taken, failed=self._removal_failed, ended=self._removal_ended
        )

    @property
    def running(self) -> frozenset[Key]:
        """Pulls that have not ended, those of vanished entries included."""
        return frozenset(self._running)

    def take_spec(self, desired: Sequence[DesiredImage]) -> None:
        """The operator's newest spec. Entries keep what is known of them; new and changed ones are asked for."""
        views: dict[Key, ImageView] = {}
        for image in desired:
            key = key_of(image)
            # A pull may still run for an entry that had vanished.
            view = self.views.get(key) or self._working.get(key)
            if view is None:
                view = ImageView(image)
                self._suspect.add(key)
            elif view.desired != image:
                view.taken_over(image)
                self._suspect.add(key)
            views[key] = view
            self._orphans.pop(key, None)
        self._note_orphans(views)
        self.views = views
        self._desired = list(desired)
        self._frozen = False
        self.wake()
        self._on_change()

    def freeze(self) -> None:
        """The object is gone: start nothing, remove nothing, until one is there again and says what it wants."""
        self._frozen = True
        self._note_orphans({})
        self.views = {}
        self._desired = []
        self.wake()

    def _note_orphans(self, views: Mapping[Key, ImageView]) -> None:
        """Remember what of the present views may hold a lease and is not in the next ones."""
        for key, view in self.views.items():
            if key not in views and (view.running or view.backoff is not None):
                self._orphans[key] = view.desired

    def suspect_all(self) -> None:
        """Whatever was said about presence may be wrong: the runtime removed something, or was restarted."""
        self._suspect.update(self.views)
        self.wake()

    def retry_used(self) -> None:
        """Containers are gone: what could not be removed because one used it may be free now."""
        for view in self.views.values():
            if view.desired.state is Desired.ABSENT and view.backoff and view.backoff.reason == IN_USE:
                view.due = 0
                self.wake()

    def wake(self) -> None:
        """Something changed; the next step decides what follows."""
        self._woken.set()

    async def run(self) -> None:
        """Step until cancelled; then every pull is cancelled and has cleaned up before this returns."""
        resync_at = self._clock.now() + self._delays.resync * (0.8 + 0.4 * self._clock.uniform())
        try:
            while True:
                self._woken.clear()
                if self._clock.now() >= resync_at:
                    self._suspect.update(self.views)
                    resync_at = self._clock.now() + self._delays.resync * (0.8 + 0.4 * self._clock.uniform())
                wait = await self.step()
                until_resync = max(0.0, resync_at - self._clock.now())
                try:
                    async with asyncio.timeout(until_resync if wait is None else min(wait, until_resync)):
                        await self._woken.wait()
                except TimeoutError:
                    continue
        finally:
            await self.stop_pulls()

    async def step(self) -> float | None:
        """One pass; returns the seconds until the next one is needed without being woken."""
        self.last_step = self._clock.now()
        if self._frozen:
            return None
        answered = await self._ask()
        # No await between reading the state and acting on the plan.
        now = self._clock.now()
        observed = self._observed()
        actions = plan(self._desired, observed, now)
        if actions.parallel_downloads is not None and actions.stall_timeout is not None:
            self._node.set_limits(actions.parallel_downloads, actions.stall_timeout)
        for key in actions.stop:
            self._running[key].cancel()
        for key in actions.start:
            self._start(self.views[key])
        for key in actions.verify:
            self._verify(self.views[key])
        for key in actions.remove:
            self._removals.start(self.views[key])
        for key in actions.unpin:
            await self._unpin(key)
        await self._drop_orphans()
        wait = next_due(self._desired, self._observed(), self._clock.now())
        self._log_changes()
        if answered:
            return wait
        return self._delays.ask_again if wait is None else min(wait, self._delays.ask_again)

    async def stop_pulls(self) -> None:
        """Cancel all pulls and wait until each has cleaned up; their leases stay, so that they resume."""
        await self._removals.stop()
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _ask(self) -> bool:
        """Ask the runtime about every suspect; False when it did not answer, and they stay suspect.

        An image that cannot be judged (odd content, a bad reference) is a failure of that image alone.
        """
        now = self._clock.now()
        self._suspect.update(key for key, view in self.views.items() if view.held is None and view.due <= now)
        for key in [key for key in self.views if key in self._suspect]:
            view = self.views.get(key)
            if view is None or view.running or view.desired.state is Desired.ABSENT:
                self._suspect.discard(key)
                continue
            # Before the answer: what is suspected meanwhile must be asked once more.
            self._suspect.discard(key)
            try:
                held = await self._node.held(view.desired)
            except NodeError as error:
                if error.unavailable:
                    self._suspect.add(key)
                    self._note_problem(f"{error.reason}: {error}")
                    return False
                view.held = None
                self._back_off(
                    view,
                    view.desired,
                    Failure(error.reason, str(error), error.permanent, error.retry_after),
                    view.best_done,
                )
                self._on_change()
                continue
            first = view.held is None and view.pulled is None
            if view.held is not None and view.held.present and not held.present:
                self._note_loss(view)
            if held != view.held:
                view.held = held
                self._on_change()
            if held.present:
                if first or view.backoff is not None:
                    # Whoever brought it: no next attempt needs what failed ones have kept, or an agent that died
                    # between the records and the end of its lease.
                    self._orphans[key] = view.desired
                view.forget_failures()
            else:
                # What was brought once says nothing about the next pull.
                view.pulled = None
        self._suspect &= self.views.keys()
        self._note_problem("")
        return True

    def _observed(self) -> Observed:
        views = self.views
        for view in views.values():
            there = view.held is not None and view.held.present
            gate = None if there or view.desired.state is Desired.ABSENT else self._gate(view.lack)
            if gate != view.gate:
                view.gate = gate
                self._on_change()
        held_back = {key for key, view in views.items() if view.gate is not None}
        return Observed(
            # A suspect is unknown: a pull starts only on an answer of now.
            present={
                key: view.held.present
                for key, view in views.items()
                if view.held is not None and key not in self._suspect
            },
            running=self.running,
            due={key: view.due for key, view in views.items() if view.backoff is not None},
            final={key for key, view in views.items() if view.backoff is not None and view.backoff.final},
            released={key for key, view in views.items() if view.released},
            pinned={key for key, view in views.items() if view.held is not None and view.held.our_pin},
            repaired={key for key, view in views.items() if view.repaired == view.desired.repair},
            verifying=any(view.verifying for view in self._working.values()),
            removing=self._removals.running,
            cramped=held_back
            | {key for key, view in views.items() if view.backoff and view.backoff.reason in NO_ROOM},
            held_back=held_back,
        )

    def _start(self, view: ImageView) -> None:
        key = key_of(view.desired)
        # The pull takes over whatever lease there is, and ends it.
        self._orphans.pop(key, None)
        view.running = True
        view.lack = None
        view.progress = ImageProgress(view.desired.reference, on_change=self._on_change)
        if view.backoff is not None:
            self._metrics.retries.inc()
        self._run(key, view, self._pull(view, view.desired, view.progress))

    def _verify(self, view: ImageView) -> None:
        """Like a pull it has the image for itself, and is over before one may begin."""
        view.running = view.verifying = True
        self._run(key_of(view.desired), view, compared(self._node, view, view.desired))

    def _run(self, key: Key, view: ImageView, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks.create_task(work)
        self._running[key] = task
        self._working[key] = view
        self._metrics.working.set(len(self._running))
        # Not a `finally` in the coroutine: one that is cancelled before its first step never enters it.
        task.add_done_callback(lambda ended: self._ended(key, view, ended))
        self._on_change()

    def _ended(self, key: Key, view: ImageView, task: asyncio.Task[None]) -> None:
        """The slot is free. Even a success is believed only when the runtime is asked."""
        del self._running[key]
        del self._working[key]
        verified, view.running, view.verifying = view.verifying, False, False
        self._suspect.add(key)
        self._metrics.working.set(len(self._running))
        if not verified:
            if task.cancelled():
                self._metrics.pull_ended("cancelled")
            if view.progress is not None:
                self._metrics.downloaded(view.progress.bytes_by_host)
        self._on_change()
        self.wake()

    async def _pull(self, view: ImageView, image: DesiredImage, progress: ImageProgress) -> None:
        """One attempt, and what follows from it; never fails but by a cancellation."""
        try:
            pulled = await self._node.pull(image, progress)
        except NodeError as error:
            failure = Failure(error.reason, str(error), error.permanent, error.retry_after)
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
            for other in self.views.values():
                # Layers that it shares with this one are there now: it may need less than it did.
                other.lack = None
            return
        self._metrics.pull_ended("failed", failure.reason)
        backoff = self._back_off(view, image, failure, sum(layer.done for layer in progress.layers))
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
        if backoff.final:
            # Within the pull's slot: a next attempt must not take the lease that is being dropped.
            await self._abandon(image)

    async def _taken(self, _: DesiredImage) -> Sequence[DesiredImage]:
        return self._desired

    def _removal_failed(self, view: ImageView, image: DesiredImage, failure: Failure) -> None:
        if view.backoff is None or view.backoff.reason != failure.reason:
            logger.warning(
                "not removed", image=image.reference, reason=failure.reason, message=failure.message
            )
        self._back_off(view, image, failure, 0)

    def _removal_ended(self, view: ImageView) -> None:
        # Who named it anew meanwhile, under whatever reference, has lost it.
        self._suspect.update(key for key in self.views if key[1] == view.desired.digest)
        self._on_change()
        self.wake()

    def _shares_lease(self, image: DesiredImage) -> bool:
        """Whether another reference to the digest is, or will be, pulled under the same lease."""
        return any(key[1] == image.digest for key in self._running) or any(
            view.desired.digest == image.digest
            and view.desired.state is not Desired.ABSENT
            and not (view.held and view.held.present)
            for key, view in self.views.items()
            if key != key_of(image)
        )

    async def _abandon(self, image: DesiredImage) -> None:
        try:
            await self._node.abandon(image)
        except NodeError as error:
            # It expires by itself within a day, and the sweep at the next start finds it.
            logger.warning("cannot drop the lease", image=image.reference, error=str(error))

    def _back_off(self, view: ImageView, image: DesiredImage, failure: Failure, done: int) -> Backoff:
        """Count a failed attempt. More bytes than any attempt before had are progress."""
        gained = done > view.best_done
        failure = replace(failure, gained=gained)
        pace = RetryPace(self._delays.retry_base, image.retry.max_backoff_seconds, self._delays.retry_slow)
        if view.lack is not None:
            backoff = waiting(view.backoff, failure, pace, self._clock.uniform())
        else:
            backoff = after_failure(
                view.backoff,
                failure,
                limit=image.retry.backoff_limit,
                pace=pace,
                uniform=self._clock.uniform(),
            )
        view.best_done = max(done, view.best_done)
        view.backoff = backoff
        view.due = self._clock.now() + backoff.delay
        view.next_attempt = self._clock.stamp(backoff.delay) if backoff.delay else None
        return backoff

    def _note_loss(self, view: ImageView) -> None:
        view.losses, backoff = lost(
            view.losses, self._clock.now(), self._delays.losses, self._clock.uniform()
        )
        if backoff is not None:
            view.backoff = backoff
            view.due = self._clock.now() + backoff.delay
            view.next_attempt = self._clock.stamp(backoff.delay)

    async def _unpin(self, key: Key) -> None:
        view = self.views.get(key)
        if view is None or (view.desired.state is not Desired.ABSENT and view.desired.pin):
            return  # the spec changed while another one was unpinned.
        try:
            await self._node.unpin(view.desired, pinned_elsewhere(view.desired, self._desired))
        except NodeError as error:
            failure = Failure(error.reason, str(error), error.permanent, error.retry_after)
            self._back_off(view, view.desired, failure, 0)
        else:
            if view.desired.state is Desired.ABSENT:
                if not self._shares_lease(view.desired):
                    await self._abandon(view.desired)
                view.released = view.desired.state is Desired.ABSENT
            else:
                self._suspect.add(key)
            view.forget_failures()
            # Their ID record is the same one: who still wants it pinned pins it again.
            self._suspect.update(other for other in self.views if other[1] == key[1] and other != key)
            self.wake()
        self._on_change()

    async def _drop_orphans(self) -> None:
        """Leases of attempts that nobody will resume; what is finished and recorded stays as it is."""
        for key in [key for key in self._orphans if key not in self._running]:
            image = self._orphans.pop(key, None)
            if image is not None and not self._shares_lease(image):
                await self._abandon(image)

    def _note_problem(self, problem: str) -> None:
        if problem and problem != self.problem:
            logger.warning("the runtime does not answer", error=problem)
        self.problem = problem

    def _log_changes(self) -> None:
        """One line per change of an image's state, none per layer."""
        for view in self.views.values():
            state = view.state
            if state != view.logged:
                view.logged = state
                details = {}
                if state is ImageState.READY and view.pulled is not None:
                    details = {f"seconds_{phase}": round(s, 2) for phase, s in view.pulled.seconds.items()}
                logger.info(
                    "image",
                    reference=view.desired.reference,
                    digest=view.desired.digest,
                    state=state,
                    **details,
                )
