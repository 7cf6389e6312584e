"""What the operator orders removed, and above all what it does not. Real etcd and API server; the agents are FAKE.

All objects here ask for Delete: an order that is wrong costs images.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from imageprepull.kube.client import ApiClient
from imageprepull.kube.kinds import CONFIGMAPS, CRDS, IMAGEPREPULLS, LEASES, NODEPREPULLS, NODES, Kind
from tests.cluster.bare_api import USER, BareApi, Child, Operator, free_port, running
from tests.cluster.fake_agents import FakeAgents
from tests.cluster.operator_bench import (
    NODE_NAMES,
    OTHER,
    PINNED,
    apply_crds,
    create,
    eventually,
    has_ended,
    holds,
    ready,
)

pytestmark = pytest.mark.timeout(240)
ROLES = Kind("rbac.authorization.k8s.io", "v1", "clusterroles", False, "ClusterRole")
BINDINGS = Kind("rbac.authorization.k8s.io", "v1", "clusterrolebindings", False, "ClusterRoleBinding")
ALL_KINDS = {
    "imageprepull.io": ["imageprepulls", "imageprepulls/status", "nodeprepulls"],
    "": ["nodes", "pods", "configmaps"],
    "apiextensions.k8s.io": ["customresourcedefinitions"],
    "coordination.k8s.io": ["leases"],
    "events.k8s.io": ["events"],
}
LONG_ENOUGH = 2.0
"""Seconds: several times every delay of these operators between a suspicion and an order."""


def operator(bare_api: BareApi, *more: str) -> Operator:
    return Operator(bare_api, "op", "--resync=1", "--confirm-interval=0.6", *more)


def orders(agents: FakeAgents) -> set[tuple[str, str]]:
    """Every withdrawal that any agent was ever given: (node, onRemoval)."""
    return {
        (node, entry.get("onRemoval", "Unpin"))
        for node, specs in agents.seen.items()
        for spec in specs
        for entry in spec.get("images", ())
        if entry.get("state") == "Absent"
    }


async def stays_without_orders(
    agents: FakeAgents, seconds: float = LONG_ENOUGH, *, to: tuple[str, ...] = ("Delete", "Unpin")
) -> None:
    """Nothing marks that something does not happen: it is watched for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert [order for order in orders(agents) if order[1] in to] == []
        await asyncio.sleep(0.1)


async def deleting(api: ApiClient, name: str, *images: str, **spec: Any) -> None:
    await create(api, name, *images, deletionPolicy="Delete", **spec)


async def crd_noted(api: ApiClient) -> bool:
    lease = await api.get(LEASES, "imageprepull-operator", "default")
    crd = await api.get(CRDS, "imageprepulls.imageprepull.io")
    return bool(lease["metadata"]["annotations"]["imageprepull.io/crd-uid"] == crd["metadata"]["uid"])


async def test_a_crd_that_is_deleted_and_made_anew_takes_nothing_back_even_of_a_single_object(
    bare_api: BareApi, api: ApiClient, agents: FakeAgents
) -> None:
    first = operator(bare_api)
    with running(first):
        await deleting(api, "web", PINNED)
        await eventually(ready(api, "web"))
        await eventually(lambda: crd_noted(api))
        await api.delete(CRDS, "imageprepulls.imageprepull.io")
        await eventually(lambda: has_ended(first))
    await apply_crds(api)
    second = operator(bare_api)
    with running(second):

        async def held() -> str:
            _, text = await asyncio.to_thread(second.ask, "/readyz?verbose")
            assert "maybe with their CRD" in text
            return text.partition("approve-removals=")[2].partition(")")[0]

        token = await eventually(held)
    # Another start knows no better.
    second = operator(bare_api)
    with running(second):
        assert await eventually(held) == token
        await stays_without_orders(agents)
        assert await holds(api, "n1", pinned="Present")()
        approval = {"metadata": {"annotations": {"imageprepull.io/approve-removals": token}}}
        await api.merge_patch(LEASES, "imageprepull-operator", approval, namespace="default")
        await eventually(holds(api, "n1"))
        await eventually(lambda: crd_noted(api))


