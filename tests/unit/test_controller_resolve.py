"""The resolver against a FAKE registry client that serves real documents from memory, and against HTTP where that counts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, cast

import msgspec

from imageprepull.controller.images import WantedImage
from imageprepull.controller.resolve import Patience, Resolver
from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.reference import Reference
from imageprepull.registry.client import RegistryClient
from imageprepull.registry.errors import ErrorKind, RegistryError
from imageprepull.registry.host import RegistryHost
from imageprepull.registry.proxies import Proxies
from imageprepull.resources.imageprepull import ImagePrepullStatus, ImageStatus, LayerSummary, PlatformImage
from tests.testbed.faulty_registry import Fault, FaultyRegistry
from tests.testbed.images import Blob, BuiltImage, BuiltIndex, LayerSpec, build_image, build_index
from tests.testbed.registry_server import FixedHosts

NOT_FOUND = RegistryError("MANIFEST_UNKNOWN", reason="NotFound", kind=ErrorKind.PERMANENT)
BUSY = RegistryError("slow down", reason="Throttled", kind=ErrorKind.THROTTLED, retry_after=0.05)


class FakeRegistry:
    """Answers by tag or digest; what is an exception is raised, and forgotten."""

    def __init__(self) -> None:
        self.named: dict[str, Blob | Exception] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.gate: asyncio.Event | None = None
        """What was decided before it opens is said after it."""
        self.at_gate = False

    def serve(self, name: str, image: BuiltImage | BuiltIndex) -> str:
        images = image.images if isinstance(image, BuiltIndex) else (image,)
        top = image.index if isinstance(image, BuiltIndex) else image.manifest
        for one in (top, *(blob for part in images for blob in (part.manifest, part.config))):
            self.blobs[one.digest] = one.read()
            self.named[one.digest] = one
        self.named[name] = top
        return top.digest

    def hold(self, until: Mapping[str, float]) -> None:
        pass

    async def resolve(self, reference: Reference) -> Descriptor:
        name = reference.digest or reference.tag or ""
        self.asked.append(name)
        found = self.named.get(name, NOT_FOUND)
        if self.gate is not None:
            self.at_gate = True
            await self.gate.wait()
        if isinstance(found, Exception):
            if found is BUSY:
                del self.named[name]
            raise found
        return Descriptor(found.media_type, found.digest, found.size)

    async def fetch_document(self, reference: Reference, descriptor: Descriptor) -> bytes:
        self.asked.append(descriptor.digest)
        return self.blobs[descriptor.digest]


def wanted(text: str) -> WantedImage:
    return WantedImage(text, Reference.parse(text))


@contextlib.asynccontextmanager
async def resolving(
    registry: FakeRegistry | RegistryClient,
    holds: Callable[[], Mapping[str, float]] = dict,
    backoff: float = 0.05,
) -> AsyncIterator[tuple[Resolver, Callable[[Callable[[], Any]], Any]]]:
    changed = asyncio.Event()
    patience = Patience(timeout=5, backoff=backoff, most=max(backoff, 0.1))
    client = cast("RegistryClient", registry)
    resolver = Resolver(client, on_change=lambda _: changed.set(), patience=patience, parallel=2, holds=holds)

    async def until(check: Callable[[], Any]) -> Any:
        async with asyncio.timeout(30):
            while not (answer := check()):
                changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), 0.05)
        return answer

    task = asyncio.create_task(resolver.run())
    try:
        yield resolver, until
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_tag_becomes_digest_and_layers_once() -> None:
    registry = FakeRegistry()
    image = build_image([LayerSpec({"a": b"1"}), LayerSpec({"b": b"2"})])
    top = registry.serve("1", image)
    async with resolving(registry) as (resolver, until):
        resolver.want([wanted("r.io/app:1")], ["linux/amd64"])
        found = await until(lambda: resolver.resolutions.get("r.io/app:1"))
        assert found.digest == top
        layers = found.platforms["linux/amd64"].layers
        assert [(one.digest, one.size) for one in layers] == [
            (layer.blob.digest, layer.blob.size) for layer in image.layers
        ]
        asked = len(registry.asked)
        resolver.want([wanted("r.io/app:1")], ["linux/amd64"])
        await asyncio.sleep(0.05)
        assert len(registry.asked) == asked


async def test_an_index_gives_each_platform_its_manifest_and_names_what_it_lacks() -> None:
    registry = FakeRegistry()
    parts = [build_image([LayerSpec({"a": name.encode()})], architecture=name) for name in ("amd64", "arm64")]
    top = registry.serve("1", build_index(parts))
    async with resolving(registry) as (resolver, until):
        resolver.want([wanted("r.io/app:1")], ["linux/amd64"])
        await until(lambda: resolver.resolutions.get("r.io/app:1"))
        registry.serve("1", build_image([LayerSpec({"moved": b""})]))
        resolver.want([wanted("r.io/app:1")], ["linux/amd64", "linux/arm64", "linux/s390x"])
        found = await until(
            lambda: resolver.resolutions["r.io/app:1"].missing and resolver.resolutions["r.io/app:1"]
        )
    assert found.digest == top, "the tag was asked for again"
    assert {name: one.manifest for name, one in found.platforms.items()} == {
        "linux/amd64": parts[0].digest,
        "linux/arm64": parts[1].digest,
    }
    assert "linux/arm64" in found.missing["linux/s390x"]


async def test_one_bad_image_stops_no_other_and_heals() -> None:
    registry = FakeRegistry()
    registry.serve("good", build_image([LayerSpec({"a": b"1"})]))
    registry.named["busy"] = BUSY
    async with resolving(registry) as (resolver, until):
        resolver.want(
            [wanted("r.io/app:bad"), wanted("r.io/app:busy"), wanted("r.io/app:good")], ["linux/amd64"]
        )
        bad = await until(lambda: resolver.resolutions.get("r.io/app:bad"))
        assert (bad.reason, bad.permanent, bad.digest) == ("NotFound", True, "")
        assert (await until(lambda: resolver.resolutions.get("r.io/app:busy"))).permanent is False
        await until(lambda: resolver.resolutions.get("r.io/app:good"))
        registry.serve("bad", build_image([LayerSpec({"b": b"1"})]))
        await until(lambda: resolver.resolutions["r.io/app:bad"].digest)
        assert resolver.resolutions["r.io/app:bad"].reason == ""


async def test_a_defect_that_one_image_meets_is_its_own_failure() -> None:
    registry = FakeRegistry()
    registry.named["odd"] = IndexError("list index out of range")
    async with resolving(registry) as (resolver, until):
        resolver.want([wanted("r.io/app:odd")], ["linux/amd64"])
        odd = await until(lambda: resolver.resolutions.get("r.io/app:odd"))
        assert (odd.reason, odd.permanent, odd.digest) == ("InternalError", False, "")
        top = registry.serve("odd", build_image([LayerSpec({"b": b"1"})]))
        assert await until(lambda: resolver.resolutions["r.io/app:odd"].digest) == top


def served(registry: FaultyRegistry) -> tuple[str, str]:
    """An image in a registry over HTTP: its reference and its digest."""
    image = build_image([LayerSpec({"a": b"1"})])
    registry.blobs[image.config.digest] = image.config.read()
    for name in ("1", image.digest):
        registry.manifests[name] = (image.manifest.media_type, image.manifest.read())
    return f"{registry.address}/app:1", image.digest


def client_of(registry: FaultyRegistry) -> RegistryClient:
    return RegistryClient(FixedHosts(RegistryHost(f"http://{registry.address}/v2")), proxies=Proxies())


async def test_an_answer_that_is_not_valid_http_is_a_reason_in_the_status_and_asked_for_again() -> None:
    async with FaultyRegistry() as registry, client_of(registry) as client, resolving(client) as world:
        resolver, until = world
        name, digest = served(registry)
        registry.faults["1"] = [Fault(lengths="twice") for _ in range(3)]
        resolver.want([wanted(name)], ["linux/amd64"])
        ill = await until(lambda: resolver.resolutions.get(name))
        assert (ill.reason, ill.permanent, ill.digest) == ("ProtocolError", True, "")
        assert ill.message.startswith(f"{registry.address} HEAD /v2/app/manifests/1: not valid HTTP")
        assert ill.message.endswith("named by its digest, the nodes' own runtimes may still pull it")
        assert await until(lambda: resolver.resolutions[name].digest) == digest
        assert resolver.resolutions[name].reason == ""


async def test_a_registry_that_nodes_were_told_to_leave_alone_is_not_asked_by_the_operator_either() -> None:
    async with FaultyRegistry() as registry, client_of(registry) as client:
        held = {registry.address: time.time() + 3600}
        async with resolving(client, lambda: held) as (resolver, until):
            name, digest = served(registry)
            resolver.want([wanted(name)], ["linux/amd64"])
            waiting = await until(lambda: resolver.resolutions.get(name))
            assert (waiting.reason, waiting.permanent) == ("RegistryHeld", False)
            assert registry.requests == []
        async with resolving(client) as (resolver, until):
            resolver.want([wanted(name)], ["linux/amd64"])
            assert await until(lambda: resolver.resolutions.get(name))
            assert resolver.resolutions[name].digest == digest


async def test_an_order_to_retry_asks_at_once_and_only_what_is_answered_after_it_counts() -> None:
    registry = FakeRegistry()
    async with resolving(registry, backoff=1000) as (resolver, until):
        resolver.want([wanted("r.io/app:late")], ["linux/amd64"])
        await until(lambda: resolver.resolutions.get("r.io/app:late"))
        resolver.retry(["r.io/app:late", "r.io/app:other"], "n1")
        assert resolver.resolutions["r.io/app:late"].reason == "", "the failure of before says nothing now"
        await until(lambda: resolver.resolutions["r.io/app:late"].reason)
        resolver.retry(["r.io/app:late"], "n1")
        assert resolver.resolutions["r.io/app:late"].reason == "NotFound", "an order is obeyed once"
        registry.gate = asyncio.Event()
        resolver.retry(["r.io/app:late"], "n2")
        await until(lambda: registry.at_gate)
        told: list[str] = []
        resolver._on_change = lambda record: told.append(resolver.resolutions[record].reason)
        resolver.retry(["r.io/app:late"], "n3")
        registry.serve("late", build_image([LayerSpec({"a": b"1"})]))
        registry.gate.set()
        await until(lambda: resolver.resolutions["r.io/app:late"].digest)
        assert told == [""], "what was asked before the order has failed, and that is not shown"
        asked = len(registry.asked)
        resolver.retry(["r.io/app:late"], "n4")
        await asyncio.sleep(0.05)
        assert len(registry.asked) == asked, "nothing is lacking"


async def test_an_ambiguous_manifest_is_refused() -> None:
    registry = FakeRegistry()
    image = build_image([LayerSpec({"a": b"1"})])
    document = msgspec.json.decode(image.manifest.read())
    data = msgspec.json.encode({**document, "manifests": [document["config"]]})
    registry.serve("1", image)
    registry.blobs[image.manifest.digest] = data
    async with resolving(registry) as (resolver, until):
        resolver.want([wanted("r.io/app:1")], ["linux/amd64"])
        found = await until(lambda: resolver.resolutions.get("r.io/app:1"))
    assert (found.reason, found.digest) == ("AmbiguousManifest", "")


def status_of(digest: str, *platforms: str) -> ImagePrepullStatus:
    known = [
        PlatformImage(
            platform=platform,
            manifest="sha256:" + "b" * 64,
            config="sha256:" + "c" * 64,
            size=7,
            layers=[LayerSummary(digest="sha256:" + "d" * 64, size=7)],
        )
        for platform in platforms
    ]
    return ImagePrepullStatus(images=[ImageStatus(image="r.io/app:1", digest=digest, platforms=known)])


async def test_what_is_known_gives_way_to_a_status_only_after_a_doubt_and_once() -> None:
    """A tag that moved and was resolved anew after a backup was made means in it what it meant."""
    images = [wanted("r.io/app:1")]
    later, backup = ("sha256:" + letter * 64 for letter in "ef")
    async with resolving(FakeRegistry()) as (resolver, _):
        resolver.adopt(images, status_of(later, "linux/amd64"))
        resolver.want(images, ["linux/amd64"])
        resolver.adopt(images, status_of(backup, "linux/amd64"))
        assert resolver.resolutions["r.io/app:1"].digest == later
        resolver.doubt()
        resolver.adopt(images, ImagePrepullStatus())
        assert resolver.resolutions["r.io/app:1"].digest == later
        resolver.adopt(images, status_of(backup, "linux/amd64"))
        resolver.adopt(images, status_of(later, "linux/amd64"))
        assert resolver.resolutions["r.io/app:1"].digest == backup, "tags are one per cluster"
        resolver.doubt()
        resolver.adopt(images, status_of(backup))
        assert resolver.resolutions["r.io/app:1"].platforms, "what is said of the same digest is not lost"
        resolver.doubt()
        resolver.want(images, ["linux/amd64"])
        resolver.adopt(images, status_of(later, "linux/amd64"))
        assert resolver.resolutions["r.io/app:1"].digest == backup


async def test_a_look_up_that_was_under_way_does_not_take_back_what_a_status_said() -> None:
    registry = FakeRegistry()
    images = [wanted("r.io/app:1")]
    later = registry.serve(
        "1",
        build_index([build_image([LayerSpec({"a": b""})], architecture=one) for one in ("amd64", "arm64")]),
    )
    backup = "sha256:" + "e" * 64
    registry.gate = asyncio.Event()
    async with resolving(registry) as (resolver, until):
        resolver.adopt(images, status_of(later, "linux/amd64"))
        resolver.want(images, ["linux/amd64", "linux/arm64"])
        await until(lambda: registry.at_gate)
        resolver.doubt()
        resolver.adopt(images, status_of(backup, "linux/amd64", "linux/arm64"))
        registry.gate.set()
        await asyncio.sleep(0.1)
        assert resolver.resolutions["r.io/app:1"].digest == backup


async def test_what_a_status_says_stays_and_needs_no_registry() -> None:
    registry = FakeRegistry()
    registry.serve("1", build_image([LayerSpec({"moved": b""})]))
    old = "sha256:" + "a" * 64
    platform = PlatformImage(
        platform="linux/amd64",
        manifest="sha256:" + "b" * 64,
        config="sha256:" + "c" * 64,
        size=7,
        layers=[LayerSummary(digest="sha256:" + "d" * 64, size=7)],
    )
    status = ImagePrepullStatus(images=[ImageStatus(image="r.io/app:1", digest=old, platforms=[platform])])
    async with resolving(registry) as (resolver, until):
        resolver.adopt([wanted("r.io/app:1")], status)
        resolver.want([wanted("r.io/app:1")], ["linux/amd64"])
        await asyncio.sleep(0.1)
        assert registry.asked == []
        assert resolver.resolutions["r.io/app:1"].digest == old
        # Its layers for another platform are gone from the registry: the digest stays all the same.
        resolver.want([wanted("r.io/app:1")], ["linux/amd64", "linux/arm64"])
        await until(lambda: registry.asked)
        assert registry.asked[0] == old
        await asyncio.sleep(0.1)
        assert (resolver.resolutions["r.io/app:1"].digest, resolver.resolutions["r.io/app:1"].reason) == (
            old,
            "",
        )
