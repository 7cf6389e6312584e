"""Orders that stand, and objects that the operator cannot see or cannot count. Real API server; the agents are FAKE.

All objects here ask for Delete: an order that is wrong costs images.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator

import pytest
import yaml

from imageprepull.agent.clock import Clock
from imageprepull.agent.node import NodeError
from imageprepull.agent.operator_lease import OperatorLease
from imageprepull.agent.orders import order_in
from imageprepull.agent.sightings import Sightings
from imageprepull.cli import repair, retry
from imageprepull.cli.older_crds import OlderCrds, check_fields
from imageprepull.kube.access import ClusterAccess
from imageprepull.kube.client import ApiClient
from imageprepull.kube.kinds import CRDS, IMAGEPREPULLS, LEASES, NODEPREPULLS, NODES
from imageprepull.resources import bounds
from imageprepull.resources.base import decode
from imageprepull.resources.nodeprepull import DesiredImage, NodePrepull
from imageprepull.resources.vouching import vouches
from tests.cluster.bare_api import BareApi, Operator, running
from tests.cluster.fake_agents import FakeAgents
from tests.cluster.operator_bench import (
    CRD_FILES,
    NODE_NAMES,
    PINNED,
    create,
    eventually,
    holds,
    ready,
    status,
)
from tests.cluster.test_operator_removal import (
    allow,
    backed_up,
    deleting,
    operator,
    orders,
    refused,
    stays_without_orders,
    unharmed,  # noqa: F401 - a fixture
    user,  # noqa: F401 - a fixture
)

pytestmark = pytest.mark.timeout(240)
MIRRORED = "registry.invalid/mirror/pinned@" + PINNED.partition("@")[2]
"""The same image under another name."""


async def confirmed(api: ApiClient, node: str) -> list[DesiredImage]:
    """What a real agent that sees the node's only order now would go by before it deletes."""
    clock = Clock()
    sightings = Sightings(clock)
    found = decode(NodePrepull, await api.get(NODEPREPULLS, node))
    sightings.take(found.metadata.uid, found.spec.images)
    lease = OperatorLease(
        api, namespace="default", name="imageprepull-operator", poll=0.3, margin=1, clock=clock
    )
    (order,) = found.spec.images
    return list(await order_in(api, node, sightings.of, lease.prove)(order))


async def readiness(child: Operator, code: int, text: str) -> bool:
    answered, said = await asyncio.to_thread(child.ask, "/readyz?verbose")
    assert answered == code, said
    assert text in said, said
    return True


@pytest.fixture
async def keeping(agents: FakeAgents) -> AsyncIterator[FakeAgents]:
    """Agents that carry out no order: a container uses the image, say."""
    agents.keeps.update(NODE_NAMES)
    yield agents
    agents.keeps.clear()


async def test_an_order_that_stands_is_not_obeyed_while_the_operator_cannot_see_who_wants_the_image(
    bare_api: BareApi,
    api: ApiClient,
    keeping: FakeAgents,
    user: None,  # noqa: F811
) -> None:
    """It leads and renews its Lease: it is only blind, and would never take the order back."""
    child = operator(bare_api, f"--token-file={bare_api.user_token_file}")
    with running(child):
        await deleting(api, "web", PINNED)
        await eventually(holds(api, "n1", pinned="Present"))
        await api.delete(IMAGEPREPULLS, "web", namespace="default")
        await eventually(holds(api, "n1", pinned="Absent"))
        (order,) = await confirmed(api, "n1")
        assert order.state == "Absent", "that it stands is nobody's doubt"
        await allow(api, without="imageprepulls")
        await eventually(lambda: refused(child, "imageprepulls"))
        await create(api, "anew", PINNED)
        with pytest.raises(NodeError, match="does not vouch for what it has ordered") as caught:
            await confirmed(api, "n1")
        assert (caught.value.reason, caught.value.permanent) == ("OrderNotConfirmed", False)
        await readiness(child, 503, "imageprepulls: GET /apis/imageprepull.io/v1alpha1/imageprepulls: 403")
        await readiness(child, 503, "orders: not vouched for, nothing is deleted: GET /apis/")
        assert child.ended() is None, child.tail()
        await allow(api)
        await eventually(holds(api, "n1", pinned="Present"), within=90)
        await eventually(lambda: readiness(child, 200, "[+]imageprepulls ok"))


