"""`Node` on a real containerd: translates between the agent's images and the pull's requests, errors and outcomes."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from imageprepull import __version__
from imageprepull.agent.node import Compared, Held, NodeError, Pulled
from imageprepull.agent.registries import hold_times, registry_statuses
from imageprepull.agent.settings import AgentSettings
from imageprepull.oci.platform import Platform
from imageprepull.oci.reference import InvalidReference, Reference
from imageprepull.pulling.errors import PullError, as_pull_error
from imageprepull.pulling.given_tags import by_digest, forget, note
from imageprepull.pulling.labels import LEASE
from imageprepull.pulling.leases import LeaseTerms, lease_terms
from imageprepull.pulling.pins import Pin, our_pins
from imageprepull.pulling.presence import Presence, presence
from imageprepull.pulling.progress import ImageProgress
from imageprepull.pulling.puller import Puller
from imageprepull.pulling.records import pin, unpin
from imageprepull.pulling.removal import remove_image
from imageprepull.pulling.request import KeepBlobs, PullRequest
from imageprepull.pulling.space import NoRoom
from imageprepull.registry.client import RegistryClient
from imageprepull.resources.free_space import parse_amount
from imageprepull.resources.nodeprepull import (
    Agent,
    Desired,
    DesiredImage,
    Disk,
    RegistryHold,
    RegistryStatus,
)
from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.discovery import RuntimeInfo
from imageprepull.runtime.errors import RuntimeFault, SocketMissing, TimedOut
from imageprepull.runtime.events import Event

UNAVAILABLE = ("RuntimeUnavailable", SocketMissing.reason, TimedOut.reason)
USUAL_ROOT = Path("/var/lib/containerd")
T = TypeVar("T")

logger = structlog.get_logger(__name__)


def snapshotter_root(runtime: RuntimeInfo) -> Path:
    """Where the snapshots are; containerd's usual place where the runtime does not tell."""
    if runtime.snapshotter_root is not None:
        return Path(runtime.snapshotter_root)
    return USUAL_ROOT / f"io.containerd.snapshotter.v1.{runtime.snapshotter}"


