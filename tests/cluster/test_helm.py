"""The release's own life: upgraded in the middle of a pull, uninstalled, installed anew."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest

from tests.cluster.product import CHART, NAMESPACE, RELEASE, Product, layer, runnable
from tests.testbed import binaries
from tests.testbed.errors import ClusterError

pytestmark = pytest.mark.timeout(300)
NODES = ("a", "b", "c")
NO_IMAGE = "sha256:" + "0" * 64


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


def plans(product: Product) -> dict[str, tuple[str, int, list[Any]]]:
    """What each node is told: in which object, how often it was told something else, and its entries."""
    return {
        plan["metadata"]["name"]: (
            plan["metadata"]["uid"],
            plan["metadata"]["generation"],
            plan["spec"].get("images", []),
        )
        for plan in product.cluster.get("nodeprepull")["items"]
    }


def test_an_upgrade_in_the_middle_of_a_roll_out_rolls_all_pods_admits_nobody_twice_and_fetches_no_byte_again(
    product: Product,
) -> None:
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
    product.until("each has the first bytes of layer 3", lambda: product.cluster.proxy.waiting(held) == 3)
    product.until_asked_only(image)
    before, planned, began = uids(product), plans(product), product.get("upgrade")["status"]["startTime"]
    assert {node: entries[0]["reference"] for node, (_, _, entries) in planned.items()} == dict.fromkeys(
        NODES, image
    )
    try:
        product.install("agent.podAnnotations.round=two", "operator.podAnnotations.round=two")
        # Helm waits for the new ones, and not until the old operator has ended.
        product.until("every pod is a new one", lambda: not before.keys() & uids(product).keys())
        assert plans(product) == planned, "the new operator has told nobody anything"
        product.cluster.proxy.release(held)
        document = product.until_ready("upgrade")
        assert plans(product) == planned, "whoever is admitted was so once, and is still"
        assert document["status"]["startTime"] == began
        for one in built.layers:
            for node in NODES:
                assert product.cluster.proxy.bytes_of(node, one.blob.digest) == one.blob.size, node
    finally:
        product.cluster.proxy.release(held)
        product.install()


def test_an_uninstall_unpins_keeps_crds_objects_and_images_and_an_install_goes_on_from_there(
    product: Product,
) -> None:
    image = product.push(runnable(layer(1)), "tests/uninstall")
    product.apply("uninstall", image, deletionPolicy="Delete")
    digest = product.until_ready("uninstall")["status"]["images"][0]["digest"]
    product.until_asked_only(image)
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
            product.until_unpinned(node, image)
        # Nobody is left who would have to agree.
        product.cluster.kubectl("delete", "nodeprepull", "b", "--timeout=60s")
    finally:
        product.install()
    product.apply("after", image)
    product.until_ready("after")
    product.until("pinned again", lambda: pinned(product, image) == {"b", "c"})
    assert product.get("uninstall")["status"]["images"][0]["digest"] == digest
    assert product.cluster.proxy.requests(path="/tests/uninstall/blobs/") == [], (
        "what is there is not fetched again"
    )


def waiting_at_most(product: Product, seconds: int) -> None:
    """Another time for the uninstall; no pod changes by it."""
    setting = f"uninstall.timeoutSeconds={seconds}"
    product.cluster.helm("upgrade", RELEASE, CHART, "-n", NAMESPACE, "--reuse-values", "--set", setting)


@contextmanager
def frozen_agents(product: Product) -> Iterator[None]:
    """Every agent is stopped and does nothing more, though its pod is ready; the kubelet finds out after a minute."""
    pids: dict[str, str] = {}
    for name in NODES:
        node = product.cluster.node(name)
        (container,) = node.crictl("ps", "--name", "^agent$", "--state", "Running", "-q").split()
        template = ("-o", "go-template", "--template", "{{.info.pid}}")
        pids[name] = node.crictl("inspect", *template, container).strip()
        node.exec(["kill", "-STOP", pids[name]])
    try:
        yield
    finally:
        for name, pid in pids.items():
            # Whose release was uninstalled meanwhile is gone: a stopped process, too, is ended by SIGKILL.
            product.cluster.node(name).exec(["kill", "-CONT", pid], check=False)


def hook_pods(product: Product, phase: str) -> list[dict[str, Any]]:
    selector = ("-l", "app.kubernetes.io/component=uninstall", f"--field-selector=status.phase={phase}")
    pods: list[dict[str, Any]] = product.cluster.get("pods", "-n", NAMESPACE, *selector)["items"]
    return pods


def job_seconds(product: Product) -> float:
    """From the start of the uninstall's Job to its completion."""
    status = product.cluster.get("job", "-n", NAMESPACE, "imageprepull-uninstall")["status"]
    began, ended = (datetime.fromisoformat(status[name]) for name in ("startTime", "completionTime"))
    return (ended - began).total_seconds()


