"""Whether an absence means anything now: both CRDs are in order and all caches follow the API server.

Whoever reads the CRDs also sees what an older one has no place for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import structlog

from imageprepull.controller.older_crd import Path, lacking
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.informer import Informer
from imageprepull.kube.kinds import CRDS, IMAGEPREPULLS, NODEPREPULLS

logger = structlog.get_logger(__name__)
NAMES = tuple(f"{kind.plural}.{kind.group}" for kind in (IMAGEPREPULLS, NODEPREPULLS))
NODEPREPULL_CRD = NAMES[1]
POLL = 1.0


class CrdsMissing(Exception):
    """The CRDs are not there, or not the same any more; says which and what to do."""


def crd_uid(document: dict[str, Any]) -> str:
    """The uid of a CRD that is Established and not being deleted; empty for any other."""
    conditions = (document.get("status") or {}).get("conditions") or ()
    established = any(one.get("type") == "Established" and one.get("status") == "True" for one in conditions)
    if not established or "deletionTimestamp" in document["metadata"]:
        return ""
    return str(document["metadata"]["uid"])


def object_missing(error: ApiError, name: str) -> bool:
    """Whether the API server says that this very object is not there.

    A kind that is not served (its CRD is gone, a server that has not loaded it yet, a proxy) is a 404 as well.
    """
    return error.not_found and error.reason == "NotFound" and f'"{name}" not found' in error.message


class Trust:
    """Asks for the CRDs by name; remembers which ones they were at the start."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._uids: tuple[str, ...] = ()
        self.informers: Sequence[Informer] = ()
        self.lacking: frozenset[Path] = frozenset()
        """Fields of a NodePrepull's spec that its CRD has no place for, as last read."""

    @property
    def prepulls_uid(self) -> str:
        """The uid of the CRD whose objects ImagePrepulls are; empty before it was read."""
        return self._uids[0] if self._uids else ""

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - a deadline with its own message.
        """Wait for both CRDs.

        Raises:
            CrdsMissing: one was not Established within `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while True:
            try:
                uids = await self._read()
            except ApiError as error:
                if not error.temporary:
                    raise
                logger.warning("CRDs not read", error=str(error))
                uids = ("",) * len(NAMES)
            if all(uids):
                self._uids = uids
                return
            missing = [name for name, uid in zip(NAMES, uids, strict=True) if not uid]
            if time.monotonic() >= end:
                raise CrdsMissing(
                    f"not Established after {timeout:g} s: {', '.join(missing)}; "
                    f"install the CRDs (chart value crds.enabled, or kubectl apply -f crds/)"
                )
            logger.info("waiting for the CRDs", missing=missing)
            await asyncio.sleep(min(POLL, timeout / 10))

    async def _read(self) -> tuple[str, ...]:
        return tuple([await self._uid(name) for name in NAMES])

    async def _uid(self, name: str) -> str:
        try:
            document = await self._api.get(CRDS, name)
        except ApiError as error:
            if not error.not_found:
                raise
            return ""
        if name == NODEPREPULL_CRD:
            self._note_fields(lacking(document))
        return crd_uid(document)

    def _note_fields(self, found: frozenset[Path]) -> None:
        if found == self.lacking:
            return
        self.lacking = found
        fields = sorted(".".join(path) for path in found)
        if found:
            logger.warning(
                "CRD older than this operator, fields are left out", crd=NODEPREPULL_CRD, fields=fields
            )
        else:
            logger.info("CRD has all fields now", crd=NODEPREPULL_CRD)

    async def guard(self, interval: float) -> None:
        """Look every `interval` seconds until cancelled.

        Raises:
            CrdsMissing: a CRD is being deleted, is gone, or was made anew. A new start waits for it and reads all.
        """
        while True:
            await asyncio.sleep(interval)
            try:
                uids = await self._read()
            except ApiError as error:
                logger.warning("CRDs not read", error=str(error))
                continue
            changed = [name for name, uid, was in zip(NAMES, uids, self._uids, strict=True) if uid != was]
            if changed:
                raise CrdsMissing(f"deleted, or deleted and made anew: {', '.join(changed)}; starting over")

    async def holds(self) -> bool:
        """Whether what is missing now is really missing. Ask after the reads that it shall vouch for.

        Raises:
            ApiError: the API server did not tell.
        """
        if not all(informer.synced.is_set() and not informer.sight.problem for informer in self.informers):
            return False
        return await self._read() == self._uids
