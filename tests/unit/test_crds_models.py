"""The typed models and the CRDs are one contract: same fields, same defaults, and what one writes the other takes."""

from __future__ import annotations

import functools
import math
import types
import typing
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imageprepull.resources.base import Model, decode, encode
from imageprepull.resources.imageprepull import ImagePrepullSpec, ImagePrepullStatus
from imageprepull.resources.nodeprepull import NodePrepullSpec, NodePrepullStatus

CRDS = Path(__file__).parents[2] / "crds"
Schema = dict[str, Any]
CASES = {
    "ImagePrepull.spec": ("imageprepulls", "spec", ImagePrepullSpec),
    "ImagePrepull.status": ("imageprepulls", "status", ImagePrepullStatus),
    "NodePrepull.spec": ("nodeprepulls", "spec", NodePrepullSpec),
    "NodePrepull.status": ("nodeprepulls", "status", NodePrepullStatus),
}
HALVES = pytest.mark.parametrize(("plural", "half", "model"), CASES.values(), ids=CASES)


def schema_of(plural: str, half: str) -> Schema:
    crd = yaml.safe_load((CRDS / f"{plural}.yaml").read_text())
    schema: Schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][half]
    return schema


def closed(schema: Schema) -> Schema:
    """The schema for jsonschema, refusing unknown fields where the API server would prune them."""
    copy = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if "properties" in schema:
        copy["properties"] = {name: closed(node) for name, node in schema["properties"].items()}
        copy["additionalProperties"] = False
    if "items" in schema:
        copy["items"] = closed(schema["items"])
    return copy


def unwrapped(annotation: Any) -> Any:
    """The type of a field without `| None`; `int | str` stays as it is."""
    if isinstance(annotation, types.UnionType):
        rest = [part for part in annotation.__args__ if part is not type(None)]
        return rest[0] if len(rest) == 1 else annotation
    return annotation


def is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Model)


def pairs(model: type[Model], schema: Schema, path: str) -> Iterator[tuple[str, type[Model], Schema]]:
    """Every model that is reachable, with its schema node."""
    yield path, model, schema
    hints = typing.get_type_hints(model)
    for field in msgspec.structs.fields(model):
        node = schema["properties"].get(field.encode_name)
        annotation = unwrapped(hints[field.name])
        if node is None:
            continue
        if is_model(annotation):
            yield from pairs(annotation, node, f"{path}.{field.encode_name}")
        elif typing.get_origin(annotation) is list and is_model(annotation.__args__[0]):
            yield from pairs(annotation.__args__[0], node["items"], f"{path}.{field.encode_name}[]")


@HALVES
def test_fields_are_the_same(plural: str, half: str, model: type[Model]) -> None:
    for path, found, schema in pairs(model, schema_of(plural, half), half):
        names = {field.encode_name for field in msgspec.structs.fields(found)}
        assert names == set(schema["properties"]), f"{path} ({found.__name__})"


@HALVES
def test_what_the_model_requires_the_schema_requires_and_the_reverse(
    plural: str, half: str, model: type[Model]
) -> None:
    for path, found, schema in pairs(model, schema_of(plural, half), half):
        required = {field.encode_name for field in msgspec.structs.fields(found) if field.required}
        # The one field that Kubernetes requires of a selector on names and our model lets be empty.
        assert set(schema.get("required", [])) - {"values"} == required, f"{path} ({found.__name__})"


@HALVES
def test_defaults_are_the_same(plural: str, half: str, model: type[Model]) -> None:
    for path, found, schema in pairs(model, schema_of(plural, half), half):
        for field in msgspec.structs.fields(found):
            node = schema["properties"][field.encode_name]
            where = f"{path}.{field.encode_name}"
            if "default" in node:
                assert node["default"] == msgspec.to_builtins(default_of(field)), where
            elif "[]" not in path and plural == "imageprepulls" and half == "spec":
                # Outside of lists, what an absent field means is written into the object, except for emptiness.
                assert default_of(field) in (None, "", [], {}), where


