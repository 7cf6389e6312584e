"""`kubectl image-prepull status|wait|retry|repair`, started by kubectl, against the product at work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.cluster.product import NAMESPACE, Product, kubectl_plugin, layer, runnable
from tests.testbed.images import LayerSpec
from tests.testbed.node import Node

pytestmark = pytest.mark.timeout(300)


def test_wait_ends_when_the_object_is_ready_and_status_shows_its_layers(product: Product) -> None:
    built = runnable(layer(1))
    image = product.push(built, "tests/plugin")
    product.apply("plugin", image)
    waited = kubectl_plugin(product.cluster, "wait", "plugin", "--timeout=1m")
    assert (waited.returncode, waited.stderr) == (0, "")
    assert "default/plugin" in waited.stdout
    assert "AllNodesReady" in waited.stdout

    shown = kubectl_plugin(product.cluster, "status", "plugin", "--layers")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert image in shown.stdout
    for one in built.layers:
        assert one.blob.digest.partition(":")[2][:12] in shown.stdout
    overview = kubectl_plugin(product.cluster, "status", "--namespace=default")
    assert "plugin" in overview.stdout
    assert "3/3" in overview.stdout


def test_wait_ends_early_with_the_reason_when_the_object_cannot_become_ready(product: Product) -> None:
    product.apply("hopeless", "registry.example/UPPER/case:1")
    waited = kubectl_plugin(product.cluster, "wait", "hopeless", "--timeout=1m")
    assert waited.returncode == 1
    assert "InvalidReference" in waited.stderr
    assert len(waited.stderr.splitlines()) == 1


def test_wait_that_takes_too_long_says_how_far_it_is(product: Product) -> None:
    built = runnable(layer(1))
    product.cluster.proxy.hold(built.layers[1].blob.digest)
    product.apply("slow", product.push(built, "tests/plugin-slow"))
    waited = kubectl_plugin(product.cluster, "wait", "slow", "--timeout=3s")
    assert waited.returncode == 3
    assert "not Ready after 3 s" in waited.stderr


def test_status_followed_off_a_terminal_prints_lines_and_ends_when_ready(product: Product) -> None:
    product.apply("follow", product.push(runnable(layer(1)), "tests/plugin-follow"))
    shown = kubectl_plugin(product.cluster, "status", "follow", "--watch")
    assert shown.returncode == 0
    assert "3 of 3 nodes" in shown.stdout
    assert "\x1b" not in shown.stdout


@pytest.mark.parametrize("command", ["status", "wait"])
def test_an_object_that_is_not_there_is_one_line_and_exit_code_1(product: Product, command: str) -> None:
    done = kubectl_plugin(product.cluster, command, "nobody")
    assert done.returncode == 1
    assert "nobody" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_repair_finds_a_file_that_lost_its_bytes_and_pulls_the_layer_again(product: Product) -> None:
    built = runnable(LayerSpec({"repair-me": b"whole"}))
    image = product.push(built, "tests/plugin-repair")
    product.apply("repair", image)
    product.until_ready("repair")
    node = product.cluster.nodes()[1]
    product.until_kept(node.name, built)
    whole = kubectl_plugin(product.cluster, "repair", node.name, image, "--timeout=1m")
    assert (whole.returncode, whole.stderr) == (0, "")
    assert whole.stdout == f"{image}: 2 layers are whole\n"

    (file,) = files_named(node, "repair-me")
    node.exec(["truncate", "-s", "0", file])
    broken = kubectl_plugin(product.cluster, "repair", node.name, image, "--timeout=1m")
    assert (broken.returncode, broken.stderr) == (0, "")
    assert "was broken (/repair-me has 0 bytes instead of 5) and is pulled again" in broken.stdout
    product.until(
        "the runtime has collected the broken tree, and the whole one is there",
        lambda: (
            [node.exec(["cat", file], check=False).stdout for file in files_named(node, "repair-me")]
            == ["whole"]
        ),
    )
    product.until(
        "the order is gone", lambda: "imageprepull.io/repair" not in annotations_of(product, node.name)
    )


def test_repair_of_a_broken_image_that_a_container_uses_is_no_success(product: Product) -> None:
    built = runnable(LayerSpec({"repair-used": b"whole"}))
    image = product.push(built, "tests/plugin-repair-used")
    product.apply("repair-used", image)
    product.until_ready("repair-used")
    node = product.cluster.nodes()[1]
    product.until_kept(node.name, built)
    container = {"name": "main", "image": image, "imagePullPolicy": "Never"}
    spec = {
        "nodeName": node.name,
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "containers": [container],
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "repair-user"}, "spec": spec}
    product.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    try:
        product.cluster.kubectl("wait", "--for=condition=Ready", "pod/repair-user", "--timeout=110s")
        (file,) = files_named(node, "repair-used")
        node.exec(["truncate", "-s", "0", file])
        used = kubectl_plugin(product.cluster, "repair", node.name, image, "--timeout=1m")
        assert (used.returncode, used.stdout) == (1, "")
        assert used.stderr.startswith(f"error: {image}: BrokenChain: the layer sha256:")
        assert "/repair-used has 0 bytes instead of 5" in used.stderr
        assert "uses it; delete the pods that run on this image" in used.stderr
    finally:
        product.delete_pods("repair-user")
    product.until(
        "the order is gone", lambda: "imageprepull.io/repair" not in annotations_of(product, node.name)
    )


def files_named(node: Node, name: str) -> list[str]:
    """Where a node's snapshots have a file of this name; other tests' layers may go while it looks."""
    looked = node.exec(["find", "/var/lib/containerd", "-name", name], check=False)
    unexpected = [line for line in looked.stderr.splitlines() if "No such file" not in line]
    assert not unexpected
    return looked.stdout.splitlines()


def annotations_of(product: Product, node: str) -> dict[str, str]:
    document = json.loads(product.cluster.kubectl("get", "nodeprepull", node, "-o", "json"))
    found: dict[str, str] = document["metadata"].get("annotations", {})
    return found


def test_repair_says_what_a_node_holds_when_it_is_asked_for_something_else(product: Product) -> None:
    product.apply("known", product.push(runnable(layer(1)), "tests/plugin-known"))
    product.until_ready("known")
    node = product.cluster.nodes()[0].name
    other = kubectl_plugin(product.cluster, "repair", node, "nobody:1")
    assert other.returncode == 1
    assert f"no ImagePrepull wants docker.io/library/nobody:1 on the node {node}" in other.stderr
    gone = kubectl_plugin(product.cluster, "repair", "no-such-node")
    assert gone.returncode == 1
    assert "no-such-node" in gone.stderr


def next_attempts(product: Product, image: str) -> Mapping[str, datetime]:
    """When each node that has failed will try this image again by itself."""
    found = {}
    for document in product.cluster.get("nodeprepull")["items"]:
        for one in document.get("status", {}).get("images", ()):
            if one["reference"] == image and one["state"] == "Failed":
                found[document["metadata"]["name"]] = datetime.fromisoformat(one["nextAttempt"])
    return found


def test_retry_brings_what_failed_for_good_before_its_time_on_one_node_and_then_on_all(
    product: Product,
) -> None:
    built = runnable(layer(1))
    image = f"{product.cluster.registry_name}/tests/late@{built.digest}"
    product.apply("late", image)
    product.until("all nodes have failed", lambda: len(next_attempts(product, image)) == 3)
    again = kubectl_plugin(product.cluster, "retry", "late", "--timeout=1m")
    assert (again.returncode, again.stdout) == (1, "")
    assert f"default/late: failed again on 3 of 3 nodes, for example a: {image}: NotFound: " in again.stderr
    assert len(again.stderr.splitlines()) == 1
    failed = next_attempts(product, image)
    assert len(failed) == 3, "an order that failed leaves the slow cadence as it was"

    product.push(built, "tests/late")
    one = kubectl_plugin(product.cluster, "retry", "late", image, "--node=b", "--timeout=1m")
    assert (one.returncode, one.stderr) == (0, "")
    assert one.stdout == "default/late: Ready on 1 node\n"
    assert next_attempts(product, image).keys() == {"a", "c"}
    everywhere = kubectl_plugin(product.cluster, "retry", "late", "--timeout=1m")
    assert (everywhere.returncode, everywhere.stderr) == (0, "")
    assert everywhere.stdout == "default/late: Ready on 3 nodes\n"
    assert datetime.now(UTC) < min(failed.values()), "too slow to show anything: they try by themselves then"
    product.until_ready("late")
    assert "imageprepull.io/retry" not in product.get("late")["metadata"].get("annotations", {})


def test_retry_asks_for_a_tag_again_that_the_registry_did_not_know(product: Product) -> None:
    image = f"{product.cluster.registry_name}/tests/late-tag:1"
    product.apply("late-tag", image)

    def looked_up() -> int:
        return len(product.cluster.proxy.requests(path="/tests/late-tag/manifests/1"))

    product.until("the operator leaves the registry alone for long", lambda: pause(product, image) >= 30)
    asked = looked_up()
    product.push(runnable(layer(1)), "tests/late-tag")
    done = kubectl_plugin(product.cluster, "retry", "late-tag", "--timeout=28s")
    assert (done.returncode, done.stdout, done.stderr) == (0, "default/late-tag: Ready on 3 nodes\n", "")
    assert looked_up() > asked


def pause(product: Product, image: str) -> float:
    """Seconds from the last failed look-up of an image to the next one, as the operator says in its log."""
    log = product.cluster.kubectl("-n", NAMESPACE, "logs", "deployment/imageprepull-operator", "--tail=100")
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return max((one["retry"] for one in lines if one.get("image") == image and "retry" in one), default=0.0)


def test_retry_says_what_it_cannot_do(product: Product) -> None:
    product.apply("sound", product.push(runnable(layer(1)), "tests/plugin-sound"))
    product.until_ready("sound")
    other = kubectl_plugin(product.cluster, "retry", "sound", "nobody:1")
    assert other.returncode == 1
    assert "default/sound does not name docker.io/library/nobody:1; it names " in other.stderr
    elsewhere = kubectl_plugin(product.cluster, "retry", "sound", "--node=nowhere", "--timeout=1m")
    assert elsewhere.returncode == 1
    assert "nothing to retry: it is not for the node nowhere" in elsewhere.stderr
    gone = kubectl_plugin(product.cluster, "retry", "no-such-object")
    assert gone.returncode == 1
    assert "no-such-object" in gone.stderr


def test_an_order_to_retry_that_says_nothing_is_answered_by_an_event_and_in_the_status(
    product: Product,
) -> None:
    product.apply("odd", product.push(runnable(layer(1)), "tests/plugin-odd"))
    product.until_ready("odd")
    product.cluster.kubectl("annotate", "imageprepull", "odd", "imageprepull.io/retry=/what/is/this")

    def told() -> list[Any]:
        events = product.cluster.get("events", "--field-selector", "involvedObject.name=odd")["items"]
        return [event["message"] for event in events if event["reason"] == "InvalidRetry"]

    product.until("an Event", told)
    (message,) = told()
    assert "must begin with a word of at most 20 letters" in message
    answer = product.until("an answer", lambda: product.get("odd")["status"]["retry"])
    assert (answer["reason"], answer["message"]) == ("InvalidRetry", message)
    product.cluster.kubectl("annotate", "imageprepull", "odd", "--overwrite", "imageprepull.io/retry=monday")
    product.until("an answer", lambda: product.get("odd")["status"]["retry"]["nonce"] == "monday")
    shown = product.cluster.kubectl("get", "imageprepull", "odd", "-o", "jsonpath={.status.retry}")
    assert json.loads(shown)["ready"] == 3, shown
    product.cluster.kubectl("annotate", "imageprepull", "odd", "imageprepull.io/retry-")
    product.until("the answer goes with its question", lambda: "retry" not in product.get("odd")["status"])
