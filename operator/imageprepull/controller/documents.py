"""One reference looked up at its registry: digest, then manifests and configs for the wanted platforms.

`resolve` decides when; this only asks and checks. Everything fetched is verified by digest and size by the client.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from imageprepull.controller.resolution import Layer, PlatformManifest, Resolution
from imageprepull.oci.descriptor import Descriptor
from imageprepull.oci.manifest import (
    InvalidManifest,
    Manifest,
    check_layers,
    parse_config,
    parse_index,
    parse_manifest,
)
from imageprepull.oci.platform import NoMatchingPlatform, Platform, check_platform
from imageprepull.oci.reference import Reference
from imageprepull.oci.selection import select
from imageprepull.registry.client import RegistryClient

NESTED_INDEXES = 3


async def look_up(
    registry: RegistryClient, reference: Reference, known: Resolution, platforms: Collection[str]
) -> Resolution:
    """What the registry says of a reference. A digest that is known already is not asked for again.

    Raises:
        RegistryError, InvalidManifest: nothing usable came.
    """
    if known.digest:
        reference = Reference.parse(reference.digest_record(known.digest))
    root = await registry.resolve(reference)
    found, missing = dict(known.platforms), dict(known.missing)
    for platform in platforms:
        if platform in found or platform in missing:
            continue
        try:
            found[platform] = await _manifest_for(registry, reference, root, Platform.parse(platform))
        except NoMatchingPlatform as error:
            missing[platform] = str(error)
    return Resolution(known.record, root.digest, found, missing)


async def _manifest_for(
    registry: RegistryClient, reference: Reference, root: Descriptor, wanted: Platform
) -> PlatformManifest:
    chosen = root
    for _ in range(NESTED_INDEXES + 1):
        if not chosen.is_index:
            break
        index = parse_index(await registry.fetch_document(reference, chosen))
        chosen = select(index.manifests, wanted)
    else:
        raise InvalidManifest("NotAnImage", f"more than {NESTED_INDEXES} indexes within one another")
    manifest: Manifest = parse_manifest(await registry.fetch_document(reference, chosen))
    config = parse_config(await registry.fetch_document(reference, manifest.config))
    check_layers(manifest, config)
    check_platform(config.platform, wanted)
    layers = tuple(Layer(layer.digest, layer.size) for layer in manifest.layers)
    return PlatformManifest(str(wanted), chosen.digest, manifest.config.digest, layers)


def failed(known: Resolution, reason: str, message: str, *, permanent: bool, sticky: bool) -> Resolution:
    """What is known after a failure. A digest that was rolled out before needs no registry to stay valid."""
    if sticky:
        return known
    return replace(known, reason=reason, message=message, permanent=permanent)