async def test_an_order_is_not_obeyed_while_the_operator_cannot_write_what_keeps_the_image(
    bare_api: BareApi,
    api: ApiClient,
    keeping: FakeAgents,
    user: None,  # noqa: F811
) -> None:
    """It is wanted under another reference; what agents go by is its digest."""
    child = operator(bare_api, f"--token-file={bare_api.user_token_file}")
    with running(child):
        await deleting(api, "web", PINNED)
        await eventually(holds(api, "n1", pinned="Present"))
        await api.delete(IMAGEPREPULLS, "web", namespace="default")
        await eventually(holds(api, "n1", pinned="Absent"))
        await allow(api, read_only="nodeprepulls")
        await create(api, "anew", MIRRORED)
        await eventually(lambda: refused(child, "nodeprepulls"))
        with pytest.raises(NodeError, match="does not vouch for what it has ordered"):
            await confirmed(api, "n1")
        await allow(api)
        await eventually(lambda: wanted(api, "n1", MIRRORED), 90)


async def wanted(api: ApiClient, node: str, reference: str) -> bool:
    """Whether the node is told to hold it."""
    images = (await api.get(NODEPREPULLS, node))["spec"]["images"]
    return any(
        entry["reference"] == reference and entry.get("state", "Present") == "Present" for entry in images
    )


async def test_nothing_is_read_again_and_again_while_there_is_nothing_to_delete(
    bare_api: BareApi, api: ApiClient, agents: FakeAgents
) -> None:
    with running(Operator(bare_api, "op", "--resync=300")):
        await deleting(api, "web", PINNED)
        await eventually(ready(api, "web"))

        async def renewed_without_a_word() -> bool:
            lease = await api.get(LEASES, "imageprepull-operator", "default")
            assert lease["spec"]["renewTime"] != lease["spec"]["acquireTime"]
            return not vouches(lease)

        await eventually(renewed_without_a_word)


async def test_beyond_the_owners_that_an_entry_lists_nobody_is_forgotten(
    bare_api: BareApi, api: ApiClient, agents: FakeAgents
) -> None:
    names = [f"o{number:03d}" for number in range(bounds.OWNERS + 1)]
    with running(operator(bare_api)):
        for name in names:
            await deleting(api, name, PINNED)
        await eventually(ready(api, names[-1]), 60)

        async def cut() -> bool:
            (entry,) = (await api.get(NODEPREPULLS, "n1"))["spec"]["images"]
            assert len(entry["owners"]) == bounds.OWNERS
            return not any(names[-1] in owner for owner in entry["owners"])

        await eventually(cut)
        # It names the image still, and is refused from now on.
        by_tag_too = [{"image": PINNED}, {"image": PINNED.replace("@", ":1@")}]
        patch = {"spec": {"images": by_tag_too}}
        await api.merge_patch(IMAGEPREPULLS, names[-1], patch, namespace="default")
        await eventually(lambda: stalled(api, names[-1]))
        for name in names[:-1]:
            await api.delete(IMAGEPREPULLS, name, namespace="default")
        await stays_without_orders(agents)
        for node in NODE_NAMES:
            assert await holds(api, node, pinned="Present")()
        await api.delete(IMAGEPREPULLS, names[-1], namespace="default")
        for node in NODE_NAMES:
            await eventually(holds(api, node), 90)
    assert orders(agents) == {(node, "Delete") for node in NODE_NAMES}


