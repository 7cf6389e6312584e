"""What becomes of an image that failed, or vanished: when it may be tried again. Written into its view.

Between the pure rules (backoff.py, losing.py, disk.waiting) and whoever met the failure.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from imageprepull.agent.backoff import Backoff, Failure, Pace, after_failure, patient
from imageprepull.agent.clock import Clock
from imageprepull.agent.disk import waiting
from imageprepull.agent.doubts import LookPace
from imageprepull.agent.image import ImageView, worth_a_retry
from imageprepull.agent.losing import LossPace, lost
from imageprepull.pulling.space import NoRoom
from imageprepull.resources.nodeprepull import DesiredImage


@dataclass(frozen=True, slots=True)
class Delays:
    """Seconds. `ask_again`: after the runtime did not answer, or not of now. `resync`: everything is asked anew, jittered.

    `recompare`: before a comparison that had no room is tried again at the earliest, when there is room.
    `repin`: before a pin that was set and is missing all the same, or could not be set, is set once more.
    `retry_order`: between two questions whether a removal is still ordered. `stray_turn`: before other pins without an
    entry are reported than those that are; the operator orders away what it saw before its last list (`--resync`).
    `unchosen`: before a node whose NodePrepull is gone gives back what unfinished pulls have kept there. Most are made
    again: by hand, for a node that registers anew, by an operator that was away; and then no byte is to be fetched twice.
    """

    resync: float = 300
    ask_again: float = 2
    retry_base: float = 2
    retry_slow: float = 900
    recompare: float = 60
    repin: float = 60
    retry_order: float = 60
    stray_turn: float = 900
    unchosen: float = 900
    losses: LossPace = field(default_factory=LossPace)
    looks: LookPace = field(default_factory=LookPace)


DELAYS = Delays()


class Accounts:
    """Keeps them for all images of a node."""

    def __init__(self, clock: Clock, delays: Delays) -> None:
        self._clock = clock
        self._delays = delays

    def failed(self, view: ImageView, image: DesiredImage, failure: Failure, done: int) -> Backoff:
        """Count a failed attempt at `image`. More bytes (`done`) than any attempt before had are progress.

        Where the words have changed since it began it says nothing of the new ones: those are tried at once, with
        what was fetched.
        """
        failure = replace(failure, gained=done > view.best_done)
        pace = Pace(self._delays.retry_base, image.retry.max_backoff_seconds, self._delays.retry_slow)
        uniform = self._clock.uniform()
        if view.lack is not None:
            backoff = waiting(view.backoff, failure, pace, uniform)
        else:
            limit = image.retry.backoff_limit
            backoff = after_failure(view.backoff, failure, limit=limit, pace=pace, uniform=uniform)
        view.best_done = max(done, view.best_done)
        self._wait(view, backoff)
        if worth_a_retry(image, view.desired):
            view.forget_failures()
            backoff = replace(backoff, gives_up=False)
        return backoff

    def waits(self, view: ImageView, failure: Failure, seconds: float) -> None:
        """Something that nobody here can hasten is waited for: no attempt is counted, and it never fails for good."""
        self._wait(view, patient(view.backoff, failure, seconds, self._clock.uniform()))

    def cannot_compare(self, view: ImageView, lack: NoRoom | None) -> None:
        """A comparison had no room. Time passes too: each one reads all of an image, and the disk's last figures are old.

        Without a `lack` nobody can tell when there is room.
        """
        view.repair_lack = lack
        delay = self._delays.retry_slow if lack is None else self._delays.recompare
        view.repair_due = self._clock.now() + delay * (0.8 + 0.4 * self._clock.uniform())

    def lost(self, view: ImageView, missing: str) -> None:
        """Count that an image which was there, or was just brought, lacks something."""
        view.losses, backoff = lost(
            view.losses, self._clock.now(), self._delays.losses, self._clock.uniform(), missing
        )
        if backoff is not None:
            self._wait(view, backoff)

    def _wait(self, view: ImageView, backoff: Backoff) -> None:
        view.backoff = backoff
        view.due = self._clock.now() + backoff.delay
        view.next_attempt = self._clock.stamp(backoff.delay) if backoff.delay else None