async def test_an_object_that_is_patched_to_retain_and_deleted_at_once_takes_nothing_back(
    bare_api: BareApi, api: ApiClient, agents: FakeAgents
) -> None:
    """No entry was written for the patch: only its last words say so."""
    child = operator(bare_api)
    with running(child):
        await deleting(api, "web", PINNED)
        await eventually(ready(api, "web"))
        child.send(signal.SIGSTOP)
        patch = {"spec": {"deletionPolicy": "Retain"}}
        await api.merge_patch(IMAGEPREPULLS, "web", patch, namespace="default")
        await api.delete(IMAGEPREPULLS, "web", namespace="default")
        child.send(signal.SIGCONT)
        for node in NODE_NAMES:
            await eventually(holds(api, node))
    assert orders(agents) == {(node, "Unpin") for node in NODE_NAMES}


async def test_a_pin_that_was_left_is_taken_away_when_no_object_can_mean_it_and_never_with_delete(
    bare_api: BareApi, api: ApiClient, agents: FakeAgents
) -> None:
    """As after a NodePrepull and an object were deleted with nobody there to see it."""
    left = {"reference": OTHER, "digest": "sha256:" + "b" * 64}
    with running(operator(bare_api)):
        await deleting(api, "web", PINNED)
        await deleting(api, "refused", PINNED, nodeSelector={"zone": "nowhere"}, suspend=True)
        await eventually(ready(api, "web"))
        agents.strays["n1"] = [left]
        await eventually(lambda: reports(api, "n1"))
        await stays_without_orders(agents)
        await api.delete(IMAGEPREPULLS, "refused", namespace="default")
        await eventually(lambda: ordered_away(agents, "n1"))
        await eventually(holds(api, "n1", pinned="Present"))
        # What an object asks for keeps its pin, whatever an agent says.
        agents.strays["n2"] = [{"reference": PINNED, "digest": "sha256:" + "a" * 64}]
        await eventually(lambda: reports(api, "n2"))
        agents.seen.clear()
        await stays_without_orders(agents)
    assert agents.strays["n1"] == []


async def reports(api: ApiClient, node: str) -> bool:
    document = await api.get(NODEPREPULLS, node)
    return bool(document["status"]["strayPins"])


async def ordered_away(agents: FakeAgents, node: str) -> bool:
    assert orders(agents) == {(node, "Unpin")}
    return True


async def test_deleted_nodeprepulls_come_back_and_take_nothing_back(
    bare_api: BareApi, api: ApiClient, agents: FakeAgents
) -> None:
    with running(operator(bare_api)):
        await deleting(api, "web", PINNED)
        await deleting(api, "late", OTHER)
        await eventually(ready(api, "web"))
        await eventually(ready(api, "late"))
        for node in NODE_NAMES:
            await api.delete(NODEPREPULLS, node)
        for node in NODE_NAMES:
            await eventually(holds(api, node, pinned="Present", other="Present"))
    # And with nobody there to see it.
    for node in NODE_NAMES:
        await api.delete(NODEPREPULLS, node)
    await api.delete(IMAGEPREPULLS, "late", namespace="default")
    with running(operator(bare_api)):
        for node in NODE_NAMES:
            await eventually(holds(api, node, pinned="Present"))
        await stays_without_orders(agents)


@pytest.fixture
async def user(api: ApiClient) -> AsyncIterator[None]:
    """What the operator's own user may do: all of these, until a test takes some away."""
    await allow(api)
    binding = {
        "metadata": {"name": "bare-operator"},
        "roleRef": {"apiGroup": ROLES.group, "kind": "ClusterRole", "name": "bare-operator"},
        "subjects": [{"apiGroup": ROLES.group, "kind": "User", "name": USER}],
    }
    await api.create(BINDINGS, binding)
    yield
    await api.delete(BINDINGS, "bare-operator")
    await api.delete(ROLES, "bare-operator")


async def allow(api: ApiClient, *, without: str = "", read_only: str = "", unwatched: str = "") -> None:
    reading = ["get", "list", "watch"]
    limits = {read_only: reading, unwatched: ["get", "list", "patch"]}
    rules = [
        {"apiGroups": [group], "resources": [one], "verbs": limits.get(one, ["*"])}
        for group, resources in ALL_KINDS.items()
        for one in resources
        if one != without
    ]
    role = {"apiVersion": ROLES.api_version, "kind": ROLES.kind, "metadata": {"name": "bare-operator"}}
    await api.apply(ROLES, "bare-operator", role | {"rules": rules}, field_manager="test", force=True)


