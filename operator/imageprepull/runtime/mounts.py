"""Mounts as the snapshot service returns them and the diff service takes them."""

from __future__ import annotations

from dataclasses import dataclass

from imageprepull.runtime.protos import types_pb2 as pb


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount of a snapshot: `bind` where there is no parent, `overlay` above one."""

    type: str
    source: str
    options: tuple[str, ...]
    target: str = ""


def from_message(message: pb.Mount) -> Mount:
    """A mount from the wire."""
    return Mount(message.type, message.source, tuple(message.options), message.target)


def to_message(mount: Mount) -> pb.Mount:
    """A mount for the wire."""
    return pb.Mount(type=mount.type, source=mount.source, options=mount.options, target=mount.target)
