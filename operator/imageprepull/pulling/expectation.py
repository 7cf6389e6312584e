"""What one image's missing layers will still take, read off its progress whenever somebody asks.

Between the pull, which records progress, and rooms.py. Nothing here is remembered but how the disk looked at first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imageprepull.pulling.documents import ChainLayer
from imageprepull.pulling.need import LayerSpace, Need, need_of, usual_ratio
from imageprepull.pulling.progress import ImageProgress
from imageprepull.pulling.rooms import Expected
from imageprepull.pulling.sidecars import data_path
from imageprepull.resources.nodeprepull import LayerState

_UNPACKED = (LayerState.EXTRACTED, LayerState.APPLIED, LayerState.EXISTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """`spooled`: bytes that earlier attempts left, by digest. `in_content`: whether the content store has a blob.

    `copied`: asked each time, whether blobs are sent there beside the spool's copy.
    """

    layers: Sequence[ChainLayer]
    progress: ImageProgress
    spooled: Mapping[str, int]
    in_content: Callable[[str], bool]
    copied: Callable[[], bool]

    def __call__(self) -> Expected:
        """As things stand."""
        found = [self._layer(number) for number in range(len(self.layers))]
        missing = [layer for layer in found if layer is not None]
        left = need_of(missing, copied=self.copied())
        # What was learned of the layers holds for a next attempt too, which finds none of them.
        unpacked = sum(layer.unpacked for layer in missing)
        anew = need_of(
            [replace(layer, here=layer.packed if layer.stored else 0) for layer in missing], copied=False
        )
        return Expected(left, Need(anew.spool, left.content, left.snapshots + unpacked))

    def _layer(self, number: int) -> LayerSpace | None:
        layer, shown = self.layers[number], self.progress.layers[number]
        if shown.state is LayerState.EXISTS:
            return None
        descriptor = layer.descriptor
        stored = self.in_content(descriptor.digest)
        here = descriptor.size if stored else max(shown.done, self.spooled.get(descriptor.digest, 0))
        # The runtime says nothing while it unpacks: its layers count as written from then on, and the floor alone
        # watches them.
        silent = shown.state is LayerState.EXTRACTING and shown.unpacked is None
        return LayerSpace(
            descriptor.digest,
            descriptor.size,
            min(here, descriptor.size),
            usual_ratio(descriptor.media_type),
            unpacked=shown.unpacked or 0,
            complete=silent or shown.state in _UNPACKED,
            stored=stored,
        )


def spooled_bytes(folder: Path, layers: Sequence[ChainLayer]) -> dict[str, int]:
    """Bytes on disk of spool files that earlier attempts left, by digest. Blocks."""
    found = {}
    for layer in layers:
        digest = layer.descriptor.digest
        try:
            found[digest] = data_path(folder, digest).stat().st_blocks * 512
        except OSError:
            continue
    return found
