"""The operator's process against a real etcd and API server. Nodes have no kubelets, and the agents are FAKE."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from imageprepull.cli.kubeconfig import Target
from imageprepull.cli.repair import repair
from imageprepull.cli.waiting import BLOCKED
from imageprepull.kube.client import ApiClient
from imageprepull.kube.kinds import CONFIGMAPS, CRDS, EVENTS, IMAGEPREPULLS, LEASES, NODEPREPULLS, NODES
from tests.cluster.bare_api import LEASE_SECONDS, BareApi, Child, Operator, free_port, running
from tests.cluster.fake_agents import FakeAgents, add_node, remove_node
from tests.cluster.operator_bench import (
    NODE_NAMES,
    OTHER,
    PINNED,
    answers,
    apply_crds,
    condition,
    create,
    eventually,
    has_ended,
    holder,
    holds,
    led_by,
    ready,
    status,
)
from tests.testbed.images import LayerSpec, build_image, push

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def registry_url(bare_api: BareApi) -> Iterator[str]:
    folder, port = bare_api.folder, free_port()
    config = {
        "version": "0.1",
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (folder / "registry.json").write_text(json.dumps(config))
    with running(Child(["docker-registry", "serve", str(folder / "registry.json")], folder / "registry.log")):
        yield f"http://127.0.0.1:{port}"


async def test_an_object_goes_from_apply_to_ready_and_away(
    bare_api: BareApi, api: ApiClient, agents: FakeAgents
) -> None:
    with running(Operator(bare_api, "op")):
        await create(api, "web", PINNED)
        await eventually(ready(api, "web"))
        found = await status(api, "web")
        assert found["readyNodes"] == "3/3"
        assert found["progress"] == "100%"
        assert found["nodes"]["desired"] == found["nodes"]["ready"] == 3
        assert {detail["node"] for detail in found["nodeDetails"]} == set(NODE_NAMES)
        assert {one["type"] for one in found["conditions"]} == {"Ready", "Reconciling", "Stalled", "Resolved"}
        node = await api.get(NODES, "n1")
        prepull = await api.get(NODEPREPULLS, "n1")
        assert [owner["uid"] for owner in prepull["metadata"]["ownerReferences"]] == [node["metadata"]["uid"]]
        document = await api.get(IMAGEPREPULLS, "web", "default")
        assert not document["metadata"].get("annotations")
        assert not document["metadata"].get("finalizers")
        await eventually(lambda: no_storm(api))

        await api.delete(IMAGEPREPULLS, "web", namespace="default")
        for name in NODE_NAMES:
            await eventually(holds(api, name))
            assert [
                one["images"][0].get("state", "Present") for one in agents.seen[name] if one.get("images")
            ] == [
                "Present",
                "Absent",
            ]
        await eventually(lambda: told(api, document["metadata"]["uid"], "Started", "Completed"))


async def no_storm(api: ApiClient) -> bool:
    pace = await api.get(CONFIGMAPS, "imageprepull-pace", "default")
    return bool(pace["data"]["storm"] == "false")


async def told(api: ApiClient, uid: str, *reasons: str) -> bool:
    """Whether there are Events for these reasons on an object: they are sent on the side."""
    events = (await api.list(EVENTS, namespace="default"))[0]
    assert set(reasons) <= {one["reason"] for one in events if one["regarding"].get("uid") == uid}
    return True


async def test_nodes_come_and_go(bare_api: BareApi, api: ApiClient, agents: FakeAgents) -> None:
    # All of it by events: the next complete list comes too late.
    with running(Operator(bare_api, "op", "--resync=600")):
        await create(api, "web", PINNED)
        await eventually(ready(api, "web"))
        await add_node(api, "n4")
        await eventually(holds(api, "n4", pinned="Present"))

        async def counts(ready_nodes: str) -> bool:
            assert (await status(api, "web"))["readyNodes"] == ready_nodes
            return True

        await eventually(lambda: counts("4/4"))
        await remove_node(api, "n4")
        await eventually(lambda: counts("3/3"))
        await api.delete(NODEPREPULLS, "n2")
        await eventually(holds(api, "n2", pinned="Present"))


async def test_an_edit_lets_go_of_what_is_not_named_any_more(
    bare_api: BareApi, api: ApiClient, agents: FakeAgents
) -> None:
    with running(Operator(bare_api, "op")):
        await create(api, "web", PINNED)
        await create(api, "same", PINNED, nodeSelector={"zone": "n1"})
        await eventually(ready(api, "web"))
        agents.keeps.add("n2")
        edit: dict[str, Any] = {"spec": {"images": [{"image": OTHER}]}}
        await api.merge_patch(IMAGEPREPULLS, "web", edit, namespace="default")
        await eventually(holds(api, "n1", pinned="Present", other="Present"))
        await eventually(holds(api, "n2", pinned="Absent", other="Present"))
        await eventually(holds(api, "n3", other="Present"))
        await eventually(ready(api, "web"))
        edit = {"spec": {"nodeSelector": {"zone": "n3"}}}
        await api.merge_patch(IMAGEPREPULLS, "web", edit, namespace="default")
        await eventually(holds(api, "n1", pinned="Present"))


async def test_a_bad_spec_is_refused_and_takes_nothing_back(
    bare_api: BareApi, api: ApiClient, agents: FakeAgents
) -> None:
    with running(Operator(bare_api, "op")):
        await create(api, "web", PINNED)
        await eventually(ready(api, "web"))
        edit = {"spec": {"images": [{"image": "nginx"}, {"image": "docker.io/library/nginx:latest"}]}}
        await api.merge_patch(IMAGEPREPULLS, "web", edit, namespace="default")
        await eventually(ready(api, "web", "False"))
        stalled = await condition(api, "web", "Stalled")
        assert (stalled["status"], stalled["reason"]) == ("True", "DuplicateImage")
        await eventually(holds(api, "n1", pinned="Present"))
        await create(api, "later", PINNED, suspend=True)
        await eventually(ready(api, "later", "False"))
        assert "spec.suspend=true" in (await condition(api, "later", "Stalled"))["message"]


async def test_an_order_to_retry_is_handed_on_once_and_answered_and_another_life_does_not_repeat_it(
    bare_api: BareApi, api: ApiClient, agents: FakeAgents
) -> None:
    async def answered(nonce: str, failed: int, ready: int) -> bool:
        found = (await status(api, "web"))["retry"]
        assert (found["nonce"], found["failed"], found["ready"], found["waiting"]) == (
            nonce,
            failed,
            ready,
            0,
        )
        return True

    async def nonces() -> list[str]:
        return [
            entry.get("retry", {}).get("nonce", "")
            for node in NODE_NAMES
            for entry in (await api.get(NODEPREPULLS, node))["spec"]["images"]
            if entry["reference"] == PINNED
        ]

    async def order(text: str) -> None:
        body = {"metadata": {"annotations": {"imageprepull.io/retry": text}}}
        await api.merge_patch(IMAGEPREPULLS, "web", body, namespace="default")

    agents.state, agents.reason = "Failed", "NotFound"
    with running(Operator(bare_api, "op")):
        await create(api, "web", PINNED)
        await eventually(ready(api, "web", "False"))
        await eventually(holds(api, "n3", pinned="Present"))
        await order("n1 node=n2")
        await eventually(lambda: answered("n1", 1, 0))
        assert await nonces() == ["", "n1", ""]
        await order("n2")
        await eventually(lambda: answered("n2", 3, 0))
        assert await nonces() == ["n2", "n2", "n2"]
        assert (await status(api, "web"))["retry"]["reason"] == "NotFound"
    await eventually(lambda: all_seen(api, agents))
    before = {node: len(agents.seen[node]) for node in NODE_NAMES}
    with running(Operator(bare_api, "op")):
        # What comes after it is carried out: the answered order is behind the operator by then.
        await create(api, "same", PINNED)
        await eventually(ready(api, "same", "False"))
        await eventually(lambda: owned_by_two(api))
        await eventually(lambda: all_seen(api, agents))
        assert await nonces() == ["n2", "n2", "n2"]
        assert {node: len(agents.seen[node]) for node in NODE_NAMES} == {
            node: count + 1 for node, count in before.items()
        }, "one new spec each, for the new owner"
        agents.state = "Ready"
        await eventually(ready(api, "web"))
        await order("n3")
        await eventually(lambda: answered("n3", 0, 3))
        assert await nonces() == ["n2", "n2", "n2"], "nothing had failed"


async def all_seen(api: ApiClient, agents: FakeAgents) -> bool:
    """Whether every agent has the newest spec of its node: they look ten times a second."""
    for node in NODE_NAMES:
        assert agents.seen[node][-1] == (await api.get(NODEPREPULLS, node))["spec"]
    return True


async def owned_by_two(api: ApiClient) -> bool:
    for node in NODE_NAMES:
        (entry,) = (await api.get(NODEPREPULLS, node))["spec"]["images"]
        assert len(entry["owners"]) == 2
    return True


async def test_an_order_to_repair_stands_until_what_it_names_was_compared_or_is_nobodys(
    bare_api: BareApi, api: ApiClient, agents: FakeAgents
) -> None:
    operator = Operator(bare_api, "op")

    async def order() -> str:
        found = (await api.get(NODEPREPULLS, "n1"))["metadata"].get("annotations", {})
        return str(found.get("imageprepull.io/repair", ""))

    async def taint(*taints: dict[str, str]) -> None:
        await api.merge_patch(NODES, "n1", {"spec": {"taints": list(taints)}})

    async def written(priority: int) -> bool:
        (entry,) = (await api.get(NODEPREPULLS, "n1"))["spec"]["images"]
        return bool(entry["priority"] == priority)

    async def ended() -> bool:
        return not await order()

    with running(operator):
        await create(api, "web", PINNED)
        await eventually(ready(api, "web"))
        await taint({"key": "broken", "effect": "NoSchedule"})
        await eventually(holds(api, "n1", pinned="Paused"))
        assert await repair(Target(bare_api.access(), "default"), "n1", "", 30) == BLOCKED
        given = await order()
        for priority in (5, 6):
            # What it writes is based on an object that has the order.
            await api.merge_patch(IMAGEPREPULLS, "web", {"spec": {"priority": priority}}, namespace="default")
            await eventually(lambda priority=priority: written(priority))  # type: ignore[misc]
        assert await order() == given
        assert agents.compared == {}

        await taint()
        await eventually(ended)
        assert agents.compared == {("n1", PINNED): given}

        word = {"metadata": {"annotations": {"imageprepull.io/repair": "w2 registry.invalid/nobody:1"}}}
        await api.merge_patch(NODEPREPULLS, "n1", word)
        await eventually(ended)
        assert "no ImagePrepull wants registry.invalid/nobody:1 on the node" in operator.tail()


async def test_failures_and_missing_agents_are_shown(
    bare_api: BareApi, api: ApiClient, agents: FakeAgents
) -> None:
    with running(Operator(bare_api, "op")):
        agents.state, agents.reason = "Failed", "NoSpace"
        web = await create(api, "web", PINNED)
        none = await create(api, "none", PINNED, nodeSelector={"zone": "nowhere"})
        await add_node(api, "bare", agent=False, labels={"zone": "bare"})
        await create(api, "alone", PINNED, nodeSelector={"zone": "bare"})

        async def shown() -> bool:
            found = await status(api, "web")
            assert {one["reason"]: one["count"] for one in found["failures"]} == {
                "NoSpace": 3,
                "AgentUnavailable": 1,
            }
            assert found["nodes"]["failed"] == 3
            assert (await condition(api, "none", "Ready"))["reason"] == "NoMatchingNodes"
            assert (await condition(api, "alone", "Ready"))["reason"] == "NoAgents"
            return True

        agents.silent.add("bare")
        await eventually(shown)
        await eventually(lambda: told(api, web["metadata"]["uid"], "Failed"))
        await eventually(lambda: told(api, none["metadata"]["uid"], "NoMatchingNodes"))


async def test_a_second_replica_takes_over(bare_api: BareApi, api: ApiClient, agents: FakeAgents) -> None:
    with running(Operator(bare_api, "first", "--lease-seconds=20")) as first:
        await create(api, "web", PINNED)
        await eventually(ready(api, "web"))
        with running(Operator(bare_api, "second")) as second:
            assert isinstance(second, Operator)
            await eventually(lambda: answers(second, "/readyz"))
            assert await holder(api) == "first"
            # Frozen, so that it can neither renew nor release.
            first.send(signal.SIGSTOP)
            await eventually(lambda: led_by(api, "second"))
            await add_node(api, "n4")
            await eventually(holds(api, "n4", pinned="Present"))
            first.send(signal.SIGCONT)
            await eventually(lambda: has_ended(first))
            assert first.ended() == 70
            # A stopped leader hands over at once, long before its lease would run out.
            third = Operator(bare_api, "third")
            with running(third):
                await eventually(lambda: answers(third, "/readyz"))
                assert second.stop() == 0
                await eventually(lambda: led_by(api, "third"), within=LEASE_SECONDS - 5)
                assert (await condition(api, "web", "Ready"))["status"] == "True"


async def test_what_vanished_unseen_is_let_go_one_by_one_only(
    bare_api: BareApi, api: ApiClient, agents: FakeAgents
) -> None:
    with running(Operator(bare_api, "op")):
        for name in ("a", "b", "c"):
            await create(api, name, PINNED, nodeSelector={"zone": f"n{ord(name) - 96}"})
        for name in ("a", "b", "c"):
            await eventually(ready(api, name))
    await api.delete(IMAGEPREPULLS, "a", namespace="default")
    with running(Operator(bare_api, "op")):
        await eventually(holds(api, "n1"))
        await eventually(holds(api, "n2", pinned="Present"))
    await api.delete(IMAGEPREPULLS, "b", namespace="default")
    await api.delete(IMAGEPREPULLS, "c", namespace="default")
    operator = Operator(bare_api, "op")
    with running(operator):

        async def held() -> str:
            _, text = await asyncio.to_thread(operator.ask, "/readyz?verbose")
            return text.partition("approve-removals=")[2].partition(")")[0]

        token = await eventually(held)
        assert await holds(api, "n2", pinned="Present")()
        _, metrics = await asyncio.to_thread(operator.ask, "/metrics")
        assert "imageprepull_removals_held 2.0" in metrics
        await eventually(lambda: told_on_lease(api, "RemovalsHeld"))
        approval = {"metadata": {"annotations": {"imageprepull.io/approve-removals": token}}}
        await api.merge_patch(LEASES, "imageprepull-operator", approval, namespace="default")
        await eventually(holds(api, "n2"))
        await eventually(holds(api, "n3"))


async def told_on_lease(api: ApiClient, reason: str) -> bool:
    events = (await api.list(EVENTS, namespace="default"))[0]
    return any(one["reason"] == reason and one["regarding"]["kind"] == "Lease" for one in events)


async def test_a_deleted_crd_takes_nothing_back(
    bare_api: BareApi, api: ApiClient, agents: FakeAgents
) -> None:
    operator = Operator(bare_api, "op")
    with running(operator):
        await create(api, "web", PINNED)
        await eventually(ready(api, "web"))
        await api.delete(CRDS, "imageprepulls.imageprepull.io")
        await eventually(lambda: has_ended(operator))
    assert operator.ended() == 1
    assert await holds(api, "n1", pinned="Present")()
    await apply_crds(api)


async def test_without_crds_it_ends_and_says_what_to_do(bare_api: BareApi, api: ApiClient) -> None:
    await api.delete(CRDS, "nodeprepulls.imageprepull.io")
    operator = Operator(bare_api, "op", "--crd-timeout=1")
    with running(operator):
        await eventually(lambda: has_ended(operator))
    assert operator.ended() == 1
    assert "nodeprepulls.imageprepull.io" in operator.tail()
    await apply_crds(api)


async def test_a_tag_is_resolved_once_and_survives_a_restart(
    bare_api: BareApi, api: ApiClient, agents: FakeAgents, registry_url: str
) -> None:
    reference = f"{registry_url.removeprefix('http://')}/demo/app:1"
    first = push(build_image([LayerSpec({"a": b"1"}), LayerSpec({"b": b"2"})]), registry_url, "demo/app", "1")
    layers = [
        {"digest": "sha256:" + "0" * 64, "size": 10, "state": state, "done": 5}
        for state in ("Applied", "Downloading")
    ]
    agents.state, agents.layers = "Pulling", layers
    with running(Operator(bare_api, "op")):
        await create(api, "app", reference)

        async def resolved() -> dict[str, Any]:
            found = await status(api, "app")
            assert (await condition(api, "app", "Resolved"))["status"] == "True"
            assert found["nodes"]["pulling"] == 3
            return found

        found = await eventually(resolved)
        image = found["images"][0]
        assert (image["image"], image["digest"]) == (reference, first)
        assert [layer["nodes"] for layer in image["platforms"][0]["layers"]] == [
            {"Applied": 3},
            {"Downloading": 3},
        ]
    second = push(build_image([LayerSpec({"a": b"moved"})]), registry_url, "demo/app", "1")
    assert second != first
    agents.state = "Ready"
    with running(Operator(bare_api, "op")):
        await eventually(ready(api, "app"))
        await add_node(api, "n4")
        await eventually(holds(api, "n4", **{"app:1": "Present"}))
    digests = {
        entry["digest"]
        for document in (await api.list(NODEPREPULLS))[0]
        for entry in document["spec"]["images"]
    }
    assert digests == {first}
    assert (await status(api, "app"))["images"][0]["digest"] == first


async def test_an_image_that_is_not_there_stops_no_other(
    bare_api: BareApi, api: ApiClient, agents: FakeAgents, registry_url: str
) -> None:
    host = registry_url.removeprefix("http://")
    push(build_image([LayerSpec({"c": b"1"})]), registry_url, "demo/there", "1")
    with running(Operator(bare_api, "op")):
        await create(api, "mixed", f"{host}/demo/missing:1", f"{host}/demo/there:1")

        async def shown() -> bool:
            resolved = await condition(api, "mixed", "Resolved")
            assert (resolved["status"], resolved["reason"]) == ("False", "NotFound")
            assert "demo/missing" in resolved["message"]
            return True

        await eventually(shown)
        await eventually(holds(api, "n1", **{"there:1": "Present"}))
        assert (await condition(api, "mixed", "Ready"))["status"] == "False"
