"""Nodes without room: what waits and why, and pins that yield before the kubelet evicts, on real nodes.

The thresholds are moved and not the disks filled: the nodes' disks are one with the machine's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.cluster.product import Product, kubectl_plugin, kubelet_with, layer, runnable

pytestmark = pytest.mark.timeout(420)
NODES = ("a", "b", "c")


def reported(product: Product, node: str, image: str) -> dict[str, Any]:
    """An image as the node's agent reports it."""
    for found in product.cluster.get("nodeprepull")["items"]:
        if found["metadata"]["name"] == node:
            images = found.get("status", {}).get("images", [])
            return next((one for one in images if image in one["reference"]), {})
    return {}


def test_what_must_stay_free_is_not_pulled_into_and_is_said_with_figures(product: Product) -> None:
    image = product.push(runnable(layer(1)), "tests/min-free")
    product.apply("min-free", image, limits={"minFreeDisk": "99%"})
    for node in NODES:
        product.until(
            f"{node} waits for room",
            lambda node=node: reported(product, node, image).get("reason") == "InsufficientDisk",  # type: ignore[misc]
        )
        found = reported(product, node, image)
        assert (found["state"], found.get("attempts", 0)) == ("Waiting", 0)
        assert "must stay free" in found["message"]
        assert not product.images_named(node, image)
    # Well within its timeout: nobody waits for room that nobody makes.
    again = kubectl_plugin(product.cluster, "retry", "min-free", "--timeout=1m")
    assert (again.returncode, again.stdout) == (4, "")
    assert (
        f"default/min-free: not now on 3 of 3 nodes, for example a: {image}: InsufficientDisk: "
        in again.stderr
    )
    assert "must stay free" in again.stderr
    product.apply("min-free", image, limits={"minFreeDisk": "1Gi"})
    product.until_ready("min-free")


@contextmanager
def agents_told(product: Product, eviction_hard: str) -> Iterator[None]:
    """Agents that take the kubelet's thresholds for others; afterwards they are as before."""
    product.install(f"kubelet.evictionHard={eviction_hard}")
    try:
        yield
    finally:
        product.install()


def pinned(product: Product, node: str, image: str) -> bool:
    return any(one.get("pinned") for one in product.images_named(node, image))


def pinning_records(product: Product, node: str, image: str) -> list[str]:
    """The image's own record, if it carries a pin: the CRI follows it by events."""
    return (
        product.cluster.node(node)
        .ctr("images", "ls", "-q", f'name=="{image}",labels."io.cri-containerd.pinned"==pinned')
        .split()
    )


def test_pins_yield_under_pressure_and_nothing_is_pulled_until_it_is_over(product: Product) -> None:
    kept = product.push(runnable(layer(1)), "tests/yielding")
    later = product.push(runnable(layer(1)), "tests/later")
    product.apply("yielding", kept)
    product.until_ready("yielding")
    able = [node for node in NODES if pinned(product, node, kept)]
    assert able, "some node's containerd knows pins"
    assert all(pinning_records(product, node, kept) for node in NODES)
    with agents_told(product, "imagefs.available<97%"):
        for node in NODES:
            disk = product.until(
                f"the pins of {node} have yielded",
                lambda node=node: (
                    product.cluster.get("nodeprepull", node)["status"].get("disk", {}).get("pinsYielded")  # type: ignore[misc]
                    and product.cluster.get("nodeprepull", node)["status"]["disk"]
                ),
            )
            assert disk["pressure"]
            assert "the kubelet evicts pods below" in disk["message"]
            assert not pinning_records(product, node, kept), "it is said when it is so"
            product.until_unpinned(node, kept)
            assert product.images_named(node, kept)
        product.apply("later", later)
        for node in NODES:
            product.until(
                f"{node} waits",
                lambda node=node: reported(product, node, later).get("reason") == "NodeDiskPressure",  # type: ignore[misc]
            )
        events = product.until("an Event", lambda: events_on(product, "yielding", "PinsYielded"))
        assert "not pinned until there is room" in events[0]["note"]
    product.until_ready("later")
    for node in able:
        product.until(f"{node} has its pin again", lambda node=node: pinned(product, node, kept))  # type: ignore[misc]


def events_on(product: Product, name: str, reason: str) -> list[dict[str, Any]]:
    found = product.cluster.get("events.events.k8s.io")["items"]
    return [one for one in found if one["reason"] == reason and one.get("regarding", {}).get("name") == name]


SHORT_OF_DISK = {
    "evictionSoft": {"nodefs.available": "99%"},
    "evictionSoftGracePeriod": {"nodefs.available": "1h"},
    "evictionMaxPodGracePeriod": 30,
}
"""Every node has less than 99 % of its disk free. For an hour the kubelet says so and evicts nobody."""


def says_disk_pressure(product: Product, node: str) -> bool:
    conditions = product.cluster.get("node", node)["status"]["conditions"]
    return any(one["type"] == "DiskPressure" and one["status"] == "True" for one in conditions)


def entry_states(product: Product, node: str) -> dict[str, str]:
    """What the operator wants of a node: reference and state."""
    images = product.cluster.get("nodeprepull", node)["spec"].get("images", [])
    return {entry["reference"]: entry.get("state", "Present") for entry in images}


def test_a_node_whose_kubelet_says_disk_pressure_is_given_no_work(product: Product) -> None:
    """The agents are told nothing of it, so that the operator alone keeps the image away from that node."""
    built = runnable(layer(1))
    kept, image = product.push(runnable(layer(1)), "tests/pressed-kept"), product.push(built, "tests/pressed")
    product.apply("pressed-kept", kept)
    product.until_ready("pressed-kept")
    with kubelet_with(product, product.cluster.node("b"), SHORT_OF_DISK):
        product.until("the kubelet of b says so", lambda: says_disk_pressure(product, "b"))
        # By this the operator has heard of it, too: what is asked for now is planned with it.
        product.until("what b has is paused", lambda: entry_states(product, "b").get(kept) == "Paused")
        product.apply("pressed", image)
        status = product.until_ready("pressed")["status"]
        assert [(one["reason"], one["count"]) for one in status["skipped"]] == [("NodeDiskPressure", 1)]
        assert (status["nodes"]["desired"], status["nodes"]["ready"]) == (2, 2)
        assert entry_states(product, "b")[kept] == "Paused"
        assert image not in entry_states(product, "b")
        assert not product.images_named("b", image)
        assert product.cluster.proxy.bytes_of("b", built.layers[1].blob.digest) == 0
        assert product.images_named("b", kept), "it keeps what it has"
        assert says_disk_pressure(product, "b"), "all the while"
    product.until("b has it when it is over", lambda: bool(product.images_named("b", image)))
    product.until("nothing is paused", lambda: set(entry_states(product, "b").values()) == {"Present"})
