"""The numbers by which operator and agent cut are the schema's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.resources import bounds

CRDS = Path(__file__).parents[2] / "crds"

PLACES = {
    "imageprepulls": {
        "spec.images": bounds.SPEC_IMAGES,
        "spec.images[].image": bounds.REFERENCE,
        "status.conditions": bounds.CONDITIONS,
        "status.conditions[].reason": bounds.REASON,
        "status.conditions[].message": bounds.CONDITION_MESSAGE,
        "status.failures": bounds.FAILURES,
        "status.failures[].message": bounds.MESSAGE,
        "status.skipped": bounds.SKIPPED,
        "status.images": bounds.IMAGES,
        "status.images[].image": bounds.REFERENCE,
        "status.images[].digest": bounds.DIGEST,
        "status.images[].platforms": bounds.PLATFORMS,
        "status.images[].platforms[].layers": bounds.LAYERS,
        "status.nodeDetails": bounds.NODE_DETAILS,
        "status.nodeDetails[].images": bounds.IMAGES,
        "status.nodeDetails[].images[].message": bounds.MESSAGE,
        "status.nodeDetails[].images[].layers": bounds.LAYERS,
        "status.nodeDetails[].images[].layerStates": bounds.LAYERS,
        "status.retry.nonce": bounds.NONCE,
        "status.retry.reason": bounds.REASON,
        "status.retry.message": bounds.MESSAGE,
    },
    "nodeprepulls": {
        "spec.images": bounds.IMAGES,
        "spec.images[].reference": bounds.REFERENCE,
        "spec.images[].digest": bounds.DIGEST,
        "spec.images[].owners": bounds.OWNERS,
        "spec.images[].repair": bounds.NONCE,
        "spec.images[].retry.nonce": bounds.NONCE,
        "spec.images[].owners[]": bounds.OWNER,
        "spec.resolve": bounds.RESOLVES,
        "spec.kubeletWithoutPins": bounds.VERSION,
        "spec.registries": bounds.REGISTRIES,
        "spec.registries[].host": bounds.HOST,
        "status.agent.capabilities": bounds.CAPABILITIES,
        "status.images": bounds.IMAGES,
        "status.images[].reference": bounds.REFERENCE,
        "status.images[].reason": bounds.REASON,
        "status.images[].message": bounds.MESSAGE,
        "status.images[].bytes": bounds.SOURCE_HOSTS,
        "status.images[].bytes[].host": bounds.HOST,
        "status.images[].layers": bounds.LAYERS,
        "status.images[].layers[].digest": bounds.DIGEST,
        "status.images[].layerStates": bounds.LAYERS,
        "status.resolved": bounds.RESOLVES,
        "status.registries": bounds.REGISTRIES,
        "status.strayPins": bounds.STRAY_PINS,
        "status.strayPins[].reference": bounds.REFERENCE,
        "status.strayPins[].digest": bounds.DIGEST,
    },
}


@pytest.mark.parametrize(
    ("plural", "path", "bound"),
    [(plural, path, bound) for plural, places in PLACES.items() for path, bound in places.items()],
)
def test_a_bound_is_the_schemas(plural: str, path: str, bound: int) -> None:
    node = find(plural, path)
    assert node.get("maxItems", node.get("maxLength")) == bound


@given(st.text(), st.integers(1, 20))
def test_cut_text_fits_and_shows_that_it_was_cut(text: str, limit: int) -> None:
    short = bounds.cut(text, limit)
    assert len(short) <= limit
    assert short == text or short.endswith("…")


def find(plural: str, path: str) -> dict[str, Any]:
    crd = yaml.safe_load((CRDS / f"{plural}.yaml").read_text())
    node: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for step in path.split("."):
        node = node["properties"][step.removesuffix("[]")]
        if step.endswith("[]"):
            node = node["items"]
    return node
