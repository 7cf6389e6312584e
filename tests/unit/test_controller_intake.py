import time
from typing import Any

from imageprepull.controller.intake import Intake, Queues
from imageprepull.controller.witness import Witness
from imageprepull.controller.world import World


def prepull(version: int, policy: str = "", uid: str = "uid") -> dict[str, Any]:
    metadata = {"namespace": "shop", "name": "web", "uid": uid, "resourceVersion": str(version)}
    spec = {"images": [{"image": "nginx:1"}]} | ({"deletionPolicy": policy} if policy else {})
    return {"metadata": metadata | {"generation": version}, "spec": spec}


async def test_what_an_object_says_last_counts_whether_its_end_was_seen_or_not() -> None:
    world = World()
    intake = Intake(world, Queues(), Witness())
    policies = world.policies
    intake.prepull(prepull(1, "Delete"))
    assert policies.retaining == set()
    intake.prepull_event("DELETED", prepull(4, "Retain"))
    assert policies.retaining == {"uid"}
    # A read that began before all that.
    intake.prepull(prepull(3, "Delete"))
    intake.no_prepull(("shop", "web"))
    assert policies.retaining == {"uid"}
    # Another life of it, whose end nobody sees; an absent policy means Retain, a later word counts.
    intake.prepull_event("ADDED", prepull(5, "", uid="anew"))
    intake.prepull_event("MODIFIED", prepull(6, "Delete", uid="anew"))
    intake.no_prepull(("shop", "web"))
    assert policies.retaining == {"uid"}
    intake.prepull_event("MODIFIED", prepull(7, "Whatever a newer version knows", uid="anew"))
    assert policies.retaining == {"uid", "anew"}
    policies.forget({"anew": ("shop", "web")})
    assert policies.retaining == {"anew"}
    intake.prepull_event("DELETED", prepull(8, "Delete", uid="anew"))
    assert policies.retaining == set()


async def test_after_a_restored_backup_the_lower_version_is_the_newer_word() -> None:
    world = World()
    intake = Intake(world, Queues(), Witness())
    asked = time.monotonic()
    intake.prepull_event("MODIFIED", prepull(5000, "Retain"))
    intake.prepull(prepull(3010, "Delete"), asked=asked)
    assert world.policies.retaining == {"uid"}, "the request was under way before that was heard"
    intake.prepull(prepull(3010, "Delete"), asked=time.monotonic())
    assert world.policies.retaining == set()
    intake.prepull_event("MODIFIED", prepull(3011, "Retain"))
    assert world.policies.retaining == {"uid"}
    intake.prepull_event("MODIFIED", prepull(3009, "Delete"))
    assert world.policies.retaining == {"uid"}, "an event that an answer has overtaken"


async def test_the_last_word_counts_even_when_nothing_was_read_since_a_restored_backup() -> None:
    world = World()
    intake = Intake(world, Queues(), Witness())
    intake.prepull_event("MODIFIED", prepull(5000, "Delete"))
    asked = time.monotonic()
    intake.prepull_event("DELETED", prepull(3012, "Retain"))
    intake.prepull(prepull(3010, "Delete"), asked=asked)
    assert world.policies.retaining == {"uid"}
