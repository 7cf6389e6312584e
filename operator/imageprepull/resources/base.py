"""What both kinds share: how a model maps onto JSON, metadata, conditions.

`frozen` and `kw_only` are repeated on every class because type checkers do not inherit them.
Models are msgspec Structs with camelCase JSON names. Absent and null mean the same, defaults are not written,
and unknown fields are ignored on reading, since a newer CRD may hold fields that this version does not know.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec


class Model(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True, frozen=True):
    """Base of every model: immutable, camelCase in JSON."""


class Metadata(Model, frozen=True, kw_only=True):
    """The part of ObjectMeta that ImagePrepull reads."""

    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Condition(Model, frozen=True, kw_only=True):
    """metav1.Condition. `last_transition_time` (RFC 3339) changes only when `status` does."""

    type: str
    status: str
    reason: str
    last_transition_time: str
    message: str = ""
    observed_generation: int = 0


M = TypeVar("M", bound=Model)


def decode(model: type[M], document: Any) -> M:
    """Read a model from plain JSON types.

    Raises:
        msgspec.ValidationError: names the field (`$.spec.images[0].image`) and what is wrong with it.
    """
    return msgspec.convert(document, model)


def encode(model: Model) -> dict[str, Any]:
    """The plain JSON types of a model; fields at their default are left out."""
    document: dict[str, Any] = msgspec.to_builtins(model)
    return document
