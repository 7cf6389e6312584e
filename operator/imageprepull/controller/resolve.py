"""Tags to digests, once for the whole cluster, and manifests for the platforms that are there.

Between the planner, which says what is wanted, and `documents`, which asks. What was resolved before is read back
from the statuses (`adopt`), so a restart neither asks again nor moves a tag. One bad image stops no other.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import structlog

from imageprepull.controller.dirty import DirtyKeys, work
from imageprepull.controller.documents import failed, look_up
from imageprepull.controller.images import WantedImage
from imageprepull.controller.resolution import Layer, PlatformManifest, Resolution
from imageprepull.oci.manifest import InvalidManifest
from imageprepull.oci.reference import Reference
from imageprepull.registry.client import RegistryClient
from imageprepull.registry.errors import ErrorKind, RegistryError
from imageprepull.registry.faults import PROTOCOL_ERROR
from imageprepull.resources.imageprepull import ImagePrepullStatus, PlatformImage

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: for one look-up in all, and between attempts, doubling up to `most`."""

    timeout: float = 300
    backoff: float = 5
    most: float = 300


class Resolver:
    """`resolutions` by record. `on_change` is called with a record whenever its resolution changed."""

    def __init__(
        self,
        registry: RegistryClient,
        *,
        on_change: Callable[[str], None],
        patience: Patience,
        parallel: int,
        holds: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        """`holds` says which hosts are to be left alone at this moment, and until when (`time.time()`)."""
        self.resolutions: dict[str, Resolution] = {}
        self._registry = registry
        self._on_change = on_change
        self._patience = patience
        self._parallel = parallel
        self._holds = holds
        self._references: dict[str, Reference] = {}
        self._platforms: frozenset[str] = frozenset()
        self._sticky: set[str] = set()
        self._doubted: set[str] = set()
        self._attempts: dict[str, int] = {}
        self._retries: dict[str, set[str]] = {}
        """Orders to try again at once that were obeyed, by record."""
        self._outdated: set[str] = set()
        """Those that were ordered anew since their last look-up began: only the outcome of the next one counts."""
        self._queue: DirtyKeys[str] = DirtyKeys()

    def doubt(self) -> None:
        """A backup may have been restored: of what is known, the next statuses that are taken over say more."""
        self._doubted = set(self.resolutions)

    def adopt(self, images: Iterable[WantedImage], status: ImagePrepullStatus) -> None:
        """Take over what a status says was resolved; what is known already and not doubted wins, as tags are one per cluster."""
        reported = {image.image: image for image in status.images if image.digest}
        for image in images:
            found = reported.get(image.image)
            known = self.resolutions.get(image.record)
            if found is None or (known is not None and known.digest and image.record not in self._doubted):
                continue
            if image.reference.digest not in (None, found.digest):
                continue
            self._doubted.discard(image.record)
            if known is not None and known.digest == found.digest:
                continue
            whole = [one for one in found.platforms if one.layers and not one.layers_omitted]
            platforms = {one.platform: read_platform(one) for one in whole}
            self.resolutions[image.record] = Resolution(image.record, found.digest, platforms)
            if not found.reason:
                self._sticky.add(image.record)

    def want(self, images: Iterable[WantedImage], platforms: Iterable[str]) -> None:
        """Say everything that is wanted now; what is not known of it is looked up, the rest forgotten."""
        self._doubted.clear()
        self._references = {image.record: image.reference for image in images}
        self._platforms = frozenset(platforms)
        for record in self.resolutions.keys() - self._references.keys():
            del self.resolutions[record]
            self._attempts.pop(record, None)
            self._sticky.discard(record)
        for record in self._retries.keys() - self._references.keys():
            del self._retries[record]
        for record in self._references:
            if record not in self._attempts and self._lacking(record):
                self._queue.add(record)

    def retry(self, records: Iterable[str], nonce: str) -> None:
        """Look up at once what is lacking of these, once per `nonce`; what was said of their failures is forgotten."""
        for record in records:
            obeyed = self._retries.setdefault(record, set())
            if nonce in obeyed or not self._lacking(record):
                continue
            obeyed.add(nonce)
            self._outdated.add(record)
            self._attempts.pop(record, None)
            known = self.resolutions.get(record)
            if known is not None:
                self._publish(replace(known, reason="", message="", permanent=False))
            self._queue.add(record)

    def _lacking(self, record: str) -> bool:
        known = self.resolutions.get(record)
        if known is None or not known.digest:
            return True
        return any(
            platform not in known.platforms and platform not in known.missing for platform in self._platforms
        )

    async def run(self) -> None:
        """Look up until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._parallel):
                tasks.create_task(work(self._queue, self._look_up))

    async def _look_up(self, record: str) -> None:
        reference = self._references.get(record)
        if reference is None or not self._lacking(record):
            return
        known = self.resolutions.get(record) or Resolution(record)
        # A manifest is read from the same registry and against the same limit as on the nodes.
        self._registry.hold(self._holds())
        self._outdated.discard(record)
        try:
            async with asyncio.timeout(self._patience.timeout):
                found = await look_up(self._registry, reference, known, self._platforms)
        except RegistryError as error:
            permanent = error.kind in (ErrorKind.PERMANENT, ErrorKind.CREDENTIALS)
            message = str(error)
            if error.reason == PROTOCOL_ERROR and reference.digest is None:
                message += "; named by its digest, the nodes' own runtimes may still pull it"
            self._failed(known, error.reason, message, permanent=permanent, retry_after=error.retry_after)
        except InvalidManifest as error:
            self._failed(known, error.reason, str(error), permanent=True)
        except TimeoutError:
            message = f"the registry did not finish within {self._patience.timeout:g} s"
            self._failed(known, "Timeout", message, permanent=False)
        except Exception as error:
            # A defect that one image's content meets must not take the whole operator down with it, again and again.
            logger.exception("look-up failed unexpectedly", image=record)
            self._failed(known, "InternalError", f"{type(error).__name__}: {error}", permanent=False)
        else:
            self._attempts.pop(record, None)
            self._sticky.add(record)
            self._publish(found)
            if self._lacking(record):
                # A node of another platform came meanwhile.
                self._queue.add(record)

    def _failed(
        self,
        known: Resolution,
        reason: str,
        message: str,
        *,
        permanent: bool,
        retry_after: float | None = None,
    ) -> None:
        record = known.record
        if record in self._outdated:
            return
        attempts = self._attempts[record] = self._attempts.get(record, 0) + 1
        ceiling = min(self._patience.most, self._patience.backoff * 2.0 ** min(attempts - 1, 16))
        delay = max(ceiling * random.uniform(0.75, 1), retry_after or 0)  # noqa: S311 - spreads load.
        logger.warning(
            "image not resolved", image=record, reason=reason, error=message, attempts=attempts, retry=delay
        )
        sticky = record in self._sticky
        self._publish(failed(known, reason, message, permanent=permanent, sticky=sticky))
        self._queue.add(record, delay)

    def _publish(self, resolution: Resolution) -> None:
        record = resolution.record
        known = self.resolutions.get(record)
        if known is not None and known.digest not in ("", resolution.digest):
            # A status has said otherwise meanwhile.
            self._queue.add(record)
        elif record in self._references and known != resolution:
            self.resolutions[record] = resolution
            self._on_change(record)


def read_platform(image: PlatformImage) -> PlatformManifest:
    """A manifest as a status shows it."""
    layers = tuple(Layer(layer.digest, layer.size) for layer in image.layers)
    return PlatformManifest(image.platform, image.manifest, image.config, layers)
