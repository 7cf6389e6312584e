"""What is not acted on yet is said, and the list of it only shrinks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from imageprepull.resources.base import decode
from imageprepull.resources.imageprepull import ImagePrepullSpec
from imageprepull.resources.unsupported import RULES, unsupported

CRD = Path(__file__).parents[2] / "crds/imageprepulls.yaml"

# The fields that the first version did not act on. A field leaves this table when the operator acts on it, in the
# same commit as its rule. Never add one: a new field of the API comes together with the code that acts on it,
# since a field that worked and then is refused breaks objects that users have in their clusters.
USES: dict[str, dict[str, Any]] = {
    "spec.images[].pullPolicy": {"images": [{"image": "a", "pullPolicy": "Always"}]},
    "spec.imagesFrom": {"imagesFrom": [{"kind": "Deployment", "name": "a"}]},
    "spec.imagePullSecrets": {"imagePullSecrets": [{"name": "a"}]},
    "spec.serviceAccountName": {"serviceAccountName": "builder"},
    "spec.completionMode": {"completionMode": "Once"},
    "spec.rollout.maxParallelNodes": {"rollout": {"maxParallelNodes": 4}},
    "spec.rollout.seedNodes": {"rollout": {"seedNodes": 1}},
    "spec.rollout.maxFailedNodes": {"rollout": {"maxFailedNodes": 0}},
    "spec.limits.maxDownloadBytesPerSecond": {"limits": {"maxDownloadBytesPerSecond": "50Mi"}},
    "spec.backoffLimit": {"backoffLimit": 9},
    "spec.activeDeadlineSeconds": {"completionMode": "Once", "activeDeadlineSeconds": 60},
    "spec.refreshIntervalSeconds": {"refreshIntervalSeconds": 60},
    "spec.ttlSecondsAfterFinished": {"completionMode": "Once", "ttlSecondsAfterFinished": 0},
    "spec.suspend": {"suspend": True},
}

ACTED_ON = {
    "images": [{"image": "a", "pullPolicy": "IfNotPresent"}],
    "nodeSelector": {"zone": "a"},
    "nodeAffinity": {
        "required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]},
    },
    "tolerations": [{"operator": "Exists"}],
    "priority": 5,
    "pinPolicy": "Never",
    "deletionPolicy": "Delete",
    "limits": {"parallelImages": 1, "parallelDownloads": 1},
    "maxBackoffSeconds": 1,
    "stallTimeoutSeconds": 10,
    "completionMode": "Continuous",
}


def test_the_list_only_shrinks() -> None:
    listed = {rule.field for rule in RULES}
    assert listed <= set(USES), "a field that was acted on may not be refused again"
    assert listed == set(USES), "now acted on: take these out of USES, their descriptions in the CRD too"


@pytest.mark.parametrize("field", USES)
def test_a_listed_field_that_differs_from_its_default_is_named(field: str) -> None:
    found = unsupported(decode(ImagePrepullSpec, {"images": [{"image": "a"}], **USES[field]}))
    assert field in [entry.field for entry in found]
    assert str(found[0]).startswith(f"{found[0].field} is not acted on yet: ")


def test_what_is_acted_on_is_accepted_with_any_value() -> None:
    assert unsupported(decode(ImagePrepullSpec, ACTED_ON)) == []


def test_defaults_as_the_api_server_fills_them_in_are_accepted() -> None:
    filled_in = {
        "images": [{"image": "a"}],
        "rollout": {"seedNodes": 0, "maxFailedNodes": "10%"},
        "limits": {"parallelImages": 2, "parallelDownloads": 8},
        "backoffLimit": 8,
        "serviceAccountName": "default",
        "completionMode": "Continuous",
        "suspend": False,
    }
    assert unsupported(decode(ImagePrepullSpec, filled_in)) == []


def test_every_field_of_the_spec_is_acted_on_or_listed() -> None:
    listed = {rule.field.removeprefix("spec.").split("[")[0].split(".")[0] for rule in RULES}
    assert set(schema_of_spec()) == listed | set(ACTED_ON)


def test_descriptions_in_the_crd_say_exactly_what_is_not_acted_on() -> None:
    said = {
        path
        for path, description in descriptions(schema_of_spec(), "spec")
        if "not acted on yet" in description.lower()
    }
    assert said == {rule.field for rule in RULES}


def schema_of_spec() -> dict[str, dict[str, object]]:
    crd = yaml.safe_load(CRD.read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    properties: dict[str, dict[str, object]] = schema["properties"]["spec"]["properties"]
    return properties


def descriptions(properties: object, path: str) -> list[tuple[str, str]]:
    assert isinstance(properties, dict)
    found = []
    for name, node in properties.items():
        found.append((f"{path}.{name}", node.get("description", "")))
        found += descriptions(node.get("properties", {}), f"{path}.{name}")
        found += descriptions(node.get("items", {}).get("properties", {}), f"{path}.{name}[]")
    return found