@pytest.mark.parametrize("starved", ["nodes", "imageprepulls"])
async def test_an_operator_that_may_not_look_orders_nothing_until_it_may(
    bare_api: BareApi, api: ApiClient, agents: FakeAgents, user: None, starved: str
) -> None:
    """Its watches go on, so that it hears of the deletion: hearing is not enough."""
    child = operator(bare_api, f"--token-file={bare_api.user_token_file}")
    with running(child):
        await deleting(api, "web", PINNED)
        await deleting(api, "stays", OTHER)
        await eventually(ready(api, "web"))
        await eventually(ready(api, "stays"))
        await allow(api, without=starved)
        await eventually(lambda: refused(child, starved))
        await api.delete(IMAGEPREPULLS, "web", namespace="default")
        await stays_without_orders(agents)
        assert child.ended() is None, child.tail()
        await allow(api)
        for node in NODE_NAMES:
            await eventually(holds(api, node, other="Present"), within=90)
    assert orders(agents) == {(node, "Delete") for node in NODE_NAMES}


async def refused(child: Operator, plural: str) -> bool:
    """Whether the operator has met the refusal; its log names the resource."""
    return f'resource \\"{plural}\\"' in child.tail(200)


@pytest.fixture
def unharmed(bare_api: BareApi) -> Iterator[BareApi]:
    """The server is up in the end, whatever a restore made of it."""
    yield bare_api
    if not bare_api.children:
        bare_api.start()


@asynccontextmanager
async def backed_up(
    server: BareApi, api: ApiClient, *more: str, chosen: str = ""
) -> AsyncIterator[tuple[Operator, Path]]:
    """An operator that will live through a restore, and a backup with one object, whose image is on its nodes."""
    child = operator(server, "--lease-seconds=120", *more)
    with running(child):
        selector = {"nodeSelector": {"zone": chosen}} if chosen else {}
        await deleting(api, "web", PINNED, **selector)
        await eventually(ready(api, "web"))
        await eventually(lambda: crd_noted(api))
        yield child, await asyncio.to_thread(server.back_up)


@pytest.mark.parametrize("resync", [1, 8])
async def test_an_old_backup_takes_nothing_back(
    unharmed: BareApi, api: ApiClient, agents: FakeAgents, resync: float
) -> None:
    """Objects made after the backup are gone, younger generations too; nobody ordered that.

    With a late resync the operator finds the nodes' older specs first, with a plan of what was.
    """
    async with backed_up(unharmed, api, f"--resync={resync}") as (child, backup):
        await deleting(api, "late", OTHER)
        edit = {"spec": {"images": [{"image": PINNED}, {"image": OTHER}]}}
        await api.merge_patch(IMAGEPREPULLS, "web", edit, namespace="default")
        await eventually(ready(api, "late"))
        for node in NODE_NAMES:
            await eventually(holds(api, node, pinned="Present", other="Present"))
        await asyncio.to_thread(unharmed.restore, backup)
        await eventually(lambda: only_old_objects(api))
        await stays_without_orders(agents, LONG_ENOUGH + 1.1 * resync)
        assert child.ended() is None, "its memory of what was is the danger"
        for node in NODE_NAMES:
            await eventually(holds(api, node, pinned="Present"))


async def test_a_backup_without_a_nodeprepull_has_nothing_deleted_on_its_node(
    unharmed: BareApi, api: ApiClient, agents: FakeAgents
) -> None:
    """Nor one without the object that the NodePrepull was made for: both vanished unseen."""
    async with backed_up(unharmed, api, "--resync=4", chosen="n1") as (child, backup):
        await deleting(api, "late", OTHER)
        await eventually(ready(api, "late"))
        await eventually(holds(api, "n3", other="Present"))
        await asyncio.to_thread(unharmed.restore, backup)
        await eventually(lambda: only_old_objects(api))
        await stays_without_orders(agents, 12, to=("Delete",))
        assert child.ended() is None, "its memory of what was is the danger"


async def test_a_label_that_a_backup_lacks_has_nothing_deleted_on_its_node(
    unharmed: BareApi, api: ApiClient, agents: FakeAgents
) -> None:
    """The node was chosen by a label that was set after the backup. Nobody has taken the label away.

    What NodePrepulls say is heard at once, since the server counts on, and how Nodes are by now is not.
    """
    async with backed_up(unharmed, api, "--resync=20", chosen="n1") as (child, backup):
        await deleting(api, "late", OTHER)
        await api.merge_patch(NODES, "n2", {"metadata": {"labels": {"zone": "n1"}}})
        await eventually(holds(api, "n2", pinned="Present", other="Present"))
        _, newest = await api.list(NODES)
        await asyncio.to_thread(unharmed.restore, backup)
        await eventually(lambda: only_old_objects(api))
        await overtakes(api, int(newest))
        await api.merge_patch(NODEPREPULLS, "n1", {"metadata": {"labels": {"touched": "yes"}}})
        await stays_without_orders(agents, 30, to=("Delete",))
        assert child.ended() is None, "its memory of what was is the danger"


