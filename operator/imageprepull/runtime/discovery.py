"""How this node's runtime is set up, asked from itself: which snapshotter the kubelet's images live on, and where.

containerd 1.x tells its CRI configuration in the verbose status. 2.x does not: there the mount point of the image
file system names the snapshotter, and a plug-in's exports the rest (containerd.md §3.6).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from imageprepull.runtime.connection import Containerd
from imageprepull.runtime.cri import ImageFilesystem
from imageprepull.runtime.errors import Unsupported
from imageprepull.runtime.introspection import Plugin

DEFAULT_SNAPSHOTTER = "overlayfs"
_SNAPSHOTTERS = "io.containerd.snapshotter.v1"


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """What a pull must know of the runtime.

    `snapshotter_found` says how the snapshotter became known (config, filesystem, default). Roots are paths as the
    daemon sees them, None where it does not say. `discard_unpacked_layers` None: the runtime does not tell.
    """

    version: str
    snapshotter: str
    snapshotter_found: str
    snapshotter_root: str | None
    content_root: str | None
    capabilities: frozenset[str]
    discard_unpacked_layers: bool | None
    registry_config_path: str | None


def parse_cri_config(details: Mapping[str, str]) -> dict[str, Any]:
    """The CRI configuration in a verbose status; empty where there is none, or where it is not JSON."""
    try:
        config = json.loads(details.get("config", "{}"))
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def choose_snapshotter(
    config: Mapping[str, Any], filesystems: Sequence[ImageFilesystem], plugins: Sequence[Plugin]
) -> tuple[str, str]:
    """The snapshotter and how it was found."""
    runtime = config.get("containerd")
    named = runtime.get("snapshotter") if isinstance(runtime, dict) else None
    if isinstance(named, str) and named:
        return named, "config"
    roots = {plugin.exports["root"]: plugin.id for plugin in plugins if plugin.exports.get("root")}
    for filesystem in filesystems[:1]:
        if filesystem.mountpoint in roots:
            return roots[filesystem.mountpoint], "filesystem"
        kind, dot, name = PurePosixPath(filesystem.mountpoint).name.rpartition(f"{_SNAPSHOTTERS}.")
        if dot and not kind and name:
            return name, "filesystem"
    return DEFAULT_SNAPSHOTTER, "default"


def _flag(*values: Any) -> bool | None:
    """The first of the values that says yes or no."""
    for value in values:
        if isinstance(value, bool):
            return value
        if value in ("true", "false"):
            return bool(value == "true")
    return None


def _text(*values: Any) -> str | None:
    return next((value for value in values if isinstance(value, str) and value), None)


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, dict) else {}


async def discover(containerd: Containerd) -> RuntimeInfo:
    """Ask the runtime; without its CRI plug-in only the defaults of containerd are left."""
    plugins = await containerd.introspection.plugins()
    snapshotters = [plugin for plugin in plugins if plugin.type == _SNAPSHOTTERS]
    try:
        config = parse_cri_config((await containerd.cri.status(verbose=True)).details)
        filesystems = await containerd.cri.image_fs_info()
    except Unsupported:
        config, filesystems = {}, []
    snapshotter, found = choose_snapshotter(config, filesystems, snapshotters)
    chosen = next((plugin for plugin in snapshotters if plugin.id == snapshotter), None)
    exports = _exports(plugins, "io.containerd.cri.v1", "images")
    return RuntimeInfo(
        version=await containerd.ask_version(),
        snapshotter=snapshotter,
        snapshotter_found=found,
        # Not every snapshotter of 1.x exports its root, but the CRI computes it.
        snapshotter_root=_text(
            chosen.exports.get("root") if chosen else None,
            *(filesystem.mountpoint for filesystem in filesystems[:1]),
        ),
        content_root=_text(_exports(plugins, "io.containerd.content.v1", "content").get("root")),
        capabilities=chosen.capabilities if chosen else frozenset(),
        discard_unpacked_layers=_flag(
            _section(config, "containerd").get("discardUnpackedLayers"), exports.get("DiscardUnpackedLayers")
        ),
        registry_config_path=_text(
            _section(config, "registry").get("configPath"), exports.get("RegistryConfigPath")
        ),
    )


def _exports(plugins: Sequence[Plugin], kind: str, name: str) -> Mapping[str, str]:
    return next((plugin.exports for plugin in plugins if (plugin.type, plugin.id) == (kind, name)), {})
