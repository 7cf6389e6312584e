"""Leases of pulls that nobody will go on with: their entries are gone, or somebody else brought the image.

Between the reconciler, which meets them, and the node, which drops the leases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from imageprepull.agent.attempts import Attempts
from imageprepull.agent.image import ImageView
from imageprepull.agent.plan import Key, key_of
from imageprepull.resources.nodeprepull import Desired, DesiredImage


class Orphans:
    """Noted until a step drops their leases, or an entry or a pull claims them. `views`: the images of the newest spec."""

    def __init__(self, attempts: Attempts, views: Callable[[], Mapping[Key, ImageView]]) -> None:
        self.images: dict[Key, DesiredImage] = {}
        """Those that may have left a lease."""
        self._attempts = attempts
        self._views = views

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
        for key in [key for key in self.images if key not in self._attempts.running]:
            image = self.images.get(key)
            if image is not None:
                await self.release(image)
            # Only now: while it is listed here something is left to do.
            if self.images.get(key) is image:
                self.images.pop(key, None)

    async def release(self, image: DesiredImage) -> None:
        """Drop an image's lease, unless another reference to the digest is, or will be, pulled under the same one."""
        if not self._is_shared(image):
            await self._attempts.abandon(image)

    def _is_shared(self, image: DesiredImage) -> bool:
        return any(key[1] == image.digest for key in self._attempts.running) or any(
            view.desired.digest == image.digest
            and view.desired.state is not Desired.ABSENT
            and not (view.held and view.held.present)
            for key, view in self._views().items()
            if key != key_of(image)
        )
