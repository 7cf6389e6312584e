"""The chart carries the CRDs as they are, and the examples say nothing that the CRD would refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from imageprepull.resources.base import decode
from imageprepull.resources.imageprepull import ImagePrepullSpec
from imageprepull.resources.unsupported import unsupported

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "imageprepull"
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema for jsonschema, refusing unknown fields as `kubectl apply` does."""
    copy = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if "properties" in schema:
        copy["properties"] = {name: closed(node) for name, node in schema["properties"].items()}
        copy["additionalProperties"] = False
    if "items" in schema:
        copy["items"] = closed(schema["items"])
    return copy


def test_the_chart_carries_the_crds_byte_for_byte() -> None:
    ours = {file.name: file.read_bytes() for file in (ROOT / "crds").iterdir()}
    charts = {file.name: file.read_bytes() for file in (CHART / "files" / "crds").iterdir()}
    assert charts == ours, "run `make crds`"


def test_helm_sees_no_folder_of_crds_that_it_would_never_upgrade() -> None:
    assert not (CHART / "crds").exists()


def test_the_chart_has_the_version_of_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert f'version = "{chart["appVersion"]}"' in text


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 2


@pytest.mark.parametrize("example", EXAMPLES, ids=[file.stem for file in EXAMPLES])
def test_an_example_fits_the_schema_and_is_acted_on(example: Path) -> None:
    crd = yaml.safe_load((ROOT / "crds" / "imageprepulls.yaml").read_text())
    version = crd["spec"]["versions"][0]
    for document in yaml.safe_load_all(example.read_text()):
        assert document["apiVersion"] == f"{crd['spec']['group']}/{version['name']}"
        assert document["kind"] == crd["spec"]["names"]["kind"]
        spec = closed(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
        jsonschema.Draft202012Validator(spec).validate(document["spec"])
        assert unsupported(decode(ImagePrepullSpec, document["spec"])) == []
