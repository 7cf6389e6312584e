"""Desired against present on one node: asks the runtime, plans, and carries the plan out. Level triggered.

Above it stand the NodePrepull's informer and the runtime's events, which only wake it; below plan.py decides and a
`Node` acts. A step decides synchronously on what was asked just before; its pulls run as tasks of the agent's group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

import structlog

from imageprepull.agent.accounts import DELAYS, Accounts, Delays
from imageprepull.agent.attempts import Attempts
from imageprepull.agent.backoff import Failure
from imageprepull.agent.clock import Clock
from imageprepull.agent.doubts import Doubts
from imageprepull.agent.image import Gate, ImageView, log_changes
from imageprepull.agent.node import Node, NodeError
from imageprepull.agent.observing import concerned, note_losses, observed
from imageprepull.agent.orders import Confirm, pinned_elsewhere
from imageprepull.agent.orphans import Orphans
from imageprepull.agent.pin_list import PinList
from imageprepull.agent.plan import Key, Observed, key_of, next_due, plan
from imageprepull.agent.removal import Removals
from imageprepull.agent.suspects import Suspects
from imageprepull.agent.tags import tags_elsewhere
from imageprepull.agent.yielding import Yielding
from imageprepull.pulling.removal import IN_USE
from imageprepull.pulling.space import NoRoom
from imageprepull.resources.nodeprepull import Desired, DesiredImage, NodeImageStatus, StrayPin
from imageprepull.telemetry.metrics import AgentMetrics

logger = structlog.get_logger(__name__)


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
        delays: Delays = DELAYS,
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
        self._clock = clock
        self._on_change = on_change
        self._delays = delays
        self._gate = gate
        self._desired: list[DesiredImage] = []
        self._frozen_since: float | None = clock.now()
        self._doubts = Doubts(delays.looks)
        self._pins = PinList(node, clock, stray_turn=delays.stray_turn, changed=on_change)
        self._woken = asyncio.Event()
        self._accounts = Accounts(clock, delays)
        self._orphans = Orphans(node, views=lambda: self.views, running=lambda: self._attempts.running)
        self._attempts = Attempts(
            node,
            tasks,
            self._accounts,
            metrics=metrics,
            changed=on_change,
            pulled=self._pulled,
            removed=self.suspect_all,
            release=self._orphans.release,
            ended=self._attempt_ended,
        )
        self._suspects = Suspects(
            node, clock, self._accounts, self._orphans, views=lambda: self.views, changed=on_change
        )
        self._removals = Removals(
            node,
            tasks,
            self._accounts,
            confirm,
            clock=clock,
            delays=delays,
            newest=lambda: self._desired,
            unpinned=self._doubt_pins,
            ended=self._removal_ended,
        )
        self._yielding = Yielding(node, tasks, views=lambda: self.views, changed=on_change)

    @property
    def running(self) -> frozenset[Key]:
        """Pulls that have not ended, those of vanished entries included."""
        return self._attempts.running

    @property
    def pins_left(self) -> int:
        """Images of the spec that may carry a pin of ours, as the runtime lists them and not as each is judged."""
        return self._pins.left(self.views)

    @property
    def stray_pins(self) -> list[StrayPin]:
        """Pins of ours beside the spec, as of the last step that could tell."""
        return self._pins.strays

    @property
    def unfinished_left(self) -> int | None:
        """Under disk pressure: pulls that hold something all the same; None while that is not known."""
        return self._yielding.left

    def take_spec(self, desired: Sequence[DesiredImage], reported: Sequence[NodeImageStatus] = ()) -> None:
        """The operator's newest spec. Entries keep what is known of them; new and changed ones are asked for.

        `reported`: what the node's status says, perhaps in the words of an earlier agent. What that one compared is not
        compared once more.
        """
        views: dict[Key, ImageView] = {}
        before = {(image.reference, image.digest): image for image in reported}
        elsewhere = tags_elsewhere(desired)
        for image in desired:
            key = key_of(image)
            # A pull may still run for an entry that had vanished.
            view = self.views.get(key) or self._attempts.views.get(key)
            if view is None:
                view = ImageView(image)
                view.recall(before.get(key))
                self._suspects.keys.add(key)
            elif view.desired != image:
                # Pressure began or ended, say: what is said of pins then should be of now.
                self._pins.doubtful |= view.desired.pin != image.pin
                view.taken_over(image)
                self._suspects.keys.add(key)
            if view.give_tag(elsewhere.get(key, "")):
                self._suspects.keys.add(key)
            views[key] = view
            self._orphans.claim(key)
        self._orphans.note_vanished(views)
        self.views = views
        self._desired = list(desired)
        self._frozen_since = None
        self._removals.look_again()
        self.wake()
        self._on_change()

    def freeze(self) -> None:
        """The object is gone: start nothing, remove nothing, until one is there again and says what it wants.

        That is about images. What unfinished pulls have kept is a cache for attempts that nobody asks for any more:
        after `Delays.unchosen` it is given back, as a restart, which cannot know since when, gives it back at once.
        """
        if self._frozen_since is None:
            self._frozen_since = self._clock.now()
        self._orphans.note_vanished({})
        self.views = {}
        self._desired = []
        self._pins.strays = []
        self._removals.look_again()
        self.wake()

    def suspect_all(self) -> None:
        """Whatever was said about presence may be wrong: it is asked anew, whatever that takes."""
        self._suspects.keys.update(self.views)
        self._pins.doubtful = True
        self.wake()

    def suspect_lost(self, lost: Collection[str]) -> None:
        """The runtime removed these records, blobs and layers; with none of them it was restarted."""
        note_losses(self._doubts, self.views, lost)
        self.wake()

    def suspect_named(self, records: Collection[str]) -> None:
        """Somebody changed these image records: a pull of the kubelet takes the pin from its tag's."""
        if found := concerned(self.views, records):
            self._doubts.named |= found
            self.wake()

    def retry_used(self) -> None:
        """Containers are gone: what could not be removed because one used it may be free now."""
        self._removals.note_freed()
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
                if self._clock.now() >= resync_at:
                    self.suspect_all()
                    resync_at = self._clock.now() + self._delays.resync * (0.8 + 0.4 * self._clock.uniform())
                self._woken.clear()
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
        if self._frozen_since is not None:
            return await self._step_without_object(self._frozen_since)
        turn = self._doubts.take(self.last_step)
        self._suspects.keys.update(self.views if turn.everything else turn.keys)
        self._pins.doubtful |= turn.everything or bool(turn.keys)
        answered = await self._ask()
        # No await between reading the state and acting on the plan.
        now = self._clock.now()
        self._doubts.looked(self.last_step, now)
        observed = self._observed()
        actions = plan(self._desired, observed, now)
        if actions.parallel_downloads is not None and actions.stall_timeout is not None:
            self._node.set_limits(actions.parallel_downloads, actions.stall_timeout)
        for key in actions.stop:
            self._attempts.cancel(key)
        for key in actions.start:
            self._orphans.claim(key)
            self._attempts.pull(self.views[key])
        for key in actions.verify:
            self._attempts.compare(self.views[key])
        for key in actions.remove:
            self._removals.start(self.views[key])
        for key in actions.pin:
            await self._pin(key)
        for key in actions.unpin:
            await self._unpin(key)
        await self._orphans.drop()
        self._give_way()
        # A pull whose entry vanished goes on, and whoever made it vanish may bring it back.
        self._pins.note_strays(self.views.keys() | self.running)
        wait = next_due(
            self._desired, self._observed(), self._clock.now(), self._doubts.due(), began=self.last_step
        )
        log_changes(self.views.values())
        if answered:
            return wait
        return self._delays.ask_again if wait is None else min(wait, self._delays.ask_again)

    async def _step_without_object(self, since: float) -> float | None:
        # That an object is gone orders nothing. The disk does, and time does away with what serves nobody.
        self._give_way()
        left = since + self._delays.unchosen - self.last_step
        if left > 0:
            return left if self._orphans.images else None
        await self._orphans.drop()
        return None

    async def stop_pulls(self) -> None:
        """Cancel all pulls and wait until each has cleaned up; their leases stay, so that they resume."""
        await self._removals.stop()
        await self._yielding.stop()
        await self._attempts.stop()

    async def _ask(self) -> bool:
        """Ask the runtime about all that is doubtful; False when it did not answer, and it stays doubtful."""
        try:
            await self._suspects.ask()
            await self._pins.ask()
        except NodeError as error:
            self._note_problem(f"{error.reason}: {error}")
            return False
        self._note_problem("")
        return True

    def _doubt_pins(self) -> None:
        self._pins.doubtful = True
        self.wake()

    def _observed(self) -> Observed:
        for view in self.views.values():
            there = view.held is not None and view.held.present
            gate = None if there or view.desired.state is Desired.ABSENT else self._gate(view.lack)
            if gate != view.gate:
                view.gate = gate
                self._on_change()
        return observed(
            self.views,
            self._suspects.keys,
            self._attempts.views,
            self._removals.running,
            self._pins.of(self.views),
            repair_cramped={
                key
                for key, view in self.views.items()
                if view.repair_lack is not None and self._gate(view.repair_lack) is not None
            },
        )

    def _pulled(self) -> None:
        """Layers that others share with the image that was brought are there now: they may need less than they did."""
        for view in self.views.values():
            view.lack = None

    def _give_way(self) -> None:
        # Without a lack only the node as a whole can keep anybody from pulling.
        self._yielding.start(pressure=self._gate(None) is not None)

    def _attempt_ended(self, key: Key) -> None:
        """The slot is free. Even a success is believed only when the runtime is asked."""
        self._suspects.keys.add(key)
        self._pins.may_be_set(key)
        self._on_change()
        self.wake()

    def _removal_ended(self, view: ImageView) -> None:
        # Who named it anew meanwhile, under whatever reference, has lost it.
        self._suspects.keys.update(key for key in self.views if key[1] == view.desired.digest)
        self._pins.doubtful = True
        self._on_change()
        self.wake()

    async def _pin(self, key: Key) -> None:
        view = self.views.get(key)
        if view is None or view.running or view.desired.state is Desired.ABSENT:
            return  # the spec changed while another one was pinned, or it is being compared.
        view.pin_due = self._clock.now() + self._delays.repin
        self._pins.may_be_set(key)
        try:
            await self._node.pin(view.asked)
        except NodeError as error:
            logger.warning("cannot pin", image=view.desired.reference, reason=error.reason, error=str(error))
        else:
            self._suspects.keys.add(key)
            self.wake()
        self._on_change()

    async def _unpin(self, key: Key) -> None:
        view = self.views.get(key)
        if view is None or (view.desired.state is not Desired.ABSENT and view.desired.pin):
            return  # the spec changed while another one was unpinned.
        try:
            await self._node.unpin(view.desired, pinned_elsewhere(view.desired, self._desired))
        except NodeError as error:
            failure = Failure(error.reason, str(error), error.permanent, error.retry_after)
            self._accounts.failed(view, view.desired, failure, 0)
            view.unpin_due = view.due
        else:
            if view.desired.state is Desired.ABSENT:
                await self._orphans.release(view.desired)
                view.released = view.desired.state is Desired.ABSENT
            else:
                self._suspects.keys.add(key)
            view.forget_failures()
            self._pins.doubtful = True
            # Their ID record is the same one: who still wants it pinned pins it again.
            self._suspects.keys.update(other for other in self.views if other[1] == key[1] and other != key)
            self.wake()
        self._on_change()

    def _note_problem(self, problem: str) -> None:
        if problem and problem != self.problem:
            logger.warning("the runtime does not answer", error=problem)
        self.problem = problem
