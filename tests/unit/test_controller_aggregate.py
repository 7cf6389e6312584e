from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from imageprepull.controller.aggregate import aggregate, aggregate_refused
from imageprepull.controller.aggregate_conditions import allowed_failures
from imageprepull.controller.aggregate_node import Cluster
from imageprepull.controller.assign import Candidate, assign
from imageprepull.controller.bounds import fit
from imageprepull.controller.event_rules import notices
from imageprepull.controller.images import BadSpec
from imageprepull.controller.nodes import NodeFacts, Taint
from imageprepull.controller.resolution import Resolution
from imageprepull.resources.base import Metadata
from imageprepull.resources.imageprepull import ImagePrepullStatus, RetryStatus
from imageprepull.resources.nodeprepull import DesiredImage, NodePrepull, Retry
from tests.unit.controller_doubles import candidate, node_prepull, nodes, report, resolution

NGINX = "docker.io/library/nginx:1"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = datetime(2026, 1, 2, 4, 0, 0, tzinfo=UTC)
EMPTY = ImagePrepullStatus()


def status(
    one: Candidate,
    facts: dict[str, NodeFacts],
    *reports: NodePrepull,
    before: ImagePrepullStatus = EMPTY,
    now: datetime = NOW,
    resolutions: dict[str, Resolution] | None = None,
    unavailable: Sequence[str] = (),
    agentless: Sequence[str] | None = None,
) -> ImagePrepullStatus:
    known = {NGINX: resolution(NGINX)} if resolutions is None else resolutions
    cluster = Cluster(
        nodes=facts,
        reports={prepull.metadata.name: prepull for prepull in reports},
        resolutions=known,
        unavailable=unavailable,
        agentless=unavailable if agentless is None else agentless,
    )
    return fit(aggregate(one, assign([one], facts, known)[one.uid], cluster, before, now))


def conditions(found: ImagePrepullStatus) -> dict[str, tuple[str, str]]:
    return {one.type: (one.status, one.reason) for one in found.conditions}


def ready_on(*names: str) -> list[NodePrepull]:
    return [node_prepull(name, report(NGINX, 1, "Ready")) for name in names]


def test_all_ready() -> None:
    held = node_prepull("n1", report(NGINX, 1, "Ready", layer_states="EA"))
    found = status(candidate(), nodes("n1", "n2"), held, *ready_on("n2"))
    assert (found.ready_nodes, found.progress) == ("2/2", "100%")
    assert conditions(found) == {
        "Ready": ("True", "AllNodesReady"),
        "Reconciling": ("False", "Idle"),
        "Stalled": ("False", "NotStalled"),
        "Resolved": ("True", "Resolved"),
    }
    assert found.completion_time == found.start_time == "2026-01-02T03:04:05Z"
    assert found.bytes is not None
    assert (found.bytes.total, found.bytes.done) == (600, 600)
    assert [layer.nodes for layer in found.images[0].platforms[0].layers] == [
        {"Applied": 1, "Exists": 1},
        {"Applied": 2},
    ]
    assert all(one.observed_generation == 1 for one in found.conditions)


def test_layers_are_counted_while_in_work() -> None:
    pulling = node_prepull(
        "n1", report(NGINX, 1, "Pulling", [("Applied", 100, 100), ("Downloading", 200, 50)])
    )
    found = status(candidate(), nodes("n1", "n2"), pulling)
    assert found.nodes is not None
    assert (found.nodes.desired, found.nodes.pulling, found.nodes.waiting) == (2, 1, 1)
    assert [layer.nodes for layer in found.images[0].platforms[0].layers] == [
        {"Applied": 1, "Waiting": 1},
        {"Downloading": 1, "Waiting": 1},
    ]
    assert found.progress == "25%"
    assert [(one.node, one.state) for one in found.node_details] == [("n1", "Pulling"), ("n2", "Waiting")]
    assert [layer.state for layer in found.node_details[0].images[0].layers] == ["Applied", "Downloading"]
    assert conditions(found)["Ready"] == ("False", "Pulling")
    assert conditions(found)["Reconciling"] == ("True", "RollingOut")


@pytest.mark.parametrize(
    ("limit", "count", "allowed"),
    [("10%", 3, 0), ("10%", 25, 2), ("100%", 3, 3), (2, 1, 2), ("3", 9, 3), (0, 50, 0)],
)
def test_forgiven_nodes_are_rounded_down(limit: int | str, count: int, allowed: int) -> None:
    assert allowed_failures(limit, count) == allowed


def cluster_of(count: int, **states: int) -> tuple[dict[str, NodeFacts], list[NodePrepull]]:
    names = [f"n{number:03}" for number in range(count)]
    reports, rest = [], iter(names)
    for state, number in states.items():
        for _ in range(number):
            name = next(rest)
            reports.append(
                node_prepull(name, report(NGINX, 1, state, reason="NoSpace" if state == "Failed" else ""))
            )
    return nodes(*names), reports


