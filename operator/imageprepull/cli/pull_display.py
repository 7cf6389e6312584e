"""What `imageprepull pull` shows: bars on a terminal, lines elsewhere, and the JSON document at the end.

Reads `ImageProgress`; the pull knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

from imageprepull.pulling.progress import ImageProgress, LayerProgress
from imageprepull.resources.nodeprepull import LayerState

if TYPE_CHECKING:  # rich takes a tenth of a second to import; a present image must not wait for it.
    from rich.console import Console, RenderableType

_BAR = 30
_KILO = 1000


class Display(Protocol):
    """Where progress goes, for the time of a `with` block."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def watch(self, image: ImageProgress) -> None:
        """Follow one more image."""
        ...


class Silence:
    """No progress: the JSON document is all there is."""

    def __enter__(self) -> Self:
        """Nothing to begin."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing to end."""

    def watch(self, image: ImageProgress) -> None:
        """Ignore it."""


class Lines:
    """One line for each change of an image's phase or a layer's state: for pipes and logs."""

    def __init__(self, write: Callable[[str], None]) -> None:
        """Hand each line to `write`."""
        self._write = write

    def __enter__(self) -> Self:
        """Nothing to begin."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing to end."""

    def watch(self, image: ImageProgress) -> None:
        """Print what changes from now on."""
        shown: dict[int, LayerState] = {}
        phase = ""

        def changed() -> None:
            nonlocal phase
            if image.phase != phase:
                phase = image.phase
                self._write(f"{image.reference}: {phase}")
            for number, layer in enumerate(image.layers):
                if shown.get(number, LayerState.WAITING) != layer.state:
                    self._write(f"{image.reference}: {layer_line(layer)}")
                shown[number] = layer.state

        image.on_change = changed


class Bars:
    """One bar per layer, drawn anew a few times a second."""

    def __init__(self, console: Console) -> None:
        """Draw on `console`."""
        from rich.live import Live  # noqa: PLC0415 - see above.

        self._images: list[ImageProgress] = []
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=8)

    def __enter__(self) -> Self:
        """Take the lines at the cursor."""
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Draw the last state and leave it standing."""
        self._live.stop()

    def watch(self, image: ImageProgress) -> None:
        """Draw one more image."""
        self._images.append(image)

    def _render(self) -> RenderableType:
        from rich.progress_bar import ProgressBar  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415

        table = Table.grid(padding=(0, 1))
        for image in self._images:
            table.add_row(f"[bold]{image.reference}", "", "", image.phase)
            for layer in image.layers:
                finished = layer.state.held
                bar = ProgressBar(
                    total=max(1, layer.size), completed=layer.size if finished else layer.done, width=_BAR
                )
                table.add_row(f"  {short(layer.digest)}", bar, amounts(layer), str(layer.state))
        return table


def document(image: str, outcome: Outcome) -> dict[str, Any]:
    """What `--output json` prints of an image that is there. Sizes are bytes; the last two seconds may be null."""
    return {
        "image": image,
        "digest": outcome.digest,
        "secondsReady": round(outcome.seconds_ready, 3),
        "secondsKept": None if outcome.seconds_kept is None else round(outcome.seconds_kept, 3),
        "secondsDone": None if outcome.seconds_done is None else round(outcome.seconds_done, 3),
        "bytesDownloaded": outcome.bytes_downloaded,
        "layers": [
            {
                "digest": layer.digest,
                "size": layer.size,
                "diffID": layer.diff_id,
                "chainID": layer.chain_id,
                "state": str(layer.state),
            }
            for layer in outcome.layers
        ],
    }


class Outcome(Protocol):
    """The part of `PullOutcome` that is shown."""

    @property
    def digest(self) -> str: ...  # noqa: D102 - as in PullOutcome.
    @property
    def seconds_ready(self) -> float: ...  # noqa: D102
    @property
    def seconds_kept(self) -> float | None: ...  # noqa: D102
    @property
    def seconds_done(self) -> float | None: ...  # noqa: D102
    @property
    def bytes_downloaded(self) -> int: ...  # noqa: D102
    @property
    def layers(self) -> Sequence[LayerProgress]: ...  # noqa: D102


def failure_document(image: str, reason: str, message: str) -> dict[str, Any]:
    """What `--output json` prints of an image that failed."""
    return {"image": image, "error": {"reason": reason, "message": message}}


def summary(image: str, outcome: Outcome) -> str:
    """The last line about an image that is there."""
    held = sum(layer.state == LayerState.EXISTS for layer in outcome.layers)
    return (
        f"{image}: {outcome.digest}, {len(outcome.layers)} layers ({held} were there), "
        f"{size(outcome.bytes_downloaded)} in {outcome.seconds_ready:.1f} s"
    )


def layer_line(layer: LayerProgress) -> str:
    """A layer in one line."""
    return f"{short(layer.digest)} {size(layer.size)} {layer.state}"


def amounts(layer: LayerProgress) -> str:
    """How much of how much."""
    if layer.state == LayerState.DOWNLOADING:
        return f"{size(layer.done)} / {size(layer.size)}"
    return size(layer.size)


def short(digest: str) -> str:
    """Enough of a digest for a reader to find it again."""
    return digest.removeprefix("sha256:")[:12]


def size(count: int) -> str:
    """Bytes in decimal units, as registries and disks count."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < _KILO:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= _KILO
    return f"{amount:.1f} TB"
