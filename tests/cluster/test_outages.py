"""Something is away for a while: a node, an agent, the operator, the API server. What was begun is finished."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from tests.cluster.product import NAMESPACE, Product, layer, runnable
from tests.cluster.without_operator import without_operator
from tests.testbed.images import BuiltImage

pytestmark = pytest.mark.timeout(300)
NODES = ("a", "b", "c")
OUTAGE = float(os.environ.get("IMAGEPREPULL_API_OUTAGE_SECONDS", "0"))
"""So long the API server is away, at least; `make test-nightly` takes ten minutes."""
RETURN_SECONDS = 10
MOST_PER_AGENT, MOST_OF_OPERATOR = 8, 40
"""Requests in a second. A start from nothing is a LIST and a WATCH of each kind, and a write."""


@contextmanager
def half_pulled(product: Product, name: str, built: BuiltImage, *nodes: str) -> Iterator[str]:
    """The image's last layer is withheld until the block ends, the others are applied on these nodes."""
    held = built.layers[-1].blob.digest
    image = product.push(built, f"tests/{name}")
    # Beyond the first range that is written: some of the layer's bytes are there.
    product.cluster.proxy.hold(held, after=100_000)
    product.apply(name, image)
    product.until(
        "all layers but the last are Applied",
        lambda: all(
            product.layer_states(name, node, image)[:-1] == ["Applied"] * (len(built.layers) - 1)
            for node in nodes
        ),
    )
    try:
        yield image
    finally:
        product.cluster.proxy.release(held)


def leases(product: Product, node: str) -> list[str]:
    """Leases of ours that hold something, on a node: not the notes of images that are there (given_tags.py)."""
    listed = product.cluster.node(node).ctr("leases", "ls", "-q").split()
    return [
        lease
        for lease in listed
        if lease.startswith("imageprepull") and not lease.startswith("imageprepull-given-")
    ]


def active_snapshots(product: Product, node: str) -> list[str]:
    """Snapshots that somebody is filling, on a node."""
    listed = product.cluster.node(node).ctr("snapshots", "ls").splitlines()
    return [line for line in listed if line.startswith("extract-")]


def until_clean(product: Product, node: str) -> None:
    """Until nothing is left of a pull but the image."""
    product.until(
        f"no lease, active snapshot or spool file is left on {node}",
        lambda: leases(product, node) == active_snapshots(product, node) == spooled(product, node) == [],
    )


def spooled(product: Product, node: str) -> list[str]:
    """Files of layers that are being fetched, on a node."""
    listed = product.cluster.node(node).exec(["ls", "/var/lib/containerd/imageprepull"]).stdout.split()
    return [name for name in listed if name.startswith("sha256-")]


@pytest.mark.parametrize("node", ["a", "c"])
def test_a_node_that_reboots_in_the_middle_of_a_pull_ends_with_the_image(product: Product, node: str) -> None:
    built = runnable(layer(1), layer(2, size=2_000_000))
    with half_pulled(product, f"reboot-{node}", built, *NODES):
        product.cluster.reboot(node)
    product.until_ready(f"reboot-{node}", timeout=120)
    until_clean(product, node)


def test_an_agent_that_is_evicted_in_the_middle_of_a_pull_fetches_no_finished_byte_again(
    product: Product,
) -> None:
    built = runnable(layer(1), layer(2, size=2_000_000))
    with half_pulled(product, "evicted", built, *NODES):
        selector = ("-l", "app.kubernetes.io/component=agent", "--field-selector=spec.nodeName=b")
        product.cluster.kubectl("-n", NAMESPACE, "delete", "pod", *selector, "--wait")
        product.cluster.kubectl(
            "-n", NAMESPACE, "rollout", "status", "daemonset/imageprepull-agent", "--timeout=110s"
        )
    product.until_ready("evicted")
    for one in built.layers[:-1]:
        assert product.cluster.proxy.bytes_of("b", one.blob.digest) == one.blob.size
    until_clean(product, "b")