async def stalled(api: ApiClient, name: str) -> bool:
    document = await api.get(IMAGEPREPULLS, name, "default")
    (found,) = [one for one in document["status"]["conditions"] if one["type"] == "Stalled"]
    assert found["observedGeneration"] == document["metadata"]["generation"]
    return bool(found["status"] == "True")


async def test_an_operator_that_lives_through_a_restored_backup_goes_by_what_is_there_now(
    unharmed: BareApi,  # noqa: F811
    api: ApiClient,
    agents: FakeAgents,
) -> None:
    """It has seen higher resourceVersions than the objects will have for long, its own last writes among them."""
    async with backed_up(unharmed, api) as (child, backup):
        for number in range(100):
            patch = {"metadata": {"labels": {"number": str(number)}}, "spec": {"priority": 1}}
            seen = await api.merge_patch(IMAGEPREPULLS, "web", patch, namespace="default")
        await eventually(lambda: written_with_priority(api, 1))
        await asyncio.to_thread(unharmed.restore, backup)
        edit = {"spec": {"priority": 2, "deletionPolicy": "Retain"}}
        restored = await eventually(lambda: api.merge_patch(IMAGEPREPULLS, "web", edit, namespace="default"))
        assert int(restored["metadata"]["resourceVersion"]) < int(seen["metadata"]["resourceVersion"])
        await eventually(lambda: written_with_priority(api, 2), 60)
        await api.delete(IMAGEPREPULLS, "web", namespace="default")
        for node in NODE_NAMES:
            await eventually(holds(api, node), 60)
        assert child.ended() is None, "its memory of what was is the danger"
    assert orders(agents) == {(node, "Unpin") for node in NODE_NAMES}


@pytest.mark.parametrize(
    "heard", [pytest.param("all by its watches", marks=pytest.mark.nightly), "answers only"]
)
async def test_an_order_of_a_backup_is_not_obeyed_before_the_operator_knows_that_it_stands(
    unharmed: BareApi,  # noqa: F811
    api: ApiClient,
    keeping: FakeAgents,
    user: None,  # noqa: F811
    heard: str,
) -> None:
    """The node was not chosen when the backup was made. It is again, and no watch tells the order.

    What the operator has heard of what is lost, by a watch or as the answer to its own write, keeps the order from it.
    """
    child = Operator(
        unharmed,
        "op",
        f"--token-file={unharmed.user_token_file}",
        "--resync=300",
        "--confirm-interval=0.6",
        "--lease-seconds=45",
    )
    with running(child):
        await deleting(api, "web", PINNED, nodeSelector={"team": "a"})
        await label(api, team="a")
        await eventually(holds(api, "n1", pinned="Present"))
        await label(api, team=None)
        await eventually(holds(api, "n1", pinned="Absent"))
        await eventually(lambda: counts(api, "0/0"))
        await eventually(lambda: has_reported(api, "n1"))
        if heard == "answers only":
            # From when the watch ends with the server, and in the backup, too.
            await allow(api, unwatched="nodeprepulls")
        backup = await asyncio.to_thread(unharmed.back_up)
        for kind in (NODES, NODEPREPULLS):
            for number in range(100):
                await api.merge_patch(kind, "n1", {"metadata": {"labels": {"number": str(number)}}})
        await eventually(lambda: label(api, team="a"))
        await eventually(holds(api, "n1", pinned="Present"))
        if heard != "answers only":
            await eventually(lambda: counts(api, "1/1"))
        await asyncio.to_thread(unharmed.restore, backup)
        await eventually(lambda: restored(api))
        obeying = asyncio.create_task(confirmed(api, "n1"))
        taken_back = asyncio.create_task(eventually(holds(api, "n1", pinned="Present"), 100))
        first, _ = await asyncio.wait({obeying, taken_back}, return_when=asyncio.FIRST_COMPLETED)
        if obeying in first:
            with pytest.raises(NodeError):
                await obeying
        obeying.cancel()
        await taken_back
        assert child.ended() is None, "its memory of what was is the danger"


