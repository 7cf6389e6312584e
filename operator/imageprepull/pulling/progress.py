"""Where a pull stands, layer by layer: written by the pull, read by the command line and by the agent's reporter.

One `ImageProgress` per image and pull. All changes happen on the event loop; a listener is told that something
changed, not what, and reads the record when it wants to: sampling is the reader's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from imageprepull.pulling.documents import ChainLayer
from imageprepull.resources.nodeprepull import LayerState


@dataclass(slots=True)
class LayerProgress:
    """A layer in the manifest's order. `size` and `done` are compressed bytes; `done` never exceeds `size`.

    `unpacked`: bytes of the tar so far, None where nobody tells.
    """

    digest: str
    size: int
    diff_id: str
    chain_id: str
    state: LayerState = LayerState.WAITING
    done: int = 0
    unpacked: int | None = None

    @classmethod
    def of(cls, layer: ChainLayer, state: LayerState = LayerState.WAITING, done: int = 0) -> LayerProgress:
        """A layer of a chain as it stands now."""
        descriptor = layer.descriptor
        return cls(descriptor.digest, descriptor.size, layer.diff_id, layer.chain_id, state, done)


def ignore_change() -> None:
    """The listener of nobody."""


@dataclass(slots=True)
class ImageProgress:
    """An image while it is pulled. `layers` is empty until manifest and config are known.

    `phase` is one of Resolving, Pulling, Finishing, Ready, KeepingBlobs, Done; or PullingByRuntime, where `note` says
    why.
    `seconds`: `resolve`, `ready` and `done` from the start of the pull; `download` and `extract` are the spans of
    those two, which overlap.
    """

    reference: str
    on_change: Callable[[], None] = ignore_change
    digest: str = ""
    note: str = ""
    phase: str = "Resolving"
    layers: list[LayerProgress] = field(default_factory=list)
    bytes_by_host: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def advance(self, layer: LayerProgress, state: LayerState | None = None, done: int | None = None) -> None:
        """Record a layer's new state, its downloaded bytes, or both, and tell the listener."""
        if state is not None:
            layer.state = state
        if done is not None:
            layer.done = min(done, layer.size)
        self.on_change()

    def enter(self, phase: str) -> None:
        """Record the image's new phase and tell the listener."""
        self.phase = phase
        self.on_change()