@pytest.mark.parametrize(
    ("states", "ready"),
    [
        ({"Ready": 18, "Failed": 2}, ("True", "AllNodesReady")),
        ({"Ready": 17, "Failed": 3}, ("False", "TooManyNodesFailed")),
        ({"Ready": 19, "Waiting": 1}, ("False", "Pulling")),
        ({"Ready": 18, "Failed": 1, "Pulling": 1}, ("False", "Pulling")),
    ],
)
def test_only_failed_nodes_are_forgiven(states: dict[str, int], ready: tuple[str, str]) -> None:
    facts, reports = cluster_of(20, **states)
    assert conditions(status(candidate(), facts, *reports))["Ready"] == ready


def test_too_many_failures_stall_when_nothing_moves_any_more() -> None:
    facts, reports = cluster_of(3, Ready=2, Failed=1)
    found = status(candidate(), facts, *reports)
    assert conditions(found)["Stalled"] == ("True", "TooManyNodesFailed")
    assert [(one.reason, one.count, one.example_node) for one in found.failures] == [("NoSpace", 1, "n002")]


def test_ready_is_latched_for_its_generation() -> None:
    first = status(candidate(), nodes("n1"), *ready_on("n1"))
    later = status(candidate(), nodes("n1", "n2"), *ready_on("n1"), before=first, now=LATER)
    assert conditions(later)["Ready"] == ("True", "AllNodesReady")
    assert conditions(later)["Reconciling"] == ("True", "RollingOut")
    assert later.ready_nodes == "1/2"
    assert later.conditions[0].last_transition_time == first.conditions[0].last_transition_time
    assert later.completion_time == first.completion_time
    edited = status(candidate(generation=2), nodes("n1", "n2"), *ready_on("n1"), before=later, now=LATER)
    assert conditions(edited)["Ready"] == ("False", "Pulling")
    assert edited.conditions[0].last_transition_time == "2026-01-02T04:00:00Z"
    assert edited.completion_time is None


def test_a_node_that_joins_during_a_rollout_does_not_hold_ready_back() -> None:
    facts = {**nodes("n1", created="2026-01-01T00:00:00Z"), **nodes("new", created="2026-01-02T03:30:00Z")}
    before = status(candidate(), nodes("n1"))
    found = status(candidate(), facts, *ready_on("n1"), before=before, now=LATER)
    assert conditions(found)["Ready"] == ("True", "AllNodesReady")
    assert found.ready_nodes == "1/2"


def test_an_empty_pool_is_ready_and_a_skipped_one_is_not() -> None:
    assert conditions(status(candidate(), {}))["Ready"] == ("True", "NoMatchingNodes")
    tainted = nodes("n1", taints=(Taint("team", "x"),))
    found = status(candidate(), tainted)
    assert conditions(found)["Ready"] == ("False", "AllNodesSkipped")
    assert [(one.reason, one.count, one.example_node) for one in found.skipped] == [
        ("UntoleratedTaint", 1, "n1")
    ]


def test_missing_agents() -> None:
    none = status(candidate(), nodes("n1", "n2"), unavailable=["n1", "n2"])
    assert conditions(none)["Ready"] == ("False", "NoAgents")
    assert [(one.reason, one.count) for one in none.failures] == [("AgentUnavailable", 2)]
    pulling = node_prepull("n1", report(NGINX, 1, "Pulling"))
    one = status(candidate(), nodes("n1", "n2"), pulling, *ready_on("n2"), unavailable=["n1"])
    assert conditions(one)["Ready"] == ("False", "AgentUnavailable")
    assert one.node_details[0].images[0].reason == "AgentUnavailable"
    kept = status(candidate(), nodes("n1"), *ready_on("n1"), unavailable=["n1"])
    assert conditions(kept)["Ready"] == ("True", "AllNodesReady")
    starting = status(candidate(), nodes("n1"), agentless=["n1"])
    assert conditions(starting)["Ready"] == ("False", "NoAgents")
    assert starting.failures == []


def test_resolution_errors_are_the_reason() -> None:
    absent = Resolution(NGINX, reason="NotFound", message="MANIFEST_UNKNOWN", permanent=True)
    found = status(candidate(), nodes("n1"), resolutions={NGINX: absent})
    assert conditions(found) == {
        "Ready": ("False", "NotFound"),
        "Reconciling": ("False", "Stalled"),
        "Stalled": ("True", "NotFound"),
        "Resolved": ("False", "NotFound"),
    }
    assert (found.images[0].reason, found.images[0].message) == ("NotFound", "MANIFEST_UNKNOWN")
    busy = msgspec.structs.replace(EMPTY)
    throttled = Resolution(NGINX, reason="Throttled", message="429", permanent=False)
    waits = status(candidate(), nodes("n1"), before=busy, resolutions={NGINX: throttled})
    assert conditions(waits)["Stalled"] == ("False", "NotStalled")
    assert conditions(status(candidate(), nodes("n1"), resolutions={}))["Resolved"] == ("False", "Resolving")


