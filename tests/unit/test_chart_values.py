"""values.schema.json: what it takes is in values.yaml, and what it refuses is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from tests.unit.chart_render import CHART, refusal

REFUSED = {
    "an unknown value": ({"operater": {}}, "operater"),
    "an unknown value further in": ({"agent": {"tolerationz": []}}, "tolerationz"),
    "an unknown runtime": ({"runtime": {"preset": "crio"}}, "preset"),
    "a relative path": ({"runtime": {"socket": "run/containerd.sock"}}, "socket"),
    "a port out of range": ({"agent": {"healthPort": 70000}}, "healthPort"),
    "a digest without algorithm": ({"image": {"digest": "abc"}}, "digest"),
    "an unknown moment to keep blobs": ({"agent": {"keepBlobs": "sometimes"}}, "keepBlobs"),
    "a registry with a scheme": ({"registry": {"plainHTTP": ["http://a"]}}, "plainHTTP"),
    "a hosts file without registry": (
        {"registry": {"hostsConfigMap": {"items": [{"key": "a"}]}}},
        "registry",
    ),
    "a word where a number belongs": ({"operator": {"replicas": "one"}}, "replicas"),
}


@pytest.mark.parametrize(("values", "named"), REFUSED.values(), ids=REFUSED)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], named: str) -> None:
    assert named in refusal(values)


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


def test_every_value_is_explained_or_named_by_its_meaning() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    for name in (
        "repository:",
        "enabled:",
        "preset:",
        "hosts:",
        "plainHTTP:",
        "keepBlobs:",
        "sync:",
        "aggregate:",
    ):
        (at,) = [place for place, line in enumerate(lines) if line.strip().startswith(name)]
        assert lines[at - 1].strip().startswith("#"), name
