"""The main job on real nodes: one object, and every kubelet holds the image before any pod asks."""

from __future__ import annotations

import json

import pytest

from tests.cluster.product import Product, base_layer, layer, runnable
from tests.testbed.images import BuiltImage

pytestmark = pytest.mark.timeout(300)
NODES = ("a", "b", "c")
PINNING = ("b", "c")
"""Nodes on containerd 2.4; 1.6.20 knows no pinning."""


def pod(name: str, node: str, image: str, policy: str = "Never") -> str:
    """By default one that may not pull."""
    container = {"name": "main", "image": image, "imagePullPolicy": policy}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container]},
        }
    )


def chain_is_described(status: dict[str, object], image: BuiltImage) -> None:
    """The object shows each layer's digest and size."""
    images = status["images"]
    assert isinstance(images, list)
    shown = images[0]["platforms"][0]["layers"]
    assert [(one["digest"], one["size"]) for one in shown] == [
        (one.blob.digest, one.blob.size) for one in image.layers
    ]


def test_every_node_holds_the_image_and_pods_start_without_a_pull(product: Product) -> None:
    built = runnable(layer(1), layer(2))
    image = product.push(built, "tests/main")
    product.apply("main", image)
    document = product.until_ready("main")

    assert document["status"]["readyNodes"] == "3/3"
    assert document["status"]["progress"] == "100%"
    chain_is_described(document["status"], built)
    for name in NODES:
        node = product.cluster.node(name)
        (shown,) = product.images_named(name, image)
        assert shown["id"] == built.config.digest
        assert shown["repoDigests"] == [f"{product.cluster.registry_name}/tests/main@{built.digest}"]
        by_id = json.loads(node.crictl("inspecti", built.config.digest))
        assert by_id["status"].get("pinned", False) is (name in PINNING)
        reported = product.cluster.get("nodeprepull", name)["status"]["images"]
        (found,) = [one for one in reported if one["reference"] == image]
        assert found.get("reason", "") == ("" if name in PINNING else "PinIneffective")

    for name in NODES:
        product.cluster.kubectl("apply", "-f", "-", stdin=pod(f"main-{name}", name, image))
    product.cluster.kubectl(
        "wait", "--for=condition=Ready", *[f"pod/main-{name}" for name in NODES], "--timeout=110s"
    )
    for name in NODES:
        selector = f"involvedObject.name=main-{name},reason=Pulled"
        # The kubelet sends them on the side.
        events = product.until(
            f"an Event of main-{name}",
            lambda selector=selector: product.cluster.get("events", "--field-selector", selector)["items"],  # type: ignore[misc]
        )
        assert "already present on machine" in events[0]["message"]
    product.delete_pods(*[f"main-{name}" for name in NODES])
    assert product.cluster.proxy.fetched_twice() == {}


def test_an_always_pod_asks_for_the_manifest_only_and_a_never_pod_nobody(product: Product) -> None:
    built = runnable(layer(1), layer(2))
    image = product.push(built, "tests/policies")
    product.apply("policies", image)
    product.until_ready("policies")
    product.cluster.proxy.forget()

    start_pods(product, image, "Always")
    requests = product.cluster.proxy.requests(path="/tests/policies/")
    assert {request["node"] for request in requests} == set(NODES)
    assert {request["method"] for request in requests} == {"HEAD"}
    for name in PINNING:
        until_pinned(product, name, image)

    registry = product.cluster.registry
    registry.proxy.stop()
    try:
        start_pods(product, image, "Never")
    finally:
        registry.start()
        registry.wait()


def until_pinned(product: Product, node: str, image: str) -> None:
    """The kubelet's pull takes the pin from the tag's record; the image's own pin stays, and ours comes back."""
    product.until(
        f"the image is pinned on {node}",
        lambda: all(shown["pinned"] for shown in product.images_named(node, image)),
    )


