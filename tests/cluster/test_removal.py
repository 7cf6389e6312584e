"""deletionPolicy on real nodes: what goes, what stays, and who is told why."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cluster.product import Product, layer, runnable
from tests.cluster.without_operator import without_operator

pytestmark = pytest.mark.timeout(300)
NODES = ("a", "b", "c")
DELETE = {"deletionPolicy": "Delete"}


def holding(product: Product, image: str) -> set[str]:
    return {node for node in NODES if product.images_named(node, image)}


def entry(product: Product, node: str, image: str, part: str = "spec") -> dict[str, Any]:
    """What the node's object says about an image; empty when it says nothing."""
    document = product.cluster.get("nodeprepull", node)
    images = document.get(part, {}).get("images", [])
    return next((one for one in images if one["reference"] == image), {})


def until_gone(product: Product, image: str, nodes: tuple[str, ...] = NODES) -> None:
    product.until(
        f"{image} is gone from {nodes}", lambda: not holding(product, image) & set(nodes), timeout=120
    )
    # The object forgets it when the agent has said so.
    for node in nodes:
        until_forgotten(product, node, image)


def until_forgotten(product: Product, node: str, image: str) -> None:
    product.until(f"{image} is forgotten on {node}", lambda: not entry(product, node, image))


def until_seen(product: Product, node: str, image: str) -> None:
    product.until(f"the agent of {node} knows {image}", lambda: entry(product, node, image, "status"))


def pod(name: str, node: str, image: str) -> str:
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "containers": [{"name": "main", "image": image, "imagePullPolicy": "IfNotPresent"}],
        },
    }
    return json.dumps(document)


def test_delete_removes_what_was_brought_and_leaves_what_others_have_pulled_or_retain(
    product: Product,
) -> None:
    ours, theirs, retained = (
        product.push(runnable(layer(1)), f"tests/removal-{name}") for name in ("ours", "theirs", "retained")
    )
    product.cluster.node("b").crictl("pull", theirs)
    product.apply("deleting", ours, theirs, **DELETE)
    product.apply("retaining", retained)
    product.until_ready("deleting")
    product.until_ready("retaining")
    product.delete("deleting")
    product.delete("retaining")
    until_gone(product, ours)
    until_gone(product, theirs, ("a", "c"))
    assert holding(product, theirs) == {"b"}
    assert holding(product, retained) == set(NODES)


def test_an_image_in_use_waits_for_its_pod_and_says_so(product: Product) -> None:
    image = product.push(runnable(layer(1)), "tests/removal-used")
    product.apply("used", image, **DELETE)
    product.until_ready("used")
    users = {node: f"user-{node}" for node in ("a", "b")}
    for node, name in users.items():
        product.cluster.kubectl("apply", "-f", "-", stdin=pod(name, node, image))
    pods = [f"pod/{name}" for name in users.values()]
    product.cluster.kubectl("wait", "--for=condition=Ready", *pods, "--timeout=110s")
    try:
        product.delete("used")
        until_gone(product, image, ("c",))
        for node, name in users.items():
            waiting = until_in_use(product, node, image)
            assert waiting["state"] == "Waiting"
            assert f"container main of pod default/{name}" in waiting["message"]
        assert holding(product, image) == set(users)
        product.until_unpinned("b", image)
    finally:
        product.delete_pods(*users.values())
    until_gone(product, image)


def until_in_use(product: Product, node: str, image: str) -> dict[str, Any]:
    return until_waiting(product, node, image, "ImageInUse")


def until_waiting(product: Product, node: str, image: str, reason: str) -> dict[str, Any]:
    def found() -> dict[str, Any]:
        status = entry(product, node, image, "status")
        return status if status.get("reason") == reason else {}

    answer: dict[str, Any] = product.until(f"{node} says {reason} of {image}", found)
    return answer


