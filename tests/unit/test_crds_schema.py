"""The CRDs as the API server and a reader need them: structural, bounded, documented."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

Schema = dict[str, Any]
ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "crds").glob("*.yaml"))
CRDS = pytest.mark.parametrize(
    "crd", [yaml.safe_load(file.read_text()) for file in FILES], ids=[f.stem for f in FILES]
)


def root_schema(crd: Schema) -> Schema:
    schema: Schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every node of the schema except metadata, which belongs to Kubernetes."""
    yield path, schema
    for name, node in schema.get("properties", {}).items():
        if f"{path}.{name}" not in (".metadata", ".apiVersion", ".kind"):
            yield from nodes(node, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


def test_there_are_exactly_our_two_kinds() -> None:
    assert [file.stem for file in FILES] == ["imageprepulls", "nodeprepulls"]


@CRDS
def test_every_node_has_a_type_and_no_keyword_that_is_not_structural(crd: Schema) -> None:
    for path, node in nodes(root_schema(crd)):
        assert ("type" in node) != node.get("x-kubernetes-int-or-string", False), path
        assert not {"$ref", "oneOf", "allOf", "not", "nullable"} & set(node), path


@CRDS
def test_every_list_has_a_type_and_every_list_and_string_a_bound(crd: Schema) -> None:
    for path, node in nodes(root_schema(crd)):
        if node.get("type") == "array":
            assert node["x-kubernetes-list-type"] in ("map", "atomic"), path
            assert node["maxItems"] >= 1, path
        bounded = {"enum", "maxLength", "format"} & set(node)
        if node.get("type") == "string" or "x-kubernetes-int-or-string" in node:
            assert bounded, path
        if "additionalProperties" in node:
            assert node["maxProperties"] >= 1, path


@CRDS
def test_numbers_have_a_width_and_a_lower_bound(crd: Schema) -> None:
    for path, node in nodes(root_schema(crd)):
        if node.get("type") in ("integer", "number"):
            assert node["format"] in ("int32", "int64", "double"), path
            assert "minimum" in node, path


@CRDS
def test_status_lists_are_atomic_except_conditions(crd: Schema) -> None:
    status = root_schema(crd)["properties"]["status"]
    for path, node in nodes(status):
        if node.get("type") == "array":
            assert node["x-kubernetes-list-type"] == ("map" if path == ".conditions" else "atomic"), path


@CRDS
def test_status_refuses_no_word_that_a_newer_writer_may_use(crd: Schema) -> None:
    for path, node in nodes(root_schema(crd)["properties"]["status"]):
        assert not {"enum", "pattern", "default", "x-kubernetes-validations"} & set(node), path


@CRDS
def test_no_default_stands_inside_a_list(crd: Schema) -> None:
    for path, node in nodes(root_schema(crd)):
        assert "[]" not in path or "default" not in node, path


@CRDS
def test_every_field_is_described(crd: Schema) -> None:
    for path, node in nodes(root_schema(crd)):
        if not path.endswith(("[]", "{}")):
            assert len(node.get("description", "")) > 10, path
            assert node["description"].endswith((".", "]", "}")), path


@CRDS
def test_defaults_of_the_spec_are_named_in_its_documentation(crd: Schema) -> None:
    for path, node in nodes(root_schema(crd)):
        if "default" in node and node["default"] != {}:
            shown = str(node["default"]).removesuffix("%")
            assert shown.lower() in node["description"].lower(), path


@CRDS
def test_every_rule_says_what_is_wrong(crd: Schema) -> None:
    for path, node in nodes(root_schema(crd)):
        for rule in node.get("x-kubernetes-validations", []):
            assert len(rule["message"]) > 10, path


@CRDS
def test_status_is_a_subresource_and_columns_tell_the_story(crd: Schema) -> None:
    version = crd["spec"]["versions"][0]
    assert version["subresources"] == {"status": {}}
    columns = [column["name"] for column in version["additionalPrinterColumns"] if not column.get("priority")]
    expected = {
        "ImagePrepull": ["Ready", "Nodes", "Progress", "Failed", "Reason", "Age"],
        "NodePrepull": ["Ready", "Pulling", "Waiting", "Failed", "Agent", "Extraction", "Heartbeat", "Age"],
    }
    assert columns == expected[crd["spec"]["names"]["kind"]]
