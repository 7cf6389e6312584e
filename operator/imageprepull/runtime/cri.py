"""The Container Runtime Interface on containerd's socket: the image as the kubelet sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from imageprepull.runtime.protos import cri_pb2 as pb
from imageprepull.runtime.rpc import Rpc

_IMAGES = "/runtime.v1.ImageService"
_RUNTIME = "/runtime.v1.RuntimeService"


@dataclass(frozen=True, slots=True)
class CriImage:
    """`id` is the digest of the config, `size` the compressed bytes. containerd before 1.6.24 pins nothing."""

    id: str
    repo_tags: tuple[str, ...]
    repo_digests: tuple[str, ...]
    size: int
    pinned: bool


@dataclass(frozen=True, slots=True)
class CriStatus:
    """`conditions` by type (RuntimeReady, NetworkReady); `details` holds JSON texts when asked verbosely."""

    conditions: Mapping[str, bool]
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageFilesystem:
    """Where a snapshotter keeps its layers, and how much they take in bytes."""

    mountpoint: str
    used_bytes: int


@dataclass(frozen=True, slots=True)
class CriContainer:
    """A container in any state. `images` are all the names, IDs and digests by which it says what it was made from."""

    id: str
    name: str
    pod: str
    images: frozenset[str]

    def __str__(self) -> str:
        """As people look for it."""
        return f"container {self.name or self.id}" + (f" of pod {self.pod}" if self.pod else "")


def _container(message: pb.Container) -> CriContainer:
    labels = message.labels
    pod = "/".join(
        part for part in (labels.get(f"io.kubernetes.pod.{key}") for key in ("namespace", "name")) if part
    )
    images = frozenset(filter(None, (message.image.image, message.image_ref, message.image_id)))
    return CriContainer(message.id, message.metadata.name, pod, images)


def _image(message: pb.Image) -> CriImage:
    return CriImage(
        message.id, tuple(message.repo_tags), tuple(message.repo_digests), message.size, message.pinned
    )


class Cri:
    """Image and runtime service of the CRI. A runtime with the CRI plug-in disabled answers Unsupported."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    async def image_status(self, ref: str) -> CriImage | None:
        """The image by reference, ID or prefix of an ID; None when the kubelet would not find it."""
        answer = await self._rpc.unary(
            f"{_IMAGES}/ImageStatus",
            pb.ImageStatusRequest(image=pb.ImageSpec(image=ref)),
            pb.ImageStatusResponse,
            operation=f"ask the CRI for {ref}",
        )
        return _image(answer.image) if answer.HasField("image") else None

    async def list_images(self) -> list[CriImage]:
        """Every image that the kubelet sees."""
        answer = await self._rpc.unary(
            f"{_IMAGES}/ListImages",
            pb.ListImagesRequest(),
            pb.ListImagesResponse,
            operation="list CRI images",
        )
        return [_image(image) for image in answer.images]

    async def pull_image(self, ref: str, deadline: float) -> str:
        """Have the runtime pull an image, without credentials, within `deadline` seconds; the image's ID."""
        answer = await self._rpc.unary(
            f"{_IMAGES}/PullImage",
            pb.PullImageRequest(image=pb.ImageSpec(image=ref)),
            pb.PullImageResponse,
            operation=f"pull {ref} through the CRI",
            deadline=deadline,
        )
        return answer.image_ref

    async def remove_image(self, ref: str) -> None:
        """Remove every record of the image and wait for the garbage collection, as the kubelet does."""
        await self._rpc.unary(
            f"{_IMAGES}/RemoveImage",
            pb.RemoveImageRequest(image=pb.ImageSpec(image=ref)),
            pb.RemoveImageResponse,
            operation=f"remove {ref} through the CRI",
            deadline=300.0,
        )

    async def list_containers(self) -> list[CriContainer]:
        """Every container, also those that have ended and are not removed yet; no sandboxes."""
        answer = await self._rpc.unary(
            f"{_RUNTIME}/ListContainers",
            pb.ListContainersRequest(),
            pb.ListContainersResponse,
            operation="list CRI containers",
        )
        return [_container(container) for container in answer.containers]

    async def image_fs_info(self) -> list[ImageFilesystem]:
        """The file systems of images; the first is that of the default snapshotter."""
        answer = await self._rpc.unary(
            f"{_IMAGES}/ImageFsInfo",
            pb.ImageFsInfoRequest(),
            pb.ImageFsInfoResponse,
            operation="ask the CRI for image file systems",
        )
        return [
            ImageFilesystem(usage.fs_id.mountpoint, usage.used_bytes.value)
            for usage in answer.image_filesystems
        ]

    async def status(self, *, verbose: bool = False) -> CriStatus:
        """Whether the runtime is ready; on containerd 1.x the verbose details hold its configuration."""
        answer = await self._rpc.unary(
            f"{_RUNTIME}/Status",
            pb.StatusRequest(verbose=verbose),
            pb.StatusResponse,
            operation="ask for the CRI status",
        )
        conditions = {condition.type: condition.status for condition in answer.status.conditions}
        return CriStatus(conditions, dict(answer.info))
