"""values.yaml and values.schema.json say the same. What Helm refuses by them is tested where helm is, in tests/cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "charts/imageprepull"


def test_the_schema_knows_every_value_and_no_other() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    schema["properties"].pop("global")  # Helm passes it to every chart.
    compare(values, schema, "")


def compare(values: dict[str, Any], schema: dict[str, Any], path: str) -> None:
    assert set(values) == set(schema["properties"]), path
    assert schema["additionalProperties"] is False, path
    for name, node in schema["properties"].items():
        if "properties" in node:
            compare(values[name], node, f"{path}.{name}")


def test_every_value_whose_name_does_not_explain_it_is_explained() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    for name in (
        "repository:",
        "enabled:",
        "preset:",
        "hosts:",
        "plainHTTP:",
        "keepBlobs:",
        "sync:",
        "extraction:",
        "aggregate:",
    ):
        (at,) = [place for place, line in enumerate(lines) if line.strip().startswith(name)]
        assert lines[at - 1].strip().startswith("#"), name
