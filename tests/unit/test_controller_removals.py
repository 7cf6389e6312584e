"""What the reading around the witness makes of answers that the watch overtakes."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from imageprepull.controller.removals import CRD_UID, Removals
from imageprepull.controller.settings import OperatorSettings
from imageprepull.controller.standby import Standby
from imageprepull.kube.errors import ApiError
from imageprepull.kube.kinds import CRDS, IMAGEPREPULLS, Kind

WEB = {"namespace": "shop", "name": "web", "uid": "uid", "resourceVersion": "1", "generation": 1}


class Api:
    """A FAKE API server with both CRDs; an answer about an ImagePrepull waits for `arrive`."""

    def __init__(self) -> None:
        self.there = True
        self.asked, self.arrive = asyncio.Event(), asyncio.Event()

    async def get(self, kind: Kind, name: str, namespace: str = "") -> dict[str, Any]:
        if kind is CRDS:
            established = {"type": "Established", "status": "True"}
            return {"metadata": {"uid": name}, "status": {"conditions": [established]}}
        if kind is not IMAGEPREPULLS:
            return {"metadata": {"annotations": {CRD_UID: "other"}}}
        there = self.there
        self.asked.set()
        await self.arrive.wait()
        if not there:
            raise ApiError(404, "NotFound", f'imageprepulls "{name}" not found')
        return {"metadata": WEB, "spec": {"images": [{"image": "a"}]}}

    async def merge_patch(self, kind: Kind, name: str, body: dict[str, Any], *, namespace: str) -> None:
        pass


async def test_who_is_deleted_while_it_is_looked_for_is_looked_for_again() -> None:
    api = Api()
    settings = OperatorSettings(access=cast("Any", None), identity="one")
    standby = Standby(cast("Any", api), settings)
    for informer in standby.informers:
        informer.synced.set()
    await standby.trust.wait(1)
    removals = Removals(cast("Any", api), standby, cast("Any", None), lease=("ns", "lease"), poll=1)
    standby.witness.listed([], {"uid": ("shop", "web")})
    checking = asyncio.create_task(removals.check())
    await api.asked.wait()
    api.there = False
    standby.intake.prepull_event("DELETED", {"metadata": WEB, "spec": {}})
    api.arrive.set()
    await checking
    assert not standby.witness.settled
    await removals.check()
    assert standby.witness.gone == {"uid"}