def start_pods(product: Product, image: str, policy: str) -> None:
    """One on each node, until it is Ready; then they are gone again."""
    names = {node: f"{policy.lower()}-{node}" for node in NODES}
    for node, name in names.items():
        product.cluster.kubectl("apply", "-f", "-", stdin=pod(name, node, image, policy))
    product.cluster.kubectl(
        "wait", "--for=condition=Ready", *[f"pod/{name}" for name in names.values()], "--timeout=110s"
    )
    product.delete_pods(*names.values())


def test_every_node_unpacks_layers_itself_and_says_so(product: Product) -> None:
    product.apply("path", product.push(runnable(layer(1)), "tests/path"))
    product.until_ready("path")
    for found in product.cluster.get("nodeprepulls")["items"]:
        agent = found["status"]["agent"]
        assert (agent["extraction"], agent["extractionReason"]) == ("fast", "a canary went through")
    header, *rows = product.cluster.kubectl("get", "nodeprepulls").splitlines()
    column = header.split().index("EXTRACTION")
    assert [row.split()[column] for row in rows] == ["fast"] * len(NODES)


def test_the_columns_tell_the_story(product: Product) -> None:
    image = product.push(runnable(layer(1)), "tests/columns")
    product.apply("columns", image)
    product.until_ready("columns")
    header, row = product.cluster.kubectl("get", "imageprepull", "columns").splitlines()
    assert header.split() == ["NAME", "READY", "NODES", "PROGRESS", "FAILED", "REASON", "AGE"]
    assert row.split()[:5] == ["columns", "True", "3/3", "100%", "0"]


def test_layers_download_concurrently_and_apply_in_order_while_others_download(product: Product) -> None:
    """Seen through the object alone: layer 2 gets no byte until layer 1 is Applied and layer 4 there and unpacked.

    A puller that downloads one layer after the other, or applies only when all are there, never gets here.
    """
    built = runnable(layer(2), layer(3), layer(4))
    held = built.layers[1].blob.digest
    image = product.push(built, "tests/order")
    product.cluster.proxy.hold(held)
    product.apply("order", image)

    def proven() -> bool:
        states = {node: product.layer_states("order", node, image) for node in NODES}
        return all(
            len(shown) == 4
            and shown[0] == "Applied"
            and shown[1] == "Downloading"
            and shown[3] == "Extracted"
            for shown in states.values()
        )

    product.until("layer 1 Applied and layer 4 Extracted on all nodes while layer 2 is withheld", proven)
    assert product.condition("order", "Ready")["status"] == "False"
    assert product.cluster.proxy.release(held) == 1
    product.until_ready("order")


def test_a_layer_that_is_there_is_neither_downloaded_nor_applied(product: Product) -> None:
    base, shared = base_layer(), layer(1)
    first, second = runnable(shared, base=base), runnable(shared, layer(2), base=base)
    product.apply("first", product.push(first, "tests/shared", "1"))
    product.until_ready("first")
    product.cluster.proxy.forget()
    reference = product.push(second, "tests/shared", "2")
    product.apply("second", reference)
    document = product.until_ready("second")
    for detail in document["status"]["nodeDetails"]:
        assert [one["layerStates"] for one in detail["images"] if one["image"] == reference] == ["EEA"]
    for node in NODES:
        assert product.cluster.proxy.bytes_of(node, first.layers[1].blob.digest) == 0
        assert (
            product.cluster.proxy.bytes_of(node, second.layers[2].blob.digest) == second.layers[2].blob.size
        )


def test_only_chosen_nodes_get_the_image(product: Product) -> None:
    image = product.push(runnable(layer(1)), "tests/chosen")
    product.apply("chosen", image, nodeSelector={"kubernetes.io/hostname": "b"})
    document = product.until_ready("chosen")
    assert document["status"]["readyNodes"] == "1/1"
    holders = [name for name in NODES if product.images_named(name, image)]
    assert holders == ["b"]
