"""What a CRD of an earlier version has no place for, and that nothing else is left out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from imageprepull.controller.older_crd import lacking, without
from imageprepull.resources.nodeprepull import (
    Desired,
    DesiredImage,
    ImageLimits,
    NodePrepullSpec,
    RegistryHold,
)

CRD: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "crds" / "nodeprepulls.yaml").read_text())
SPEC = NodePrepullSpec(
    images=[
        DesiredImage(
            reference="a",
            digest="sha256:1",
            state=Desired.ABSENT,
            pin=True,
            limits=ImageLimits(parallel_images=1, min_free_disk="5%"),
        )
    ],
    registries=[RegistryHold(host="h", not_before="2026-01-01T00:00:00Z")],
    kubelet_without_pins="v1.24.0",
)


def older(*missing: str) -> dict[str, Any]:
    crd = copy.deepcopy(CRD)
    for path in missing:
        node = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        *way, last = path.split(".")
        for name in way:
            node = node["properties"][name]
            node = node.get("items", node)
        del node["properties"][last]
    return crd


@pytest.mark.parametrize(
    ("missing", "left"),
    [
        ([], SPEC),
        (["kubeletWithoutPins"], {"kubelet_without_pins": ""}),
        (["registries"], {"registries": []}),
        (["images.pin"], {"pin": False}),
        (["images.limits.minFreeDisk"], {"limits": ImageLimits(parallel_images=1)}),
        (["images.limits", "images.pin"], {"limits": ImageLimits(), "pin": False}),
    ],
    ids=str,
)
def test_what_the_schema_lacks_is_left_out_and_nothing_else(missing: list[str], left: Any) -> None:
    found = lacking(older(*missing))
    assert found == {tuple(path.split(".")) for path in missing}
    written = without(SPEC, found)
    fields = {name: getattr(SPEC, name) for name in SPEC.__struct_fields__}
    image = {name: getattr(SPEC.images[0], name) for name in SPEC.images[0].__struct_fields__}
    if isinstance(left, dict):
        fields |= {name: value for name, value in left.items() if name in fields}
        image |= {name: value for name, value in left.items() if name in image}
    assert written == NodePrepullSpec(**fields | {"images": [DesiredImage(**image)]})
    assert without(written, found) == written


@pytest.mark.parametrize("odd", [{}, {"spec": {}}, {"spec": {"versions": [{"name": "v2", "schema": {}}]}}])
def test_what_is_no_crd_of_ours_lacks_nothing(odd: dict[str, Any]) -> None:
    assert lacking(odd) == frozenset()
