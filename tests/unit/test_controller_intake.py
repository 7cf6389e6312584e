from typing import Any

import pytest

from imageprepull.controller.intake import Intake, Queues
from imageprepull.controller.witness import Witness
from imageprepull.controller.world import World


def document(version: int, state: str = "", uid: str = "uid") -> dict[str, Any]:
    image = {"reference": "a", "digest": "sha256:" + "a" * 64}
    status = {"images": [image | {"state": state}]} if state else {}
    metadata = {"name": "n1", "uid": uid, "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": {"images": [image]}, "status": status}


@pytest.mark.parametrize(
    ("answer", "state"), [(document(9), "Ready"), (document(10), ""), (document(9, uid="a newer life"), "")]
)
async def test_an_answer_that_the_watch_has_overtaken_does_not_put_the_older_object_back(
    answer: dict[str, Any], state: str
) -> None:
    """An agent may report before the operator has read the answer to its own write."""
    world = World()
    intake = Intake(world, Queues(), Witness())
    intake.node_prepull_read(document(10, "Ready"))
    intake.node_prepull_written(answer)
    assert "".join(image.state for image in world.node_prepulls["n1"].object.status.images) == state
