"""The release's own life: upgraded in the middle of a pull, uninstalled, installed anew."""

from __future__ import annotations

import pytest

from tests.cluster.product import NAMESPACE, RELEASE, Product, layer, runnable
from tests.testbed.errors import ClusterError

pytestmark = pytest.mark.timeout(300)
NODES = ("a", "b", "c")


def names(product: Product, kind: str) -> list[str]:
    """Objects of the release by label, except CRDs."""
    found = product.cluster.kubectl(
        "get", kind, "-A", "-l", f"app.kubernetes.io/instance={RELEASE}", "-o", "name"
    )
    return found.split()


def uids(product: Product) -> dict[str, str]:
    """Pods of the product, but for an uninstall's, whose log is kept for a while: name and uid."""
    selector = "app.kubernetes.io/component!=uninstall"
    pods = product.cluster.get("pods", "-n", NAMESPACE, "-l", selector)["items"]
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods}


def pinned(product: Product, image: str) -> set[str]:
    return {node for node in NODES if any(one.get("pinned") for one in product.images_named(node, image))}


def test_an_upgrade_rolls_all_pods_and_a_pull_in_the_middle_fetches_no_layer_again(product: Product) -> None:
    built = runnable(layer(1), layer(2))
    held = built.layers[2].blob.digest
    image = product.push(built, "tests/upgrade")
    product.cluster.proxy.hold(held, after=1000)
    product.apply("upgrade", image)
    product.until(
        "layers 1 and 2 Applied on all nodes",
        lambda: all(
            product.layer_states("upgrade", node, image)[:2] == ["Applied", "Applied"] for node in NODES
        ),
    )
    before = uids(product)
    try:
        product.install("agent.podAnnotations.round=two", "operator.podAnnotations.round=two")
        assert not before.keys() & uids(product).keys(), "every pod is a new one"
        product.cluster.proxy.release(held)
        product.until_ready("upgrade")
        for one in built.layers[:2]:
            for node in NODES:
                assert product.cluster.proxy.bytes_of(node, one.blob.digest) == one.blob.size
    finally:
        product.cluster.proxy.release(held)
        product.install()


def test_an_uninstall_unpins_keeps_crds_objects_and_images_and_an_install_goes_on_from_there(
    product: Product,
) -> None:
    image = product.push(runnable(layer(1)), "tests/uninstall")
    product.apply("uninstall", image, deletionPolicy="Delete")
    digest = product.until_ready("uninstall")["status"]["images"][0]["digest"]
    assert pinned(product, image) == {"b", "c"}, "node a's containerd knows no pins"
    product.cluster.proxy.forget()
    try:
        product.cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait", "--timeout=2m")
        said = product.cluster.kubectl("-n", NAMESPACE, "logs", "job/imageprepull-uninstall")
        assert "unpinned on 3 nodes" in said
        assert "did not answer" not in said
        for kind in (
            "deployment",
            "daemonset",
            "clusterrole",
            "clusterrolebinding",
            "serviceaccount",
            "validatingadmissionpolicy",
        ):
            assert names(product, kind) == []
        product.until("no pod is left", lambda: not uids(product))
        product.get("uninstall")
        for node in NODES:
            assert product.images_named(node, image), "an uninstall removes no image"
            (entry,) = product.cluster.get("nodeprepull", node)["spec"]["images"]
            assert entry["reference"] == image
            assert (entry["state"], entry.get("onRemoval", "Unpin")) == ("Absent", "Unpin")
        assert pinned(product, image) == set()
        # Nobody is left who would have to agree.
        product.cluster.kubectl("delete", "nodeprepull", "b", "--timeout=10s")
    finally:
        product.install()
    product.apply("after", image)
    product.until_ready("after")
    product.until("pinned again", lambda: pinned(product, image) == {"b", "c"})
    assert product.get("uninstall")["status"]["images"][0]["digest"] == digest
    assert product.cluster.proxy.requests(path="/tests/uninstall/blobs/") == [], (
        "what is there is not fetched again"
    )


def test_helm_refuses_what_the_schema_of_values_refuses_and_changes_nothing(product: Product) -> None:
    before = uids(product)
    with pytest.raises(ClusterError, match="preset"):
        product.install("runtime.preset=docker")
    assert uids(product) == before
