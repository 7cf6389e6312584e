"""Whether what an informer knows may be of a state that is gone: its connection, lost and regained. No I/O.

A lost connection goes on from the last resourceVersion without a gap, unless a backup was restored meanwhile: no event
says so. Who decides on several kinds has to list them all again then, before anything is written on the ground of them.
"""

from __future__ import annotations

import time
from math import inf

import structlog

from imageprepull.kube.errors import ApiError

logger = structlog.get_logger(__name__)


class Sight:
    """What becomes of following one kind (`kind`, for the log)."""

    def __init__(self, kind: str) -> None:
        self.problem = ""
        """Why the API server cannot be followed at the moment; empty when it can."""
        self.broken = False
        """Whether the connection was lost since the last list, or `start_over`, or closed before its time."""
        self.regained = -inf
        """When all was listed again after the connection was lost, in monotonic seconds; `inf` until then, -inf if it never
        was lost. What was read elsewhere before may be of a state that a backup has replaced."""
        self._kind = kind
        self._heard = time.monotonic()
        self._opened = False
        """Whether a watch was opened since the last list."""
        self._refused = False
        """Whether the API server has refused one since the last list."""

    @property
    def age(self) -> float:
        """Seconds since the API server was last heard: a list, an event or a bookmark."""
        return time.monotonic() - self._heard

    @property
    def answered_to(self) -> bool:
        """Whether the API server answered when it was asked last, if only that it may not be watched."""
        return not self.problem or self._refused

    def contact(self) -> None:
        """The API server was heard."""
        if self.problem:
            logger.info("following the API server again", kind=self._kind)
        self.problem = ""
        self._heard = time.monotonic()

    def opened(self) -> None:
        """A watch was opened. What was there while watches were refused, nobody has seen."""
        if self._refused:
            self.lose()
        self._opened, self._refused = True, False
        self.contact()

    def listed(self, *, older: bool) -> None:
        """All was listed. `older`: in a state before one that was seen already, of which other kinds may not know yet."""
        self.broken = self._opened = self._refused = False
        if older:
            self.regained = inf
        elif self.regained == inf:
            self.regained = time.monotonic()
        self.contact()

    def failed(self, error: ApiError, *, listed: bool) -> None:
        """A request was not answered as it should be.

        A watch that is refused and was not open since the list (`listed`) loses nothing: it may be refused for good.
        """
        if str(error) != self.problem:
            logger.warning("cannot follow the API server", kind=self._kind, error=str(error))
        self.problem = str(error)
        self._refused = bool(error.status)
        if self._opened or not self._refused or not listed:
            self.lose()
        self.broken = True

    def lose(self) -> None:
        """The connection was lost, or an answer shows that the API server has another state than it had."""
        self.broken = True
        self.regained = inf

    def start_over(self) -> None:
        """All will be listed anew: what was heard is not what is there any more."""
        self.broken = False
        self.regained = inf
