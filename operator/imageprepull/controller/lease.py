"""One leader: an own coordination.k8s.io Lease, taken before anything is written.

The official client's leader election goes on leading while its requests hang, and keeps renewing for a led task
that is dead. Here every request has a deadline, the lease is lost on this process's monotonic clock before
anybody else may take it, and a watchdog thread ends a process whose event loop hangs.

Agents that have something to delete watch it being renewed; a renewal vouches for that, or does not (vouching.py).
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from imageprepull.controller import clock
from imageprepull.kube.client import ApiClient
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import LEASES
from imageprepull.resources.vouching import VOUCHED

logger = structlog.get_logger(__name__)
LOST_EXIT_CODE = 70


class LeaseLost(Exception):
    """Another replica may lead by now: this process must stop writing at once."""


class Voucher(Protocol):
    """Who knows whether the orders that stand may be obeyed."""

    def vouches(self) -> bool:
        """Whether all were right at a moment since the last `renewed`."""
        ...

    def renewed(self) -> None:
        """A renewal was sent, whatever became of it."""
        ...


@dataclass(frozen=True, slots=True)
class Observed:
    """A lease as last seen, and since when on our own clock it has looked like that."""

    holder: str
    version: str
    seconds: float
    since: float

    def free(self, now: float) -> bool:
        """Whether it may be taken: released, or not renewed for its duration as we measured it."""
        return not self.holder or now >= self.since + self.seconds


class Lease:
    """The lease `name` for `identity`. `seconds` is its duration; renewals come three times in it.

    It counts as lost after two thirds of `seconds` without a successful renewal.
    """

    def __init__(self, api: ApiClient, *, namespace: str, name: str, identity: str, seconds: float) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._seconds = seconds
        self._retry = seconds / 6
        self._observed: Observed | None = None
        self._renewed = 0.0
        self.leading = False
        self.voucher: Voucher | None = None

    @property
    def deadline(self) -> float:
        """Monotonic time after which this process does not lead any more."""
        return self._renewed + self._seconds * 2 / 3

    async def acquire(self) -> None:
        """Wait until this replica leads."""
        while not self.leading:
            try:
                async with asyncio.timeout(self._retry * 2):
                    await self._try_once()
            except (ApiError, TimeoutError) as error:
                logger.warning(
                    "cannot take the lease", lease=self._name, error=str(error) or "no answer in time"
                )
            if not self.leading:
                await asyncio.sleep(self._retry)
        logger.info("leading", lease=self._name, identity=self._identity)

    async def _try_once(self) -> None:
        began = time.monotonic()
        try:
            lease = await self._api.get(LEASES, self._name, self._namespace)
        except ApiError as error:
            if not error.not_found:
                raise
            body = {"metadata": {"name": self._name}, "spec": self._spec(transitions=0)}
            lease = await self._api.create(LEASES, body, namespace=self._namespace)
            self._won(lease, began)
            return
        self._observe(lease, began)
        spec = lease.get("spec") or {}
        mine = spec.get("holderIdentity") == self._identity
        if self._observed is not None and (mine or self._observed.free(began)):
            transitions = int(spec.get("leaseTransitions") or 0) + (not mine)
            await self._write(self._observed.version, self._spec(transitions), began)

    def _observe(self, lease: dict[str, Any], now: float) -> None:
        version = lease["metadata"]["resourceVersion"]
        if self._observed is None or self._observed.version != version:
            spec = lease.get("spec") or {}
            seconds = float(spec.get("leaseDurationSeconds") or self._seconds)
            self._observed = Observed(spec.get("holderIdentity") or "", version, seconds, now)

    async def _write(
        self, version: str, spec: dict[str, Any], began: float, *, vouched: bool = False
    ) -> None:
        metadata: dict[str, Any] = {"resourceVersion": version}
        if vouched:
            metadata["annotations"] = {VOUCHED: spec["renewTime"]}
        body = {"metadata": metadata, "spec": spec}
        lease = await self._api.merge_patch(LEASES, self._name, body, namespace=self._namespace)
        self._won(lease, began)

    def _won(self, lease: dict[str, Any], began: float) -> None:
        self._observe(lease, began)
        # From when the request was sent: others count from when they see it, which is later.
        self._renewed = began
        self.leading = True

    def _spec(self, transitions: int | None = None) -> dict[str, Any]:
        moment = clock.micro(clock.now())
        spec: dict[str, Any] = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._seconds)),
            "renewTime": moment,
        }
        if transitions is not None:
            spec |= {"acquireTime": moment, "leaseTransitions": transitions}
        return spec

    async def keep(self) -> None:
        """Renew until cancelled.

        Raises:
            LeaseLost: another holder was seen, or no renewal came through in time.
        """
        while True:
            await asyncio.sleep(self._retry * 2)
            await self._renew()

    async def _renew(self) -> None:
        while True:
            began = time.monotonic()
            if began >= self.deadline:
                self.leading = False
                raise LeaseLost(f"lease {self._namespace}/{self._name} could not be renewed in time")
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + self.deadline - began):
                    lease = await self._api.get(LEASES, self._name, self._namespace)
                    holder = (lease.get("spec") or {}).get("holderIdentity")
                    if holder != self._identity:
                        self.leading = False
                        raise LeaseLost(f"lease {self._namespace}/{self._name} is held by {holder!r} now")
                    await self._renew_once(lease["metadata"]["resourceVersion"], began)
            except (ApiError, TimeoutError) as error:
                logger.warning("lease not renewed", lease=self._name, error=str(error) or "no answer in time")
                await asyncio.sleep(min(self._retry, max(0.0, self.deadline - time.monotonic())))
            else:
                return

    async def _renew_once(self, version: str, began: float) -> None:
        if self.voucher is None:
            await self._write(version, self._spec(), began)
            return
        try:
            await self._write(version, self._spec(), began, vouched=self.voucher.vouches())
        finally:
            # It may have come through without an answer: one look must not vouch twice.
            self.voucher.renewed()

    async def release(self) -> None:
        """Let the next replica lead at once. Best effort: without it the lease runs out by itself."""
        if not self.leading:
            return
        self.leading = False
        try:
            async with asyncio.timeout(self._retry * 2):
                lease = await self._api.get(LEASES, self._name, self._namespace)
                if (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                    spec = {"holderIdentity": None, "renewTime": clock.micro(clock.now())}
                    body = {
                        "metadata": {"resourceVersion": lease["metadata"]["resourceVersion"]},
                        "spec": spec,
                    }
                    await self._api.merge_patch(LEASES, self._name, body, namespace=self._namespace)
                    logger.info("lease released", lease=self._name)
        except (ApiError, TimeoutError) as error:
            logger.warning("lease not released", lease=self._name, error=str(error) or "no answer in time")


def start_watchdog(lease: Lease, end: Callable[[int], None] = os._exit) -> threading.Event:
    """A thread that ends the process when it is past the deadline and still leads: its event loop hangs.

    Set the returned event to stop the watchdog.
    """
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.25):
            if lease.leading and time.monotonic() > lease.deadline + 1:
                logger.error("the lease ran out and the event loop did not notice; ending the process")
                end(LOST_EXIT_CODE)
                return

    threading.Thread(target=watch, name="lease-watchdog", daemon=True).start()
    return stop
