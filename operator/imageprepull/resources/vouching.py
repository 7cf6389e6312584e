"""How the operator's leader says on its Lease that the orders which stand are its own. Read by every agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imageprepull.resources import GROUP

VOUCHED = f"{GROUP}/orders-vouched"
"""Annotation on the operator's Lease: the `renewTime` of the last renewal that vouched. An older one says nothing."""


def vouches(lease: Mapping[str, Any]) -> bool:
    """Whether a Lease's last renewal vouches. One of an operator that knows of no such thing does not."""
    renewed = (lease.get("spec") or {}).get("renewTime")
    word = (lease.get("metadata", {}).get("annotations") or {}).get(VOUCHED)
    return bool(renewed) and word == renewed
