"""The images of an ImagePrepull's spec as references, or what is wrong with the spec. Pure.

A spec that the schema accepted can still be wrong: a reference that containerd refuses, one image under two
spellings, a field that this version does not act on. Nothing is planned anew for such an object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from imageprepull.oci.reference import InvalidReference, Reference
from imageprepull.resources.base import encode
from imageprepull.resources.imageprepull import ImagePrepullSpec
from imageprepull.resources.unsupported import unsupported


@dataclass(frozen=True, slots=True)
class WantedImage:
    """One image of a spec. `image` is the user's text, `record` the name under which containerd keeps it."""

    image: str
    reference: Reference

    @property
    def record(self) -> str:
        """`docker.io/library/nginx:1.27`, or `docker.io/library/nginx@sha256:…` where a digest was given."""
        return self.reference.canonical


@dataclass(frozen=True, slots=True)
class BadSpec:
    """Why nothing is planned for a spec: a condition's reason and a message that names field and value."""

    reason: str
    message: str


def read_images(spec: ImagePrepullSpec) -> tuple[WantedImage, ...] | BadSpec:
    """The references of a spec in its own order, or the first thing that is wrong with it."""
    refused = unsupported(spec)
    if refused:
        document = encode(spec)
        named = "; ".join(f"{one.field}={_value(document, one.field)}: {one.reason}" for one in refused)
        return BadSpec("FieldNotSupported", f"not acted on yet: {named}")
    found: dict[str, tuple[int, WantedImage]] = {}
    for index, entry in enumerate(spec.images):
        field = f"spec.images[{index}].image"
        try:
            reference = Reference.parse(entry.image)
        except InvalidReference as error:
            return BadSpec("InvalidReference", f"{field} {entry.image!r}: {error}")
        wanted = WantedImage(entry.image, reference)
        if wanted.record in found:
            earlier, same = found[wanted.record]
            return BadSpec(
                "DuplicateImage",
                f"{field} {entry.image!r} is the same image as spec.images[{earlier}].image {same.image!r}: "
                f"both are {wanted.record}",
            )
        found[wanted.record] = (index, wanted)
    return tuple(wanted for _, wanted in found.values())


def _value(document: dict[str, Any], field: str) -> str:
    """The value at a path like `spec.rollout.seedNodes` or `spec.images[].pullPolicy`, as JSON."""
    value: Any = document
    for step in field.split(".")[1:]:
        name, listed = step.removesuffix("[]"), step.endswith("[]")
        if isinstance(value, list):
            value = [one.get(name) for one in value]
        else:
            value = value.get(name, [] if listed else None)
    return msgspec.json.encode(value).decode()
