"""Nodes and objects come, change and go while the product runs; daemons die under it."""

from __future__ import annotations

import pytest

from tests.cluster.product import NAMESPACE, Product, layer, runnable

pytestmark = pytest.mark.timeout(300)


def entries(product: Product, node: str) -> dict[str, str]:
    """What the operator wants on a node: reference → Present or Absent."""
    document = product.cluster.get("nodeprepull", node)
    return {one["reference"]: one.get("state", "Present") for one in document["spec"].get("images", [])}


def pinned(product: Product, node: str, image: str) -> bool:
    return any(one.get("pinned", False) for one in product.images_named(node, image))


def present(product: Product, node: str, image: str) -> bool:
    return bool(product.images_named(node, image))


def until_forgotten(product: Product, node: str, image: str) -> None:
    """Until the operator has nothing to say about the image on that node any more."""
    product.until(f"{image} is forgotten on {node}", lambda: image not in entries(product, node))


def test_a_new_node_is_filled_and_a_removed_one_forgotten(product: Product) -> None:
    image = product.push(runnable(layer(1)), "tests/nodes")
    product.apply("nodes", image)
    product.until_ready("nodes")

    product.cluster.add_node("d", disk=4 << 30)
    try:
        product.until("4/4 nodes", lambda: product.get("nodes")["status"]["readyNodes"] == "4/4", timeout=90)
        assert present(product, "d", image)
        assert product.condition("nodes", "Ready")["status"] == "True"
    finally:
        product.cluster.remove_node("d")
    product.until("3/3 nodes", lambda: product.get("nodes")["status"]["readyNodes"] == "3/3")
    product.until(
        "the NodePrepull of d is gone",
        lambda: "d" not in [one["metadata"]["name"] for one in product.cluster.get("nodeprepull")["items"]],
    )


def test_an_edited_object_brings_the_new_image_and_unpins_the_old(product: Product) -> None:
    old, new = (product.push(runnable(layer(1)), "tests/edit", tag) for tag in ("old", "new"))
    product.apply("edit", old)
    product.until_ready("edit")
    assert pinned(product, "b", old)

    product.apply("edit", new)
    document = product.until_ready("edit")
    assert [one["image"] for one in document["status"]["images"]] == [new]
    for node in ("a", "b", "c"):
        until_forgotten(product, node, old)
        assert present(product, node, old), "deletionPolicy Retain keeps the image"
    product.until_unpinned("b", old)
    assert pinned(product, "b", new)


def test_an_edited_pin_policy_takes_the_pin_away_and_brings_it_back(product: Product) -> None:
    image = product.push(runnable(layer(1)), "tests/pin")
    product.apply("pin", image)
    product.until_ready("pin")
    assert pinned(product, "b", image)
    product.apply("pin", image, pinPolicy="Never")
    product.until_unpinned("b", image)
    assert present(product, "b", image)
    product.apply("pin", image)
    product.until("pinned again", lambda: pinned(product, "b", image))


def test_a_deleted_object_unpins_its_images_and_removes_nothing(product: Product) -> None:
    image = product.push(runnable(layer(1)), "tests/delete")
    product.apply("delete", image)
    product.until_ready("delete")
    product.delete("delete")
    for node in ("a", "b", "c"):
        until_forgotten(product, node, image)
        assert present(product, node, image)
    product.until_unpinned("b", image)
    product.until_unpinned("c", image)


def test_an_image_that_two_objects_name_stays_pinned_until_the_last_is_gone(product: Product) -> None:
    image = product.push(runnable(layer(1)), "tests/two")
    product.apply("one", image)
    product.apply("two", image)
    product.until_ready("one")
    product.until_ready("two")
    product.delete("one")
    product.until(
        "one owner left",
        lambda: (
            [
                [owner.split("/")[1] for owner in entry["owners"]]
                for entry in product.cluster.get("nodeprepull", "b")["spec"]["images"]
                if entry["reference"] == image
            ]
            == [["two"]]
        ),
    )
    assert pinned(product, "b", image)
    product.delete("two")
    product.until_unpinned("b", image)


@pytest.mark.parametrize("node", ["a", "b"])
def test_containerd_killed_in_the_middle_of_a_pull_is_survived(product: Product, node: str) -> None:
    built = runnable(layer(1), layer(2), layer(3))
    held = built.layers[2].blob.digest
    image = product.push(built, f"tests/killed-{node}")
    product.cluster.proxy.hold(held, after=1000)
    product.apply("killed", image, nodeSelector={"kubernetes.io/hostname": node})
    product.until(
        "layers 1 and 2 Applied",
        lambda: product.layer_states("killed", node, image)[:2] == ["Applied", "Applied"],
    )
    product.cluster.node(node).restart_containerd(kill=True)
    product.cluster.proxy.release(held)
    product.until_ready("killed")
    assert present(product, node, image)
    for number in (0, 1):
        digest = built.layers[number].blob.digest
        assert product.cluster.proxy.bytes_of(node, digest) == built.layers[number].blob.size


def test_an_api_server_that_restarts_is_survived(product: Product) -> None:
    built = runnable(layer(1))
    held = built.layers[1].blob.digest
    image = product.push(built, "tests/apiserver")
    product.cluster.proxy.hold(held)
    product.apply("apiserver", image)
    product.until("layer 2 is withheld on all nodes", lambda: product.cluster.proxy.waiting(held) == 3)
    product.cluster.restart_apiserver()
    product.cluster.proxy.release(held)
    product.until_ready("apiserver")


def test_an_operator_and_agents_that_start_anew_go_on_where_things_stand(product: Product) -> None:
    image = product.push(runnable(layer(1)), "tests/restart")
    product.apply("restart", image)
    document = product.until_ready("restart")
    digest = document["status"]["images"][0]["digest"]
    product.cluster.proxy.forget()
    workloads = ("deployment/imageprepull-operator", "daemonset/imageprepull-agent")
    product.cluster.kubectl("-n", NAMESPACE, "rollout", "restart", *workloads)
    for workload in workloads:
        product.cluster.kubectl("-n", NAMESPACE, "rollout", "status", workload, "--timeout=90s")
    product.apply("second", image)
    product.until_ready("second")
    assert product.get("restart")["status"]["images"][0]["digest"] == digest
    assert product.cluster.proxy.requests(path="/blobs/") == [], (
        "present images ask the registry for no layer"
    )


def test_an_image_removed_by_hand_comes_back(product: Product) -> None:
    image = product.push(runnable(layer(1)), "tests/healed")
    product.apply("healed", image)
    product.until_ready("healed")
    product.cluster.node("b").crictl("rmi", image)
    product.until("the image is back on b", lambda: present(product, "b", image))
    product.until("3/3 again", lambda: product.get("healed")["status"]["readyNodes"] == "3/3")