async def overtakes(api: ApiClient, version: int) -> None:
    """Others write until the server counts higher than it did before the restore."""
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "counter"}}
    written = 0
    while written < version:
        body["data"] = {"written": str(written)}
        found = await api.apply(CONFIGMAPS, "counter", body, namespace="default", field_manager="test")
        written = int(found["metadata"]["resourceVersion"])


async def only_old_objects(api: ApiClient) -> bool:
    found, _ = await api.list(IMAGEPREPULLS)
    assert [one["metadata"]["name"] for one in found] == ["web"]
    assert [one["image"] for one in found[0]["spec"]["images"]] == [PINNED]
    return True


class Uninstall(Child):
    """The process of the chart's pre-delete hook. The Deployment that it would stop does not exist here."""

    def __init__(self, api: BareApi, *, server: str = "", timeout: float = 12) -> None:
        log = api.folder / "uninstall.log"
        log.unlink(missing_ok=True)
        program = Path(sys.executable).with_name("imageprepull")
        flags = [
            "uninstall",
            f"--server={server or api.server}",
            f"--token-file={api.token_file}",
            f"--ca-file={api.ca_file}",
            "--namespace=default",
            f"--timeout={timeout}",
            "--poll=0.2",
        ]
        super().__init__([str(program), *flags], log)


async def test_an_uninstall_unpins_where_agents_answer_and_names_the_others(
    bare_api: BareApi, api: ApiClient, agents: FakeAgents
) -> None:
    with running(operator(bare_api)):
        await deleting(api, "web", PINNED)
        await eventually(ready(api, "web"))
    agents.silent.add("n2")
    uninstall = Uninstall(bare_api)
    with running(uninstall):
        await eventually(lambda: has_ended(uninstall))
    assert uninstall.ended() == 0
    said = uninstall.tail()
    assert "unpinned on 2 nodes" in said
    assert "1 nodes did not answer, images may stay pinned there: n2" in said
    assert orders(agents) == {(node, "Unpin") for node in NODE_NAMES}, "nobody ordered a removal"
    for node in NODE_NAMES:
        assert await holds(api, node, pinned="Absent")()
        document = await api.get(NODEPREPULLS, node)
        assert not document["metadata"].get("finalizers")
        assert all("pin" not in entry for entry in document["spec"]["images"])
    agents.silent.clear()
    with running(operator(bare_api)):
        await eventually(holds(api, "n2", pinned="Present"))
        await eventually(ready(api, "web"))


async def test_an_uninstall_waits_for_an_operator_that_leads(
    bare_api: BareApi, api: ApiClient, agents: FakeAgents
) -> None:
    """Its orders would not stand: whoever leads would order the images back."""
    leader = operator(bare_api)
    with running(leader):
        await deleting(api, "web", PINNED)
        await eventually(ready(api, "web"))
        uninstall = Uninstall(bare_api, timeout=30)
        with running(uninstall):
            await stays_without_orders(agents)
            leader.stop()
            await eventually(lambda: has_ended(uninstall))
    assert "unpinned on 3 nodes" in uninstall.tail()
    assert "did not answer" not in uninstall.tail()


@pytest.mark.parametrize("broken", ["no API server", "no CRD"])
async def test_an_uninstall_ends_well_whatever_is_broken(
    bare_api: BareApi, api: ApiClient, broken: str
) -> None:
    if broken == "no CRD":
        await api.delete(CRDS, "nodeprepulls.imageprepull.io")
    nowhere = f"https://127.0.0.1:{free_port()}"
    server = nowhere if broken == "no API server" else ""
    uninstall = Uninstall(bare_api, server=server, timeout=2)
    with running(uninstall):
        await eventually(lambda: has_ended(uninstall))
    assert uninstall.ended() == 0
    assert ("cannot order it" in uninstall.tail()) == (broken == "no API server")
    await apply_crds(api)