@dataclass(frozen=True, slots=True)
class ContainerdNode:
    """One node's containerd, for as long as the process lives: its channel survives the daemon's restarts."""

    containerd: Containerd
    puller: Puller
    registry: RegistryClient
    runtime: RuntimeInfo
    settings: AgentSettings
    platform: Platform
    boot_id: str = ""

    async def examine(self) -> None:
        """Find out which path layers take, unless that is known.

        Raises:
            RuntimeFault: the runtime does not answer.
        """
        await self.puller.extraction.choose(self.runtime.snapshotter, self._lease_labels)

    async def subscribe(self, topics: Sequence[str]) -> AsyncIterator[Event]:
        """The runtime's events. When they end the daemon may be another one, and the path is found out anew."""
        await self.examine()
        try:
            async for event in self.containerd.events.subscribe(topics):
                yield event
        finally:
            self.puller.extraction.forget()

    async def held(self, image: DesiredImage) -> Held:
        """As `Node.held`."""
        found = await self._do(image, lambda reference: self._presence(image, reference))
        return Held(
            found.complete,
            found.missing,
            found.pinned,
            len(found.layers),
            found.our_pin,
            unmarked=found.complete and not (found.present and found.tag_noted),
            tag_means=found.tag_means,
            parts=found.parts,
        )

    async def pull(self, image: DesiredImage, progress: ImageProgress) -> Pulled:
        """As `Node.pull`; keeping the blobs goes on in the background."""
        began = time.monotonic()
        outcome = await self._do(
            image,
            lambda reference: self.puller.pull(self._request(image, reference), progress, until="ready"),
        )
        seconds = dict(progress.seconds) | {"total": time.monotonic() - began}
        return Pulled(outcome.pinned, seconds, dict(outcome.bytes_by_host))

    async def verify(self, image: DesiredImage, progress: ImageProgress) -> Compared:
        """As `Node.verify`."""
        found = await self._do(
            image, lambda reference: self.puller.verify(self._request(image, reference), progress)
        )
        return Compared(str(found), bool(found.broken))

    def lease_of(self, digest: str) -> LeaseTerms:
        """The lease under which an image of that digest is pulled here."""
        return lease_terms(
            digest,
            self._lease_labels,
            snapshotter=self.runtime.snapshotter,
            platform=self.platform,
            seconds=self.puller.lease_seconds,
            shared=True,
        )

    async def pin(self, image: DesiredImage) -> None:
        """As `Node.pin`."""

        async def work(reference: Reference) -> None:
            found = await self._presence(image, reference)
            if found.complete and not found.present:
                held = by_digest(reference, found.digest) if found.tag_means else reference
                await pin(self.containerd, held, found.digest, found.config_digest)
            if found.complete and not found.tag_noted:
                await note(self.containerd, reference, found.digest)

        await self._do(image, work)

    async def unpin(self, image: DesiredImage, staying: Sequence[str] = ()) -> None:
        """As `Node.unpin`."""
        others = [Reference.parse(other) for other in staying]

        async def work(reference: Reference) -> None:
            await unpin(self.containerd, reference, image.digest, others)
            # Before a removal nobody has confirmed the order yet.
            if image.state is Desired.ABSENT and not image.to_be_deleted:
                await forget(self.containerd, reference, image.digest)

        await self._do(image, work)

    async def remove(self, image: DesiredImage, wanted: Callable[[], Collection[str]]) -> str:
        """As `Node.remove`."""
        await self._do(image, lambda reference: forget(self.containerd, reference, image.digest))
        if image.digest not in wanted():
            # Its lease would keep what is to go.
            await self.abandon(image)
        verdict = await self._do(
            image,
            lambda _: remove_image(
                self.containerd,
                image.digest,
                snapshotter=self.runtime.snapshotter,
                wanted=wanted,
                lease_labels=self._lease_labels,
            ),
        )
        return verdict.kept

    async def pins(self) -> list[Pin]:
        """As `Node.pins`."""
        try:
            return await our_pins(self.containerd)
        except RuntimeFault as fault:
            raise NodeError(fault.reason, str(fault), unavailable=fault.reason in UNAVAILABLE) from fault

    async def abandon(self, image: DesiredImage) -> None:
        """As `Node.abandon`."""
        await self._do(image, lambda reference: self.puller.abandon(self._request(image, reference)))

    async def give_back(self, digests: Collection[str] | None) -> int:
        """As `Node.give_back`."""
        only = None if digests is None else {self.lease_of(digest).id for digest in digests}
        try:
            return await self.puller.give_back(self.settings.node_name, only)
        except (RuntimeFault, OSError) as fault:
            judged = as_pull_error(fault)
            raise NodeError(judged.reason, str(judged), unavailable=judged.reason in UNAVAILABLE) from fault

    def set_limits(self, parallel_downloads: int, stall_timeout: float) -> None:
        """As `Node.set_limits`."""
        self.puller.parallel_downloads = parallel_downloads
        self.registry.stall_timeout = stall_timeout

    def hold(self, registries: Sequence[RegistryHold]) -> None:
        """As `Node.hold`."""
        self.registry.hold(hold_times(registries))

    def registries(self) -> list[RegistryStatus]:
        """As `Node.registries`."""
        return registry_statuses(self.registry.rate_limits, self.registry.holds, time.time())

    def about(self) -> Agent:
        """As `Node.about`."""
        found = self.puller.extraction.shown(self.runtime.snapshotter)
        return Agent(
            version=__version__,
            runtime=f"containerd {self.runtime.version.removeprefix('v')}",
            snapshotter=self.runtime.snapshotter,
            extraction=found.path if found else "",
            extraction_reason=found.reason if found else "",
            capabilities=sorted(self.runtime.capabilities),
        )

    def disk(self) -> Disk | None:
        """As `Node.disk`; the root of the snapshotter may not be mounted into this container."""
        try:
            space = os.statvfs(snapshotter_root(self.runtime))
        except OSError:
            return None
        return Disk(capacity=space.f_blocks * space.f_frsize, available=space.f_bavail * space.f_frsize)

    async def _presence(self, image: DesiredImage, reference: Reference) -> Presence:
        return await presence(
            self.containerd,
            reference,
            image.digest,
            self.platform,
            self.runtime.snapshotter,
            image.pin,
            boot_id=self.boot_id,
            folders=self.puller.folders,
            keep_layers=self._keep_blobs != "never",
            lease_labels=self._lease_labels,
        )

    @property
    def _lease_labels(self) -> dict[str, str]:
        return {LEASE: self.settings.node_name}

    @property
    def _keep_blobs(self) -> KeepBlobs:
        # Where the runtime discards unpacked layers, keeping blobs would work against its owner.
        return "never" if self.runtime.discard_unpacked_layers else self.settings.keep_blobs

    def _request(self, image: DesiredImage, reference: Reference) -> PullRequest:
        settings = self.settings
        return PullRequest(
            reference=reference,
            digest=image.digest,
            platform=self.platform,
            snapshotter=self.runtime.snapshotter,
            pin=image.pin,
            tag_once=True,
            keep_blobs=self._keep_blobs,
            sync=settings.sync,
            keep_lease_on_failure=True,
            # The node waits for a gated image; beside all others pods are at work.
            urgent=image.gated,
            lease_labels=self._lease_labels,
            min_free=parse_amount(asked) if (asked := image.limits.min_free_disk) else None,
        )

    async def _do(self, image: DesiredImage, work: Callable[[Reference], Awaitable[T]]) -> T:
        """Run `work` on the parsed reference; whatever goes wrong becomes a `NodeError`.

        Defects too: one image with odd content must not stop a whole node.
        """
        try:
            return await work(Reference.parse(image.reference))
        except InvalidReference as error:
            raise NodeError("InvalidReference", str(error), permanent=True) from error
        except Exception as error:
            judged = self._judge(image, error)
            raise NodeError(
                judged.reason,
                str(judged),
                permanent=judged.permanent,
                retry_after=judged.retry_after,
                unavailable=judged.reason in UNAVAILABLE,
                no_room=judged if isinstance(judged, NoRoom) else None,
                resumable=judged.resumable,
            ) from error

    def _judge(self, image: DesiredImage, error: Exception) -> PullError:
        try:
            return as_pull_error(error)
        except Exception:
            logger.exception("unexpected failure", image=image.reference, digest=image.digest)
            return PullError("InternalError", f"{type(error).__name__}: {error}")