def test_an_image_for_no_nodes_platform_is_not_resolved() -> None:
    only_arm = Resolution(NGINX, "sha256:" + "1" * 64, missing={"linux/amd64": "it has linux/arm64"})
    found = status(candidate(), nodes("n1"), resolutions={NGINX: only_arm})
    assert conditions(found)["Ready"] == ("False", "NoMatchingPlatform")
    assert conditions(found)["Stalled"] == ("True", "NoMatchingPlatform")
    assert found.images[0].message == "it has linux/arm64"
    assert [(one.reason, one.count) for one in found.skipped] == [("NoMatchingPlatform", 1)]


def test_a_digest_that_nodes_hold_needs_no_registry() -> None:
    pinned = candidate(images=["nginx@sha256:" + f"{1:064x}"])
    record = pinned.images[0].record
    away = {record: Resolution(record, reason="RegistryUnreachable", message="refused")}
    found = status(pinned, nodes("n1"), node_prepull("n1", report(record, 1, "Ready")), resolutions=away)
    assert conditions(found)["Ready"] == ("True", "AllNodesReady")
    assert conditions(found)["Resolved"] == ("True", "Resolved")
    assert found.images[0].reason == "RegistryUnreachable"


def test_a_refused_spec_keeps_its_counts() -> None:
    before = status(candidate(), nodes("n1"), *ready_on("n1"))
    found = aggregate_refused(
        Metadata(name="web", generation=2), BadSpec("DuplicateImage", "twice"), before, LATER
    )
    assert conditions(found)["Stalled"] == ("True", "DuplicateImage")
    assert conditions(found)["Ready"] == ("False", "DuplicateImage")
    assert (found.observed_generation, found.ready_nodes) == (2, "1/1")


def reasons(before: ImagePrepullStatus, after: ImagePrepullStatus, **spec: Any) -> list[str]:
    return [notice.reason for notice in notices(before, after, candidate(**spec).prepull.spec)]


def test_events_are_told_at_turns_only() -> None:
    start = status(candidate(), nodes("n1"))
    done = status(candidate(), nodes("n1"), *ready_on("n1"), before=start)
    assert reasons(EMPTY, start) == ["Started"]
    assert reasons(start, start) == []
    assert reasons(start, done) == ["Completed"]
    facts, reports = cluster_of(3, Failed=3)
    broken = status(candidate(), facts, *reports, before=start)
    assert reasons(start, broken) == ["Stalled", "Failed"]
    assert reasons(broken, broken) == []
    empty = status(candidate(nodeSelector={"pool": "gpu"}), {})
    told = notices(EMPTY, empty, candidate(nodeSelector={"pool": "gpu"}).prepull.spec)
    assert [(one.type, one.reason) for one in told] == [("Warning", "NoMatchingNodes")]
    assert told[0].message.endswith('nodeSelector {"pool": "gpu"}')


def test_an_order_that_cannot_be_read_is_told_once() -> None:
    odd = msgspec.structs.replace(EMPTY, retry=RetryStatus(reason="InvalidRetry", message="no word"))
    spec = candidate().prepull.spec
    assert [(one.type, one.reason, one.message) for one in notices(EMPTY, odd, spec)] == [
        ("Warning", "InvalidRetry", "no word")
    ]
    assert notices(odd, odd, spec) == []
    good = msgspec.structs.replace(EMPTY, retry=RetryStatus(nonce="n1", reason="NotFound", failed=1))
    assert notices(EMPTY, good, spec) == []


def test_the_answer_to_a_retry_is_in_the_status_within_the_schemas_bounds() -> None:
    one = candidate()
    asked = msgspec.structs.replace(one.prepull.metadata, annotations={"imageprepull.io/retry": "n1"})
    one = Candidate(msgspec.structs.replace(one.prepull, metadata=asked), one.images)
    failed = node_prepull(
        "n1",
        report(NGINX, 1, "Failed", reason="X" * 200, message="Y" * 2000),
        entries=[DesiredImage(reference=NGINX, digest=resolution(NGINX).digest, retry=Retry(nonce="n1"))],
    )
    answer = status(one, nodes("n1", "n2"), failed, *ready_on("n2")).retry
    assert answer is not None
    assert (answer.nonce, answer.ready, answer.waiting, answer.failed) == ("n1", 1, 0, 1)
    assert (len(answer.reason), len(answer.message)) == (128, 1024)
