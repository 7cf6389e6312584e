"""`kubectl image-prepull status|wait`, started by kubectl, against the product at work."""

from __future__ import annotations

import json

import pytest

from tests.cluster.product import Product, kubectl_plugin, layer, runnable
from tests.testbed.images import LayerSpec

pytestmark = pytest.mark.timeout(180)


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
    image = product.push(runnable(LayerSpec({"repair-me": b"whole"})), "tests/plugin-repair")
    product.apply("repair", image)
    product.until_ready("repair")
    node = product.cluster.nodes()[1]
    whole = kubectl_plugin(product.cluster, "repair", node.name, image, "--timeout=1m")
    assert (whole.returncode, whole.stderr) == (0, "")
    assert whole.stdout == f"{image}: 2 layers are whole\n"

    files = "find /var/lib/containerd -name repair-me"
    assert node.exec(["sh", "-c", f"{files} -exec truncate -s 0 {{}} +"]).returncode == 0
    broken = kubectl_plugin(product.cluster, "repair", node.name, image, "--timeout=1m")
    assert (broken.returncode, broken.stderr) == (0, "")
    assert "was broken (/repair-me has 0 bytes instead of 5) and is pulled again" in broken.stdout
    content = node.exec(["sh", "-c", f"{files} -exec cat {{}} +"]).stdout
    assert content in ("whole", b"whole")
    product.until(
        "the order is gone", lambda: "imageprepull.io/repair" not in annotations_of(product, node.name)
    )


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
