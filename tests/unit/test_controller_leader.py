"""What the leader remembers over a list of everything, and what it forgets."""

from __future__ import annotations

from typing import Any, cast

import pytest

from imageprepull.controller.assign import Choice
from imageprepull.controller.leader import Leader
from imageprepull.controller.settings import OperatorSettings
from imageprepull.controller.standby import Standby
from imageprepull.kube.informer import Change
from imageprepull.resources import bounds


class Api:
    """A FAKE API server without a single ImagePrepull."""

    async def list(self, kind: object) -> tuple[list[dict[str, Any]], str]:
        return [], "1"


def owned_by(owners: int) -> Change:
    """A NodePrepull whose image has so many owners, none of which is called late."""
    image = {
        "reference": "a",
        "digest": "sha256:" + "a" * 64,
        "owners": [f"shop/o{number}/o{number}" for number in range(owners)],
    }
    metadata = {"name": "n1", "uid": "n1", "resourceVersion": "1", "generation": 1}
    return Change("added", {"metadata": metadata, "spec": {"images": [image]}}, None, witnessed=True)


@pytest.mark.parametrize(("owners", "remembered"), [(bounds.OWNERS, {"late"}), (bounds.OWNERS - 1, set())])
async def test_the_last_words_of_who_may_own_an_image_without_being_listed_are_remembered(
    owners: int, remembered: set[str]
) -> None:
    api = cast("Any", Api())
    settings = OperatorSettings(access=cast("Any", None), identity="one")
    standby = Standby(api, settings)
    standby.intake.node_prepull(owned_by(owners))
    late = {"namespace": "shop", "name": "late", "uid": "late", "resourceVersion": "2", "generation": 1}
    standby.intake.prepull_event("DELETED", {"metadata": late, "spec": {"deletionPolicy": "Retain"}})
    standby.witness.read("late", found=False, trusted=True, now=0)
    await Leader(api, cast("Any", None), standby, settings)._list()
    assert standby.world.policies.retaining == remembered
    assert standby.witness.gone == remembered


@pytest.mark.parametrize(("owners", "told"), [(bounds.OWNERS, True), (bounds.OWNERS - 1, False)])
async def test_who_is_not_listed_as_an_owner_hears_of_its_nodes(owners: int, told: bool) -> None:
    settings = OperatorSettings(access=cast("Any", None), identity="one", debounce=0)
    standby = Standby(cast("Any", Api()), settings)
    metadata = {"namespace": "shop", "name": "late", "uid": "late", "resourceVersion": "2", "generation": 1}
    known = standby.intake.prepull({"metadata": metadata, "spec": {"images": [{"image": "a"}]}})
    standby.queues.statuses.done(await standby.queues.statuses.take())
    standby.world.choices["late"] = Choice({"n1": ()})
    standby.intake.node_prepull(owned_by(owners))
    assert bool(len(standby.queues.statuses)) is told
    if told:
        assert await standby.queues.statuses.take() == known.key