def test_an_uninstall_ends_well_and_in_time_with_agents_that_are_frozen_and_names_their_nodes(
    product: Product,
) -> None:
    image = product.push(runnable(layer(1)), "tests/frozen")
    product.apply("frozen", image)
    product.until_ready("frozen")
    try:
        waiting_at_most(product, 20)
        with frozen_agents(product):
            said = product.cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE)
            log = product.cluster.kubectl("-n", NAMESPACE, "logs", "job/imageprepull-uninstall")
        assert f'release "{RELEASE}" uninstalled' in said
        assert "unpinned on 0 nodes\n3 nodes did not answer, images may stay pinned there: a b c\n" in log
        assert job_seconds(product) >= 20, (
            "and it ended before the deadline of the Job, which would be a failure"
        )
        assert pinned(product, image) == {"b", "c"}
        product.until("no pod is left", lambda: not uids(product))
    finally:
        product.install()


def test_the_pod_of_an_uninstall_that_is_evicted_is_replaced_and_the_next_one_has_the_rest_of_the_time(
    product: Product,
) -> None:
    product.apply("replaced", product.push(runnable(layer(1)), "tests/replaced"))
    product.until_ready("replaced")
    try:
        waiting_at_most(product, 30)
        with frozen_agents(product):
            command = [str(binaries.path("helm")), "uninstall", RELEASE, "--namespace", NAMESPACE]
            helm = subprocess.Popen(
                [*command, "--kubeconfig", str(product.cluster.kubeconfig)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                (first,) = product.until("the first pod runs", lambda: hook_pods(product, "Running"))
                name = first["metadata"]["name"]
                product.cluster.kubectl("-n", NAMESPACE, "delete", "pod", name, "--wait")
                said, errors = helm.communicate(timeout=200)
            finally:
                helm.kill()
                helm.wait()
        assert helm.returncode == 0, errors
        assert "uninstalled" in said
        (second,) = hook_pods(product, "Succeeded")
        assert second["metadata"]["name"] != name
        assert job_seconds(product) >= 30
        log = product.cluster.kubectl("-n", NAMESPACE, "logs", "job/imageprepull-uninstall")
        assert "3 nodes did not answer, images may stay pinned there: a b c" in log
        product.until("no pod is left", lambda: not uids(product))
    finally:
        product.install()


def test_an_uninstall_whose_pod_cannot_start_fails_leaves_all_as_it_is_and_goes_on_without_hooks(
    product: Product,
) -> None:
    image = product.push(runnable(layer(1)), "tests/stuck")
    product.apply("stuck", image)
    product.until_ready("stuck")
    product.until_asked_only(image)
    try:
        waiting_at_most(product, 10)
        product.cluster.helm(
            "upgrade", RELEASE, CHART, "-n", NAMESPACE, "--reuse-values", "--set", f"image.digest={NO_IMAGE}"
        )
        began = time.monotonic()
        with pytest.raises(ClusterError, match=r"imageprepull-uninstall not ready\. status: Failed"):
            product.cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE)
        assert 20 < time.monotonic() - began < 120, (
            "by the Job's deadline, and not by Helm's after five minutes"
        )
        assert names(product, "daemonset") == ["daemonset.apps/imageprepull-agent"], "nothing was uninstalled"
        (entry,) = product.cluster.get("nodeprepull", "b")["spec"]["images"]
        assert "state" not in entry, "nothing was ordered"
        product.cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--no-hooks")
        assert names(product, "daemonset") == []
        product.until("no pod is left", lambda: not uids(product))
    finally:
        product.install()


def test_helm_refuses_what_the_schema_of_values_refuses_and_changes_nothing(product: Product) -> None:
    before = uids(product)
    with pytest.raises(ClusterError, match="preset"):
        product.install("runtime.preset=docker")
    assert uids(product) == before
