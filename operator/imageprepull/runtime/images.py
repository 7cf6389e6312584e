"""Image records: the names under which the runtime, and through it the kubelet, finds an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from imageprepull.oci.descriptor import Descriptor
from imageprepull.runtime.errors import NotFound
from imageprepull.runtime.protos import images_pb2 as pb
from imageprepull.runtime.protos import types_pb2
from imageprepull.runtime.rpc import DEADLINE, Rpc

_SERVICE = "/containerd.services.images.v1.Images"
COLLECTION_DEADLINE = 300.0


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """`name` is a reference or an image ID, `target` the index or manifest."""

    name: str
    target: Descriptor
    labels: Mapping[str, str] = field(default_factory=dict)


def _record(message: pb.Image) -> ImageRecord:
    target = message.target
    descriptor = Descriptor(
        media_type=target.media_type,
        digest=target.digest,
        size=target.size,
        annotations=dict(target.annotations),
    )
    return ImageRecord(message.name, descriptor, dict(message.labels))


def _image(name: str, target: Descriptor, labels: Mapping[str, str]) -> pb.Image:
    descriptor = types_pb2.Descriptor(media_type=target.media_type, digest=target.digest, size=target.size)
    return pb.Image(name=name, target=descriptor, labels=dict(labels))


class Images:
    """The image service under one namespace and lease."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    async def get(self, name: str) -> ImageRecord | None:
        """The record, or None."""
        try:
            answer = await self._rpc.unary(
                f"{_SERVICE}/Get",
                pb.GetImageRequest(name=name),
                pb.GetImageResponse,
                operation=f"look up image {name}",
            )
        except NotFound:
            return None
        return _record(answer.image)

    async def list(self, filters: Sequence[str] = ()) -> list[ImageRecord]:
        """The records that match any of the filters (`name~=…`, `target.digest==…`, `labels."key"==value`)."""
        answer = await self._rpc.unary(
            f"{_SERVICE}/List",
            pb.ListImagesRequest(filters=filters),
            pb.ListImagesResponse,
            operation="list images",
        )
        return [_record(image) for image in answer.images]

    async def create(self, name: str, target: Descriptor, labels: Mapping[str, str]) -> ImageRecord:
        """Make `name` mean `target`.

        Raises:
            AlreadyExists: there is such a record, which stays as it is.
        """
        created = await self._rpc.unary(
            f"{_SERVICE}/Create",
            pb.CreateImageRequest(image=_image(name, target, labels)),
            pb.CreateImageResponse,
            operation=f"create image {name}",
            settle=True,
        )
        return _record(created.image)

    async def update(self, name: str, target: Descriptor, labels: Mapping[str, str]) -> ImageRecord:
        """Make a record that exists mean `target`, with these labels; its others stay. A missing one is NotFound."""
        return await self._update(
            _image(name, target, labels), ["target", *(f"labels.{key}" for key in labels)]
        )

    async def update_labels(self, name: str, labels: Mapping[str, str]) -> ImageRecord:
        """Set these labels and leave the others; an empty value removes one."""
        # The server checks the target of every update, masked or not.
        present = await self.get(name)
        if present is None:
            raise NotFound(f"label image {name}", "no such image")
        return await self._update(_image(name, present.target, labels), [f"labels.{key}" for key in labels])

    async def _update(self, image: pb.Image, paths: Sequence[str]) -> ImageRecord:
        answer = await self._rpc.unary(
            f"{_SERVICE}/Update",
            pb.UpdateImageRequest(image=image, update_mask=FieldMask(paths=paths)),
            pb.UpdateImageResponse,
            operation=f"update image {image.name}",
        )
        return _record(answer.image)

    async def delete(self, name: str, *, sync: bool = False) -> None:
        """Delete a record; with `sync`, wait until a garbage collection has run. A missing one is NotFound."""
        await self._rpc.unary(
            f"{_SERVICE}/Delete",
            pb.DeleteImageRequest(name=name, sync=sync),
            Empty,
            operation=f"delete image {name}",
            deadline=COLLECTION_DEADLINE if sync else DEADLINE,
        )
