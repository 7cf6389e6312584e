"""A fake node and a clock that stands still: they stand for containerd, registry and time in the agent's unit tests.

The fake node holds what it is told to hold. Pulls end when the test says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from imageprepull.agent.clock import Clock
from imageprepull.agent.node import Compared, Held, NodeError, Pulled
from imageprepull.oci.reference import Reference
from imageprepull.pulling.pins import Pin
from imageprepull.pulling.progress import ImageProgress, LayerProgress
from imageprepull.resources.nodeprepull import (
    Agent,
    Desired,
    DesiredImage,
    Disk,
    ImageLimits,
    OnRemoval,
    RegistryHold,
    RegistryStatus,
    Retry,
)

DIGEST = "sha256:" + "a" * 64
RESUMABLE = ("RegistryUnreachable", "RegistryHeld", "ConnectionLost")


class StillClock(Clock):
    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> float:
        return self.seconds

    def wall(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def uniform(self) -> float:
        return 0.5


class FakeNode:
    def __init__(self) -> None:
        self.holds: set[str] = set()
        self.our_pins: set[str] = set()
        self.digests: dict[str, str] = {}
        """Of references that the agent has asked about; of others it is that of `image`."""
        self.other_pins: list[Pin] = []
        self.pins_listed = 0
        self.lack_pins: set[str] = set()
        """Held, and unpinned."""
        self.sticky = True
        self.pulls: dict[str, asyncio.Future[Pulled]] = {}
        self.unfinished: dict[str, str] = {}
        """Digests of images whose pulls hold something, those at work too, and by which reference they were asked for."""
        self.verifications: dict[str, asyncio.Future[Compared]] = {}
        self.calls: list[str] = []
        self.down = False
        self.odd: set[str] = set()
        """Cannot be judged."""
        self.stuck: set[str] = set()
        """Cannot be unpinned."""
        self.downloads = 0
        self.users = ""
        self.asked = asyncio.Event()
        """Set: the runtime answers at once what there is to remove."""
        self.asked.set()
        self.collected = asyncio.Event()
        self.collected.set()
        self.giving_back = 0
        """Calls of `give_back` that have not returned."""
        self.registry_holds: list[RegistryHold] = []
        self.registry_statuses: list[RegistryStatus] = []

    async def held(self, image: DesiredImage) -> Held:
        if self.down:
            raise NodeError("RuntimeUnavailable", "containerd does not answer", unavailable=True)
        self.digests[image.reference] = image.digest
        if image.reference in self.odd:
            raise NodeError("NotAnImage", "its config is no image's", permanent=True)
        self.calls.append(f"held {image.reference}")
        there = image.reference in self.holds
        unpinned = there and image.pin and image.reference in self.lack_pins
        return Held(
            there,
            "" if there else "its records",
            pinned=image.pin,
            layers=2,
            our_pin=image.reference in self.our_pins,
            unmarked=unpinned,
        )

    async def pull(self, image: DesiredImage, progress: ImageProgress) -> Pulled:
        self.calls.append(f"pull {image.reference}")
        progress.layers = [LayerProgress(f"sha256:{'1' * 64}", 100, "", "")]
        self.pulls[image.reference] = asyncio.get_running_loop().create_future()
        self.unfinished[image.digest] = image.reference
        try:
            pulled = await self.pulls[image.reference]
        except asyncio.CancelledError:
            self.calls.append(f"cancelled {image.reference}")
            raise
        else:
            self.unfinished.pop(image.digest, None)
            return pulled
        finally:
            del self.pulls[image.reference]

    async def verify(self, image: DesiredImage, progress: ImageProgress) -> Compared:
        if self.down:
            raise NodeError("RuntimeUnavailable", "containerd does not answer", unavailable=True)
        self.calls.append(f"verify {image.reference}")
        self.verifications[image.reference] = asyncio.get_running_loop().create_future()
        return await self.verifications[image.reference]

    async def pin(self, image: DesiredImage) -> None:
        if self.down:
            raise NodeError("RuntimeUnavailable", "containerd does not answer")
        self.calls.append(f"pin {image.reference}")
        if self.sticky:
            self.our_pins.add(image.reference)
            self.lack_pins.discard(image.reference)

    async def unpin(self, image: DesiredImage, staying: Sequence[str] = ()) -> None:
        if self.down:
            raise NodeError("RuntimeUnavailable", "containerd does not answer")
        if image.reference in self.stuck:
            raise NodeError("RuntimeError", "no label can be changed")
        self.calls.append(" ".join(["unpin", image.reference, *(f"but-{other}" for other in staying)]))
        self.our_pins.discard(image.reference)
        self.other_pins = [pin for pin in self.other_pins if pin.digest != image.digest]
        self.lack_pins.add(image.reference)

    async def remove(self, image: DesiredImage, wanted: Callable[[], Collection[str]]) -> str:
        if self.down:
            raise NodeError("RuntimeUnavailable", "containerd does not answer")
        if self.users:
            raise NodeError("ImageInUse", f"container {self.users} uses it")
        await self.asked.wait()
        if image.digest in wanted():
            self.calls.append(f"keep {image.reference}")
            return "still wanted"
        self.calls.append(f"remove {image.reference}")
        await self.collected.wait()
        if self.users:
            raise NodeError("ImageInUse", f"container {self.users} uses it")
        self.holds.discard(image.reference)
        return ""

    async def pins(self) -> list[Pin]:
        if self.down:
            raise NodeError("RuntimeUnavailable", "containerd does not answer", unavailable=True)
        self.pins_listed += 1
        ours = [
            Pin(Reference.parse(name).canonical, self.digests.get(name, DIGEST))
            for name in sorted(self.our_pins)
        ]
        return ours + self.other_pins

    async def abandon(self, image: DesiredImage) -> None:
        self.calls.append(f"abandon {image.reference}")
        self.unfinished.pop(image.digest, None)

    async def give_back(self, digests: Collection[str] | None) -> int:
        self.giving_back += 1
        try:
            await self.collected.wait()
        finally:
            self.giving_back -= 1
        if self.down:
            raise NodeError("RuntimeUnavailable", "containerd does not answer", unavailable=True)
        left = 0
        for digest, reference in sorted(self.unfinished.items()):
            if digests is not None and digest not in digests:
                continue
            if reference in self.pulls:
                left += 1
            else:
                self.calls.append(f"give back {reference}")
                del self.unfinished[digest]
        return left

    def set_limits(self, parallel_downloads: int, stall_timeout: float) -> None:
        self.downloads = parallel_downloads

    def hold(self, registries: Sequence[RegistryHold]) -> None:
        self.registry_holds = list(registries)

    def registries(self) -> list[RegistryStatus]:
        return self.registry_statuses

    def about(self) -> Agent:
        return Agent(version="0.1.0")

    def disk(self) -> Disk | None:
        return None

    def succeed(self, reference: str) -> None:
        self.holds.add(reference)
        self.lack_pins.discard(reference)
        self.pulls[reference].set_result(Pulled(pinned=False, seconds={"total": 1.0}))

    def fail(self, reference: str, reason: str = "RegistryUnreachable", **arguments: Any) -> None:
        arguments.setdefault("resumable", reason in RESUMABLE)
        self.pulls[reference].set_exception(NodeError(reason, f"cannot pull {reference}", **arguments))


def image(
    reference: str,
    *,
    digest: str = DIGEST,
    state: Desired = Desired.PRESENT,
    priority: int = 0,
    parallel: int = 2,
    downloads: int = 8,
    limit: int = 3,
    nonce: str = "",
    owners: list[str] | None = None,
    on_removal: OnRemoval = OnRemoval.UNPIN,
    pin: bool = False,
    repair: str = "",
) -> DesiredImage:
    return DesiredImage(
        reference=reference,
        digest=digest,
        state=state,
        priority=priority,
        owners=owners or [],
        on_removal=on_removal,
        pin=pin,
        repair=repair,
        limits=ImageLimits(parallel_images=parallel, parallel_downloads=downloads),
        retry=Retry(backoff_limit=limit, max_backoff_seconds=300, nonce=nonce),
    )
