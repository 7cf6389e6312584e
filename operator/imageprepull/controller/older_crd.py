"""What a NodePrepull CRD that is older than this operator has no place for. Pure; `trust` reads the CRD.

Charts may leave CRDs alone (`crds.enabled=false`), so an upgrade can leave an old one behind. Server-side apply does not
prune what the schema lacks as other writes do: it answers 500, and the node would get nothing at all.
"""

from __future__ import annotations

import typing
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from imageprepull.resources import VERSION
from imageprepull.resources.base import Model, decode, encode
from imageprepull.resources.nodeprepull import NodePrepullSpec

Path = tuple[str, ...]
"""Names of fields from the spec on; the items of a list have the list's."""


def lacking(crd: Mapping[str, Any]) -> frozenset[Path]:
    """The fields of our spec that a CRD's schema does not declare."""
    versions = crd.get("spec", {}).get("versions") or ()
    schema: dict[str, Any] = next(
        (one.get("schema", {}) for one in versions if one.get("name") == VERSION), {}
    )
    spec = schema.get("openAPIV3Schema", {}).get("properties", {}).get("spec")
    # Whatever that is, it is no older version of ours.
    return frozenset(_lacking(NodePrepullSpec, spec, ())) if spec else frozenset()


def _lacking(model: type[Model], schema: Mapping[str, Any], path: Path) -> list[Path]:
    properties = schema.get("properties") or {}
    hints = typing.get_type_hints(model)
    found: list[Path] = []
    for field in msgspec.structs.fields(model):
        here = (*path, field.encode_name)
        declared = properties.get(field.encode_name)
        if declared is None:
            found.append(here)
        elif inner := _model_in(hints[field.name]):
            found += _lacking(inner, declared.get("items", declared), here)
    return found


def _model_in(annotation: Any) -> type[Model] | None:
    """The model of a field, or of the items of its list."""
    for kind in (annotation, *typing.get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Model):
            return kind
    return None


def without(spec: NodePrepullSpec, fields: Collection[Path]) -> NodePrepullSpec:
    """A spec without some fields: they have their defaults, as whoever reads it back has them."""
    if not fields:
        return spec
    document = encode(spec)
    for path in fields:
        _drop(document, path)
    return decode(NodePrepullSpec, document)


def _drop(document: Any, path: Path) -> None:
    if isinstance(document, list):
        for one in document:
            _drop(one, path)
    elif isinstance(document, dict) and len(path) == 1:
        document.pop(path[0], None)
    elif isinstance(document, dict):
        _drop(document.get(path[0]), path[1:])
