"""One desired image as the agent sees it now: written by the reconciler, read by status.py.

Nothing here outlives the process but what came of the last comparison, which the status has; and whether the image is
present is only ever what the runtime said last.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
import structlog

from imageprepull.agent.backoff import Backoff
from imageprepull.agent.losing import Losses
from imageprepull.agent.node import Held, Pulled
from imageprepull.agent.tags import without_tag
from imageprepull.pulling.progress import ImageProgress
from imageprepull.pulling.space import NoRoom
from imageprepull.resources.nodeprepull import Desired, DesiredImage, ImageState, NodeImageStatus

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Gate:
    """Why an image that is missing is not pulled now, though it is its turn."""

    reason: str
    message: str


@dataclass(slots=True)
class ImageView:
    """`due` is monotonic, `next_attempt` the same instant as RFC 3339: computed once, or it would flicker."""

    desired: DesiredImage
    tag_means: str = ""
    """The digest of the entry that has this one's tag; then this one is held by its digest alone."""
    held: Held | None = None
    running: bool = False
    released: bool = False
    backoff: Backoff | None = None
    due: float = 0
    next_attempt: str | None = None
    progress: ImageProgress | None = None
    best_done: int = 0
    """The most bytes that any attempt had; an attempt that exceeds it gained."""
    pulled: Pulled | None = None
    lack: NoRoom | None = None
    """What the last attempt had no room for."""
    gate: Gate | None = None
    losses: Losses = field(default_factory=Losses)
    pin_due: float = 0
    """Monotonic: before then a missing pin is not set again."""
    unpin_due: float = 0
    """Monotonic: before then a pin that could not be taken away is left."""
    verifying: bool = False
    repaired: str = ""
    """The last `repair` of an entry that was carried out, why the image was not compared, and what came of it."""
    repair_reason: str = ""
    repair_result: str = ""
    repair_lack: NoRoom | None = None
    """What the last comparison had no room for."""
    repair_due: float = 0
    """Monotonic: before then a comparison that had no room is not tried again."""
    logged: str = field(default="", repr=False)

    @property
    def state(self) -> ImageState:
        """What the status says. During backoff an image is Waiting, with the last error; Failed only when final."""
        if self.desired.state is Desired.PAUSED:
            return ImageState.PAUSED
        if self.desired.state is Desired.ABSENT:
            return ImageState.ABSENT if self.released else ImageState.WAITING
        if self.running and not self.verifying:
            return ImageState.PULLING
        if self.held is not None and self.held.present:
            return ImageState.READY
        if self.backoff is not None and self.backoff.final:
            return ImageState.FAILED
        return ImageState.WAITING

    @property
    def asked(self) -> DesiredImage:
        """What the node is asked for, and asked to bring."""
        return without_tag(self.desired) if self.tag_means else self.desired

    def recall(self, reported: NodeImageStatus | None) -> None:
        """What an earlier agent has compared: an order may stand for as long as another image of it is paused.

        What had no room then is tried again at once.
        """
        if reported is not None and reported.repaired:
            self.answer_repair(reported.repaired, reported.repair_result, reported.repair_reason)

    def answer_repair(self, repair: str, result: str, reason: str = "") -> None:
        """Note what came of a comparison. `reason`: why there was none; without `repair` there will be one yet."""
        self.repaired, self.repair_reason, self.repair_result = repair, reason, result
        self.repair_lack, self.repair_due = None, 0

    def forget_failures(self) -> None:
        """Start counting anew: the entry changed, or the image is there."""
        self.backoff = None
        self.due = self.unpin_due = 0
        self.next_attempt = None
        self.lack = None

    def taken_over(self, desired: DesiredImage) -> None:
        """The operator's newest words. A change that can matter to a retry makes it due at once, and so does an order."""
        if worth_a_retry(self.desired, desired):
            self.forget_failures()
        if (desired.state, desired.on_removal) != (self.desired.state, self.desired.on_removal):
            self.released = False
        if desired.pin != self.desired.pin:
            self.pin_due = 0
        if desired.repair != self.desired.repair and not self.repaired:
            # What waited for room is not waited for any more, and a new order finds out for itself.
            self.answer_repair("", "")
        self.desired = desired

    def give_tag(self, means: str) -> bool:
        """`means` is the new `tag_means`; whether the node must be asked anew, for its tag or for it without."""
        changed = bool(means) != bool(self.tag_means)
        self.tag_means = means
        if changed:
            # An answer to another question: it would look like a loss, or hide one.
            self.held = self.pulled = None
        return changed


def worth_a_retry(before: DesiredImage, now: DesiredImage) -> bool:
    """Whether what failed by the words of `before` may go well by those of `now`, or is ordered anew."""
    ordered = now.retry.nonce not in ("", before.retry.nonce)
    return ordered or retry_relevant(now) != retry_relevant(before)


def retry_relevant(image: DesiredImage) -> tuple[object, ...]:
    """What of an entry can turn a failure into success; owners, priority and the pin cannot."""
    # An order that is gone is none.
    retry = msgspec.structs.replace(image.retry, nonce="")
    return image.state, image.on_removal, image.credential_ref, image.limits, retry


def log_changes(views: Iterable[ImageView]) -> None:
    """One line per change of an image's state, none per layer."""
    for view in views:
        state = view.state
        if state == view.logged:
            continue
        view.logged = state
        details = {}
        if state is ImageState.READY and view.pulled is not None:
            details = {f"seconds_{phase}": round(s, 2) for phase, s in view.pulled.seconds.items()}
        desired = view.desired
        logger.info("image", reference=desired.reference, digest=desired.digest, state=state, **details)
