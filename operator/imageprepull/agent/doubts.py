"""Images that an event of the runtime made doubtful, until it is their turn to be asked about. Pure: no clock of its own.

Between losses.py, which hears the events, and the reconciler, which asks. Whatever is deleted in the runtime's namespace
makes an event (a build, another tool's images), each second if it likes, and to ask about all images of a node costs
agent and runtime seconds of CPU where they are many. So whoever was asked about is left alone for a multiple of the time
that it took. Images that events name have a turn of their own: they are few, and waiting for them is waiting for a loss.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from imageprepull.agent.plan import Key


@dataclass(frozen=True, slots=True)
class LookPace:
    """The rest after a look: `times` the seconds it took, at most `longest`, or `longest_named` after one at named images.

    So such looks take less than 1 / `times` of the time each, as long as the bounds are not reached.
    """

    times: float = 20
    longest: float = 30
    longest_named: float = 5


@dataclass(frozen=True, slots=True)
class Turn:
    """Whom to ask about now. `everything`: all images, and what lies beside them."""

    keys: frozenset[Key] = frozenset()
    everything: bool = False


@dataclass(slots=True)
class Doubts:
    """Notes doubts and hands them out when it is their turn. Times are the caller's, in monotonic seconds."""

    pace: LookPace = field(default_factory=LookPace)
    named: set[Key] = field(default_factory=set)
    everything: bool = False
    named_from: float = 0
    """When the next look at named images may begin; `everything_from` likewise."""
    everything_from: float = 0
    _taken: Turn = Turn()

    def take(self, now: float) -> Turn:
        """What may be asked about at `now`; it is doubted no more."""
        everything = self.everything and self.everything_from <= now
        keys = frozenset(self.named) if everything or self.named_from <= now else frozenset[Key]()
        if everything:
            self.everything = False
        self.named -= keys
        self._taken = Turn(keys, everything)
        return self._taken

    def looked(self, began: float, ended: float) -> None:
        """The look at what `take` gave last is over."""
        took = self.pace.times * max(0.0, ended - began)
        if self._taken.everything:
            self.everything_from = ended + min(self.pace.longest, took)
        elif self._taken.keys:
            self.named_from = ended + min(self.pace.longest_named, took)
        self._taken = Turn()

    def due(self) -> float | None:
        """When the next of them may be asked about; None without any."""
        turns = [self.named_from] * bool(self.named) + [self.everything_from] * self.everything
        return min(turns, default=None)