@pytest.mark.timeout(900 + OUTAGE)
def test_without_an_api_server_agents_finish_and_its_return_brings_no_storm(
    product: Product, tmp_path: Path
) -> None:
    built = runnable(layer(1), layer(2, size=2_000_000))
    plane, audit = product.cluster.control_plane, tmp_path / "audit.jsonl"
    with half_pulled(product, "no-api", built, *NODES) as image:
        plane.apiserver.stop(kill=True)
        back_at = time.monotonic() + OUTAGE
        product.cluster.proxy.release(built.layers[-1].blob.digest)
        try:
            for node in NODES:
                until_present(product, node, image)
            # It is the length of the outage that is tried.
            time.sleep(max(0.0, back_at - time.monotonic()))
        finally:
            plane.start_apiserver(audit)
            plane.wait()
    # After a long outage the kubelet starts an operator that has ended again and again only every five minutes.
    product.until_ready("no-api", timeout=400)
    assert product.cluster.proxy.fetched_twice() == {}
    for node in NODES:
        until_clean(product, node)
    assert 0 < writes_since_start(product) <= 10 * len(NODES)
    asked = requests_by_second(audit)
    sys.stdout.write(f"requests in each second after the API server's return: {asked}\n")
    assert sum(asked["agents"]) > 0
    for second in range(RETURN_SECONDS):
        assert asked["agents"][second] <= MOST_PER_AGENT * len(NODES)
        assert asked["operator"][second] <= MOST_OF_OPERATOR


def requests_by_second(audit: Path) -> dict[str, list[int]]:
    """What agents and operator asked of the API server in each of the seconds after anybody's first request.

    A request that was refused for want of a valid token is known by its user agent only.
    """
    # The server goes on writing: what stands behind the last end of a line is not a whole line yet.
    whole = audit.read_text().rpartition("\n")[0].splitlines()
    requests = {line["auditID"]: line for line in map(json.loads, whole)}
    began = {key: datetime.fromisoformat(line["requestReceivedTimestamp"]) for key, line in requests.items()}
    counts = {"agents": [0] * RETURN_SECONDS, "operator": [0] * RETURN_SECONDS}
    for key, line in requests.items():
        second = int((began[key] - min(began.values())).total_seconds())
        who = f"{line['user'].get('username', '')} {line.get('userAgent', '')}"
        if second < RETURN_SECONDS:
            counts["agents"][second] += "imageprepull-agent" in who
            counts["operator"][second] += "imageprepull-operator" in who
    return counts


def until_present(product: Product, node: str, image: str) -> None:
    product.until(f"{node} has the image", lambda: bool(product.images_named(node, image)))


def writes_since_start(product: Product) -> int:
    """Status writes of all NodePrepulls that this life of the API server has answered."""
    metrics = product.cluster.kubectl("get", "--raw", "/metrics")
    counted = re.findall(
        r'^apiserver_request_total\{[^}]*resource="nodeprepulls"[^}]*subresource="status"[^}]*\} (\d+)$',
        metrics,
        re.MULTILINE,
    )
    return sum(map(int, counted))


def test_without_an_operator_agents_heal_and_nothing_is_let_go(product: Product) -> None:
    image = product.push(runnable(layer(1)), "tests/no-operator")
    product.apply("no-operator", image)
    product.until_ready("no-operator")
    # What the test before had deleted while the watch was interrupted: two that are missing at once would be held.
    product.until_asked_only(image)
    with without_operator(product):
        product.cluster.node("c").crictl("rmi", image)
        product.until("the image is back on c", lambda: bool(product.images_named("c", image)))
        product.delete("no-operator")
        (pinned,) = product.images_named("b", image)
        assert pinned["pinned"]
    product.until_unpinned("b", image)
    assert product.images_named("b", image), "deletionPolicy Retain keeps the image"
