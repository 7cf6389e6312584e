"""The kubelet's own image garbage collection, driven over its threshold on a real node: what is pinned stays."""

from __future__ import annotations

import pytest

from tests.cluster.product import Product, kubelet_with, layer, runnable

pytestmark = [
    pytest.mark.timeout(600),
    # The kubelet collects when it starts, before it knows of a file system, and then every five minutes.
    pytest.mark.nightly,
]

ALWAYS_OVER = {
    "imageGCHighThresholdPercent": 1,
    "imageGCLowThresholdPercent": 0,
    "imageMinimumGCAge": "1ms",
}
"""Every node has more than 1 % of its disk in use, so that the kubelet wants all unused images gone."""


def test_a_pinned_image_stays_and_an_unpinned_one_comes_back(product: Product) -> None:
    node = product.cluster.node("b")
    pinned, unpinned, stranger = (
        runnable(layer(1, marker=name)) for name in ("pinned", "unpinned", "stranger")
    )
    kept = product.push(pinned, "tests/gc-pinned")
    lost = product.push(unpinned, "tests/gc-unpinned")
    nobodys = product.push(stranger, "tests/gc-nobodys")
    product.apply("kept", kept)
    product.apply("lost", lost, pinPolicy="Never")
    for name in ("kept", "lost"):
        product.until_ready(name)
    node.crictl("pull", nobodys)
    assert product.images_named("b", nobodys)
    product.cluster.proxy.forget()

    with kubelet_with(product, node, ALWAYS_OVER):
        product.until(
            "the kubelet has collected", lambda: not product.images_named("b", nobodys), timeout=400
        )
        digest = unpinned.layers[1].blob.digest
        product.until(
            "the unpinned image is fetched again", lambda: product.cluster.proxy.bytes_of("b", digest) > 0
        )
        product.until("it is back", lambda: bool(product.images_named("b", lost)))
    assert product.images_named("b", kept)
    assert product.cluster.proxy.bytes_of("b", pinned.layers[1].blob.digest) == 0
    for name in ("kept", "lost"):
        product.until_ready(name)
    node.crictl("rmi", lost)
