from dataclasses import replace
from typing import Any

import pytest

from imageprepull.controller.nodes import STARTUP_TAINT, NodeFacts, Taint, judge, read_node
from imageprepull.resources.base import decode
from imageprepull.resources.imageprepull import ImagePrepullSpec

NODE = NodeFacts("n1", labels={"zone": "a", "cpus": "16", "gpu": ""})


def spec(**fields: Any) -> ImagePrepullSpec:
    return decode(ImagePrepullSpec, fields)


def affinity(*terms: dict[str, Any]) -> dict[str, Any]:
    return {"required": {"nodeSelectorTerms": list(terms)}}


def expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


def field(operator: str, *values: str) -> dict[str, Any]:
    return {"matchFields": [{"key": "metadata.name", "operator": operator, "values": list(values)}]}


@pytest.mark.parametrize(
    ("choice", "named"),
    [
        ({}, True),
        ({"nodeSelector": {"zone": "a"}}, True),
        ({"nodeSelector": {"zone": "a", "cpus": "8"}}, False),
        ({"nodeSelector": {"absent": ""}}, False),
        ({"nodeAffinity": affinity(expression("zone", "In", "b", "a"))}, True),
        ({"nodeAffinity": affinity(expression("zone", "NotIn", "a"))}, False),
        ({"nodeAffinity": affinity(expression("absent", "NotIn", "a"))}, True),
        ({"nodeAffinity": affinity(expression("gpu", "Exists"))}, True),
        ({"nodeAffinity": affinity(expression("gpu", "DoesNotExist"))}, False),
        ({"nodeAffinity": affinity(expression("cpus", "Gt", "8"))}, True),
        ({"nodeAffinity": affinity(expression("cpus", "Gt", "16"))}, False),
        ({"nodeAffinity": affinity(expression("cpus", "Lt", "17"))}, True),
        ({"nodeAffinity": affinity(expression("zone", "Gt", "1"))}, False),
        ({"nodeAffinity": affinity(expression("absent", "Lt", "1"))}, False),
        ({"nodeAffinity": affinity(field("In", "n1"))}, True),
        ({"nodeAffinity": affinity(field("NotIn", "n1"))}, False),
        ({"nodeAffinity": affinity({})}, False),
        ({"nodeAffinity": affinity(expression("zone", "In", "b"), expression("gpu", "Exists"))}, True),
        ({"nodeAffinity": affinity({**expression("zone", "In", "a"), **field("In", "n2")})}, False),
        ({"nodeSelector": {"zone": "a"}, "nodeAffinity": affinity(expression("zone", "In", "b"))}, False),
    ],
)
def test_selector_and_affinity_choose_as_a_pods_do(choice: dict[str, Any], named: bool) -> None:
    assert judge(spec(**choice), NODE).named is named


@pytest.mark.parametrize(
    ("taint", "tolerations", "named", "skip"),
    [
        (Taint("node.kubernetes.io/not-ready", effect="NoExecute"), [], True, ""),
        (Taint("node.kubernetes.io/unschedulable"), [], True, ""),
        (Taint(STARTUP_TAINT), [], True, ""),
        (Taint("team", "x"), [], True, "UntoleratedTaint"),
        (Taint("team", "x", "NoExecute"), [], False, "UntoleratedTaint"),
        (Taint("team", "x", "PreferNoSchedule"), [], True, ""),
        (Taint("team", "x"), [{"key": "team", "value": "x"}], True, ""),
        (Taint("team", "x"), [{"key": "team", "value": "y"}], True, "UntoleratedTaint"),
        (Taint("team", "x"), [{"key": "team", "operator": "Exists"}], True, ""),
        (Taint("team", "x"), [{"operator": "Exists"}], True, ""),
        (
            Taint("team", "x"),
            [{"key": "team", "value": "x", "effect": "NoExecute"}],
            True,
            "UntoleratedTaint",
        ),
        (Taint("node.kubernetes.io/disk-pressure"), [{"operator": "Exists"}], True, "NodeDiskPressure"),
        (Taint("node.kubernetes.io/memory-pressure"), [{"operator": "Exists"}], True, "UntoleratedTaint"),
        (Taint("node.kubernetes.io/network-unavailable"), [], True, "UntoleratedTaint"),
    ],
)
def test_taints_keep_out_as_for_a_daemon_set(
    taint: Taint, tolerations: list[dict[str, str]], named: bool, skip: str
) -> None:
    verdict = judge(spec(tolerations=tolerations), NodeFacts("n1", taints=(taint,)))
    assert (verdict.named, verdict.skip) == (named, skip)
    assert verdict.lasting is (bool(skip) and named and taint.key == "team"), "the node's own pass"


@pytest.mark.parametrize(("status", "skip"), [("True", "NodeDiskPressure"), ("False", ""), ("Unknown", "")])
def test_a_node_that_says_it_has_disk_pressure_is_given_nothing_and_keeps_what_it_has(
    status: str, skip: str
) -> None:
    """The condition is the kubelet's; the taint comes later, from the node controller."""
    facts = read_node(
        {
            "metadata": {"name": "n1"},
            "status": {
                "conditions": [
                    {"type": "Ready", "status": "True"},
                    {"type": "DiskPressure", "status": status},
                ]
            },
        }
    )
    verdict = judge(spec(), facts)
    assert (verdict.named, verdict.skip, verdict.lasting) == (True, skip, False)
    assert judge(spec(), replace(facts, taints=(Taint("team", "x"),))).lasting
    expelled = judge(spec(), replace(facts, taints=(Taint("team", "x", "NoExecute"),)))
    assert not expelled.named, "who may not be there at all does not stay for want of disk"


def test_windows_and_virtual_nodes_are_skipped_with_a_reason() -> None:
    assert judge(spec(), NodeFacts("w", os="windows")).skip == "NotLinux"
    assert judge(spec(), NodeFacts("v", labels={"type": "virtual-kubelet"})).skip == "VirtualNode"


def test_a_heartbeat_does_not_change_the_facts() -> None:
    node: dict[str, Any] = {
        "metadata": {
            "name": "n1",
            "uid": "u",
            "resourceVersion": "1",
            "labels": {"kubernetes.io/arch": "arm64"},
        },
        "status": {"conditions": [{"type": "Ready", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}]},
    }
    first = read_node(node)
    node["metadata"]["resourceVersion"] = "2"
    node["status"]["conditions"][0]["lastHeartbeatTime"] = "2026-01-01T00:05:00Z"
    assert read_node(node) == first
    assert str(first.platform) == "linux/arm64"
