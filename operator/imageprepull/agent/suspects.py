"""Images that may not be as they were said to be: what the runtime says of them when asked, and what follows from it.

Between the reconciler, which suspects, and the node, which asks the runtime. The answers stand in the views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from imageprepull.agent.accounts import Accounts
from imageprepull.agent.backoff import Failure
from imageprepull.agent.clock import Clock
from imageprepull.agent.image import ImageView
from imageprepull.agent.node import Held, Node, NodeError
from imageprepull.agent.orphans import Orphans
from imageprepull.agent.plan import Key
from imageprepull.resources.nodeprepull import Desired


class Suspects:
    """`views`: the images of the newest spec. `changed` hears that one of them is another than before."""

    def __init__(
        self,
        node: Node,
        clock: Clock,
        accounts: Accounts,
        orphans: Orphans,
        *,
        views: Callable[[], Mapping[Key, ImageView]],
        changed: Callable[[], None],
    ) -> None:
        self.keys: set[Key] = set()
        """What was said of these does not count; they are asked about next."""
        self._node = node
        self._clock = clock
        self._accounts = accounts
        self._orphans = orphans
        self._views = views
        self._changed = changed

    async def ask(self) -> None:
        """Ask about every suspect. One that cannot be judged (odd content, a bad reference) fails alone.

        Raises:
            NodeError: the runtime as a whole does not answer; they stay suspect.
        """
        now = self._clock.now()
        self.keys.update(key for key, view in self._views().items() if view.held is None and view.due <= now)
        for key in [key for key in self._views() if key in self.keys]:
            view = self._views().get(key)
            if view is None or view.running or view.desired.state is Desired.ABSENT:
                self.keys.discard(key)
                continue
            # Before the answer: what is suspected meanwhile must be asked once more.
            self.keys.discard(key)
            try:
                held = await self._node.held(view.asked)
            except NodeError as error:
                if error.unavailable:
                    self.keys.add(key)
                    raise
                view.held = None
                self._accounts.failed(
                    view,
                    view.desired,
                    Failure(error.reason, str(error), error.permanent, error.retry_after),
                    view.best_done,
                )
                self._changed()
                continue
            self._believe(view, held)
        self.keys &= self._views().keys()

    def _believe(self, view: ImageView, held: Held) -> None:
        """What follows from the runtime's answer."""
        first = view.held is None and view.pulled is None
        there = view.pulled is not None or (view.held is not None and view.held.present)
        if there and not held.present:
            self._accounts.lost(view, held.missing)
        if held != view.held:
            view.held = held
            self._changed()
        if held.present:
            if first or view.backoff is not None:
                # Whoever brought it: no next attempt needs what failed ones have kept, or an agent that died
                # between the records and the end of its lease.
                self._orphans.note(view.desired)
            view.forget_failures()
            if not held.unmarked:
                view.pin_due = 0
        else:
            # What was brought once says nothing about the next pull.
            view.pulled = None
