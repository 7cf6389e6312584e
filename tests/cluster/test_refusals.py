"""What a user gets wrong ends in a reason and a message that say what to do, at the API or in the object."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cluster.product import Product, layer, runnable
from tests.testbed.errors import ClusterError

pytestmark = pytest.mark.timeout(300)


def refused(product: Product, spec: dict[str, Any]) -> str:
    """The API server's words on an object that it must not take."""
    document = {
        "apiVersion": "imageprepull.io/v1alpha1",
        "kind": "ImagePrepull",
        "metadata": {"name": "refused"},
        "spec": spec,
    }
    with pytest.raises(ClusterError) as caught:
        product.cluster.kubectl("create", "-f", "-", stdin=json.dumps(document))
    return str(caught.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"images": []}, ["spec"]),
        ({"images": [{"image": "a"}, {"image": "a"}]}, ["spec.images[1]", "Duplicate"]),
        ({"images": [{"image": "a"}], "unknown": 1}, ["unknown field", "spec.unknown"]),
        ({"images": [{"image": "a b"}]}, ["spec.images[0].image"]),
        ({"images": [{"image": "a"}], "priority": 5000}, ["spec.priority"]),
        ({"images": [{"image": "a"}], "nodeSelector": {"pool": "a b"}}, ["spec.nodeSelector", "label"]),
        (
            {
                "images": [{"image": "a"}],
                "nodeAffinity": {
                    "required": {
                        "nodeSelectorTerms": [
                            {"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["many"]}]}
                        ]
                    }
                },
            },
            ["matchExpressions[0].values", "an integer"],
        ),
    ],
)
def test_the_api_server_refuses_with_the_field(
    product: Product, spec: dict[str, Any], words: list[str]
) -> None:
    text = refused(product, spec)
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("spec", "reason", "words"),
    [
        (
            {"images": [{"image": "registry.example/UPPER/case:1"}]},
            "InvalidReference",
            ["registry.example/UPPER/case:1"],
        ),
        (
            {"images": [{"image": "nginx"}, {"image": "docker.io/library/nginx:latest"}]},
            "DuplicateImage",
            ["nginx", "docker.io/library/nginx:latest"],
        ),
        ({"images": [{"image": "a"}], "suspend": True}, "FieldNotSupported", ["spec.suspend"]),
    ],
)
def test_the_operator_stalls_with_reason_and_field(
    product: Product, spec: dict[str, Any], reason: str, words: list[str]
) -> None:
    images = [one["image"] for one in spec["images"]]
    product.apply("stalled", *images, **{key: value for key, value in spec.items() if key != "images"})
    product.until("Stalled", lambda: product.condition("stalled", "Stalled").get("status") == "True")
    condition = product.condition("stalled", "Stalled")
    assert condition["reason"] == reason
    for word in words:
        assert word in condition["message"]
    assert product.condition("stalled", "Ready")["status"] == "False"


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("{registry}/tests/missing:1", "NotFound"),
        ("127.0.0.1:1/tests/unreachable:1", "RegistryUnreachable"),
    ],
)
def test_an_image_that_cannot_be_resolved_says_why(product: Product, image: str, reason: str) -> None:
    image = image.format(registry=product.cluster.registry_name)
    product.apply("unresolved", image)
    product.until(
        f"Resolved=False with {reason}",
        lambda: product.condition("unresolved", "Resolved").get("reason") == reason,
    )
    condition = product.condition("unresolved", "Resolved")
    assert condition["status"] == "False"
    assert image in condition["message"]


def test_one_bad_image_does_not_stop_the_others(product: Product) -> None:
    good = product.push(runnable(layer(1)), "tests/good")
    bad = f"{product.cluster.registry_name}/tests/bad:1"
    product.apply("mixed", good, bad)
    product.until(
        "the good image on all nodes",
        lambda: (
            [
                one.get("nodesReady")
                for one in product.get("mixed").get("status", {}).get("images", [])
                if one["image"] == good
            ]
            == [3]
        ),
    )
    assert product.condition("mixed", "Ready")["status"] == "False"