async def restored(api: ApiClient) -> bool:
    """Whoever restores a backup puts right what it has undone: the operator may watch, the node is chosen."""
    await allow(api)
    return await label(api, team="a")


async def has_reported(api: ApiClient, node: str) -> bool:
    """Whether its agent has nothing to write as long as the node's spec stays as it is."""
    document = await api.get(NODEPREPULLS, node)
    return bool(document["status"]["observedGeneration"] == document["metadata"]["generation"])


async def counts(api: ApiClient, ready_nodes: str) -> bool:
    """Whether the operator has heard what the agent of n1 reports, or that the node is not chosen."""
    return bool((await status(api, "web"))["readyNodes"] == ready_nodes)


async def label(api: ApiClient, **labels: str | None) -> bool:
    """Labels of n1; None takes one away."""
    await api.merge_patch(NODES, "n1", {"metadata": {"labels": labels}})
    return True


async def written_with_priority(api: ApiClient, priority: int) -> bool:
    (entry,) = (await api.get(NODEPREPULLS, "n1"))["spec"]["images"]
    return bool(entry.get("priority") == priority)


async def test_a_crd_that_is_older_than_the_operator_takes_from_a_node_what_it_lacks_and_nothing_else(
    bare_api: BareApi, api: ApiClient, agents: FakeAgents
) -> None:
    """As after an upgrade with crds.enabled=false."""
    full = yaml.safe_load(next(file for file in CRD_FILES if file.stem == "nodeprepulls").read_text())
    older = copy.deepcopy(full)
    spec = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    del spec["kubeletWithoutPins"]
    del spec["images"]["items"]["properties"]["priority"]
    name = full["metadata"]["name"]
    await api.apply(CRDS, name, older, field_manager="test", force=True)
    node_info = {"status": {"nodeInfo": {"kubeletVersion": "v1.24.0"}}}
    await api.merge_patch(NODES, "n1", node_info, subresource="status")
    child = operator(bare_api)
    with running(child):
        await deleting(api, "web", PINNED, priority=5)
        for node in NODE_NAMES:
            await eventually(holds(api, node, pinned="Present"))
        await eventually(ready(api, "web"))
        assert child.tail(1000).count("CRD older than this operator") == 1
        generation = (await api.get(NODEPREPULLS, "n1"))["metadata"]["generation"]
        await api.apply(CRDS, name, full, field_manager="test", force=True)
        await eventually(lambda: written_with_priority(api, 5))
        found = await api.get(NODEPREPULLS, "n1")
        assert found["spec"]["kubeletWithoutPins"] == "v1.24.0"
        assert found["metadata"]["generation"] == generation + 1, "nothing was written again and again"


@pytest.mark.parametrize("what", ["retry", "repair"])
async def test_an_order_that_a_crd_has_no_place_for_is_refused_until_it_is_upgraded(
    bare_api: BareApi, api: ApiClient, what: str
) -> None:
    """A user without any right of ours can tell."""
    full = yaml.safe_load(next(file for file in CRD_FILES if file.stem == "nodeprepulls").read_text())
    older = copy.deepcopy(full)
    spec = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    entry = spec["images"]["items"]["properties"]
    if what == "retry":
        del entry["retry"]["properties"]["nonce"]
    else:
        del entry["repair"]
    needs = {"retry": retry, "repair": repair}[what].NEEDS
    lost = f"nodeprepulls.imageprepull.io lacks spec.images.{what}"
    name = full["metadata"]["name"]
    access = ClusterAccess.from_files(bare_api.server, bare_api.user_token_file, bare_api.ca_file)
    async with ApiClient(access) as client:

        async def refusal() -> str:
            try:
                await check_fields(client, needs)
            except OlderCrds as error:
                return str(error)
            return ""

        async def is_taken() -> bool:
            return not await refusal()

        assert await is_taken()
        await api.apply(CRDS, name, older, field_manager="test", force=True)
        assert lost in await eventually(refusal)
        await api.apply(CRDS, name, full, field_manager="test", force=True)
        await eventually(is_taken)
