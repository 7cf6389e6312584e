"""Events of the runtime. They are not replayed: whoever needs a state looks at it after subscribing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from imageprepull.runtime.protos import events_pb2, images_pb2, types_pb2
from imageprepull.runtime.rpc import Rpc

_NAMING = ("/images/", "/content/", "/snapshot/")


@dataclass(frozen=True, slots=True)
class Event:
    """`topic` such as /images/create.

    `subject` is the record's name for topics of images, the digest for those of content, the key for those of snapshots,
    else "".
    """

    topic: str
    namespace: str
    timestamp: datetime
    subject: str
    type_url: str
    payload: bytes


def _event(message: types_pb2.Envelope) -> Event:
    # containerd writes type URLs without a host part, so protobuf's own Unpack would refuse them.
    subject = ""
    if message.topic.startswith(_NAMING):
        # The events of content and snapshots begin with the same field (containerd api/events/*.proto).
        subject = images_pb2.ImageEvent.FromString(message.event.value).name
    return Event(
        message.topic,
        message.namespace,
        message.timestamp.ToDatetime(tzinfo=UTC),
        subject,
        message.event.type_url,
        message.event.value,
    )


class Events:
    """The event service. It serves all namespaces: filter by `namespace==k8s.io,topic~="/images/.*"`."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    async def subscribe(self, filters: Sequence[str] = ()) -> AsyncIterator[Event]:
        """Events until the caller stops or the connection breaks (Unavailable). Nothing says when it has begun."""
        envelopes = self._rpc.stream(
            "/containerd.services.events.v1.Events/Subscribe",
            events_pb2.SubscribeRequest(filters=filters),
            types_pb2.Envelope,
            operation="subscribe to events",
            deadline=None,
        )
        async for envelope in envelopes:
            yield _event(envelope)
