"""Leases of pulls that nobody will go on with: their entries are gone, they failed, or somebody else brought the image.

Between the reconciler and its attempts, which meet them, and the node, which drops the leases. A lease is its digest's:
whoever lets go of one asks here whether another reference needs what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet

import structlog

from imageprepull.agent.image import ImageView
from imageprepull.agent.node import Node, NodeError
from imageprepull.agent.plan import Key, key_of
from imageprepull.resources.nodeprepull import Desired, DesiredImage

logger = structlog.get_logger(__name__)


class Orphans:
    """Noted until a step drops their leases, or an entry or a pull claims them.

    `views`: the images of the newest spec. `running`: what is worked on, entries that vanished included.
    """

    def __init__(
        self,
        node: Node,
        *,
        views: Callable[[], Mapping[Key, ImageView]],
        running: Callable[[], AbstractSet[Key]],
    ) -> None:
        self.images: dict[Key, DesiredImage] = {}
        """Those that may have left a lease."""
        self._node = node
        self._views = views
        self._running = running

    def note(self, image: DesiredImage) -> None:
        """No next attempt at this image needs what earlier ones have kept."""
        self.images[key_of(image)] = image

    def note_vanished(self, views: Mapping[Key, ImageView]) -> None:
        """`views` take the place of the present ones: what of those may hold a lease and has no entry any more."""
        for key, view in self._views().items():
            # Also one that was not tried by this life of the agent, or whose failures are forgotten.
            done = view.released or (view.held is not None and view.held.present)
            if key not in views and (view.running or not done):
                self.images[key] = view.desired

    def claim(self, key: Key) -> None:
        """There is an entry again, or a pull takes over whatever lease there is, and ends it."""
        self.images.pop(key, None)

    async def drop(self) -> None:
        """Drop the leases of all that do not run; what is finished and recorded stays as it is."""
        for key in [key for key in self.images if key not in self._running()]:
            image = self.images.get(key)
            if image is not None:
                await self.release(image)
            # Only now: while it is listed here something is left to do.
            if self.images.get(key) is image:
                self.images.pop(key, None)

    async def release(self, image: DesiredImage) -> None:
        """Drop an image's lease, unless another reference to the digest is, or will be, pulled under the same one."""
        if self._is_shared(key_of(image)):
            return
        try:
            await self._node.abandon(image)
        except NodeError as error:
            # It expires by itself within a day, and the sweep at the next start finds it.
            logger.warning("cannot drop the lease", image=image.reference, error=str(error))

    def _is_shared(self, own: Key) -> bool:
        views = self._views().items()
        others = {key for key, view in views if goes_on(view)} | self._running()
        return any(key[1] == own[1] for key in others - {own})


def goes_on(view: ImageView) -> bool:
    """Whether an image's next attempt, if there is none now, needs what earlier ones have kept."""
    there = view.held is not None and view.held.present
    given_up = view.backoff is not None and view.backoff.gives_up
    # Whoever has given up begins from nothing: two of them must not keep the lease for each other.
    return view.desired.state is not Desired.ABSENT and not there and not given_up