def test_without_an_operator_nothing_is_deleted_and_the_next_one_takes_back_what_is_wanted_by_now(
    product: Product,
) -> None:
    built = {name: runnable(layer(1)) for name in ("unwanted", "anew")}
    unwanted, anew = (product.push(built[name], f"tests/removal-{name}") for name in built)
    product.apply("orders", unwanted, anew, **DELETE)
    product.until_ready("orders")
    users = {"user-unwanted": unwanted, "user-anew": anew}
    for name, image in users.items():
        product.cluster.kubectl("apply", "-f", "-", stdin=pod(name, "b", image))
    pods = [f"pod/{name}" for name in users]
    try:
        product.cluster.kubectl("wait", "--for=condition=Ready", *pods, "--timeout=110s")
        product.delete("orders")
        for image in (unwanted, anew):
            until_gone(product, image, ("a", "c"))
            until_in_use(product, "b", image)
        with without_operator(product):
            product.delete_pods(*users)
            for image in (unwanted, anew):
                waiting = until_waiting(product, "b", image, "OperatorAway")
                assert "waits for the operator, without which nothing is deleted" in waiting["message"]
                assert (waiting["state"], waiting.get("attempts", 0)) == ("Waiting", 0)
                assert holding(product, image) == {"b"}
            product.apply("anew", anew)
    finally:
        product.delete_pods(*users)
    until_gone(product, unwanted)
    product.until_ready("anew")
    assert holding(product, anew) == set(NODES)
    kept = built["anew"].layers[1].blob
    assert product.cluster.proxy.bytes_of("b", kept.digest) == kept.size, "it was never away from b"
    product.delete("anew")


def test_of_two_tags_of_one_image_the_first_goes_while_both_are_pulled_and_the_last_takes_all(
    product: Product,
) -> None:
    built = runnable(layer(1), layer(2))
    one, two = (product.push(built, "tests/removal-tags", tag) for tag in ("one", "two"))
    held = built.layers[2].blob.digest
    product.cluster.proxy.hold(held, after=1000)
    product.apply("one", one, **DELETE)
    product.apply("two", two, **DELETE)
    for node in NODES:
        until_seen(product, node, one)
        until_seen(product, node, two)
    product.until("the last layer is withheld on all nodes", lambda: product.cluster.proxy.waiting(held) >= 3)
    product.delete("one")
    product.cluster.proxy.release(held)
    product.until_ready("two")
    for node in NODES:
        until_forgotten(product, node, one)
    assert holding(product, two) == set(NODES)
    assert all(shown["pinned"] for shown in product.images_named("b", two))
    product.delete("two")
    until_gone(product, two)
    assert not holding(product, one)


def test_a_deleted_namespace_takes_its_images_and_does_not_hang(product: Product) -> None:
    """All of its objects at once: the brake on mass removals is for what vanished unseen."""
    image = product.push(runnable(layer(1)), "tests/removal-namespace")
    documents = [
        {
            "apiVersion": "imageprepull.io/v1alpha1",
            "kind": "ImagePrepull",
            "metadata": {"name": name, "namespace": "team"},
            "spec": {"images": [{"image": image}], **DELETE},
        }
        for name in ("one", "two", "three")
    ]
    product.cluster.kubectl("create", "namespace", "team")
    try:
        objects = {"apiVersion": "v1", "kind": "List", "items": documents}
        product.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(objects))
        product.until("all nodes hold it", lambda: holding(product, image) == set(NODES))
    finally:
        product.cluster.kubectl("delete", "namespace", "team", "--timeout=110s")
    until_gone(product, image)


def test_what_is_deleted_while_the_operator_is_away_stays_until_it_is_back(product: Product) -> None:
    image = product.push(runnable(layer(1)), "tests/removal-away")
    product.apply("away", image, **DELETE)
    product.until_ready("away")
    with without_operator(product):
        product.delete("away")
        for node in NODES:
            assert entry(product, node, image).get("state", "Present") == "Present"
        assert holding(product, image) == set(NODES)
    until_gone(product, image)