def default_of(field: msgspec.structs.FieldInfo) -> Any:
    if field.required:
        return None
    return field.default_factory() if callable(field.default_factory) else field.default


@HALVES
def test_enumerations_are_the_same(plural: str, half: str, model: type[Model]) -> None:
    for path, found, schema in pairs(model, schema_of(plural, half), half):
        hints = typing.get_type_hints(found)
        for field in msgspec.structs.fields(found):
            annotation = unwrapped(hints[field.name])
            if isinstance(annotation, type) and issubclass(annotation, StrEnum):
                allowed = schema["properties"][field.encode_name]["enum"]
                assert {member.value for member in annotation} == set(allowed), f"{path}.{field.encode_name}"


@HALVES
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_models_round_trip_through_the_schema(
    plural: str, half: str, model: type[Model], data: st.DataObject
) -> None:
    written = data.draw(objects(plural, half, model))
    document = encode(written)
    validator(plural, half).validate(document)
    assert decode(model, document) == written


@HALVES
def test_a_field_that_the_schema_lacks_is_found(plural: str, half: str, model: type[Model]) -> None:
    with pytest.raises(jsonschema.ValidationError, match="nonsense"):
        validator(plural, half).validate({"nonsense": 1})


@functools.cache
def objects(plural: str, half: str, model: type[Model]) -> st.SearchStrategy[Model]:
    return models(model, schema_of(plural, half))


@functools.cache
def validator(plural: str, half: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(closed(schema_of(plural, half)))


def models(model: type[Model], schema: Schema) -> st.SearchStrategy[Model]:
    """Objects of the model within the schema's bounds; every field is set or left at its default."""
    hints = typing.get_type_hints(model)
    required: dict[str, st.SearchStrategy[Any]] = {}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for field in msgspec.structs.fields(model):
        values = fields(unwrapped(hints[field.name]), schema["properties"][field.encode_name])
        # The schema may demand more than the model, which serves several places (a selector's `values`).
        demanded = field.required or field.encode_name in schema.get("required", ())
        (required if demanded else optional)[field.name] = values
    return st.fixed_dictionaries(required, optional=optional).map(lambda chosen: model(**chosen))


def fields(annotation: Any, node: Schema) -> st.SearchStrategy[Any]:
    """Values of one field, from its type in the model and its bounds in the schema."""
    origin = typing.get_origin(annotation)
    if is_model(annotation):
        return models(annotation, node)
    if origin is list:
        most = min(node["maxItems"], node.get("minItems", 0) + 2)
        return st.lists(
            fields(annotation.__args__[0], node["items"]), min_size=node.get("minItems", 0), max_size=most
        )
    if origin is dict:
        values = fields(annotation.__args__[1], node["additionalProperties"])
        return st.dictionaries(st.text("abc/.-", min_size=1, max_size=8), values, max_size=2)
    if isinstance(annotation, types.UnionType):
        return st.integers(1, 100) | st.sampled_from(["10%", "5%"])
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return st.sampled_from(list(annotation))
    return scalars(annotation, node)


def scalars(annotation: type, node: Schema) -> st.SearchStrategy[Any]:  # noqa: PLR0911 - a table of kinds
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        widest = 2**31 - 1 if node["format"] == "int32" else 2**63 - 1
        return st.integers(node["minimum"], node.get("maximum", widest))
    if annotation is float:
        return st.floats(0, 1e9).filter(lambda value: value == 0 or not math.isclose(value, 0))
    if "enum" in node:
        return st.sampled_from(node["enum"])
    if node.get("format") == "date-time":
        return st.datetimes().map(lambda when: when.isoformat(timespec="seconds") + "Z")
    if "pattern" in node:
        return st.from_regex(node["pattern"], fullmatch=True).filter(
            lambda text: len(text) <= node["maxLength"]
        )
    return st.text(min_size=node.get("minLength", 0), max_size=min(node["maxLength"], 20))
