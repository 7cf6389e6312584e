"""What all pulls of one process share: the runtime, the registry client, locks and limits. Made by `Puller`."""

from __future__ import annotations

from dataclasses import dataclass, field

from imageprepull.pulling.blobs import Spool
from imageprepull.pulling.chain_folders import ChainFolders
from imageprepull.pulling.durability import WriteBack
from imageprepull.pulling.extraction import Extraction
from imageprepull.pulling.keyed_lock import KeyedLock
from imageprepull.pulling.limiter import Limiter
from imageprepull.pulling.placing import Placing
from imageprepull.pulling.rooms import Rooms
from imageprepull.pulling.settings import PullSettings
from imageprepull.pulling.slots import Slots
from imageprepull.registry.client import RegistryClient
from imageprepull.runtime.connection import Containerd


@dataclass(frozen=True, slots=True, kw_only=True)
class Machinery:
    """`polite_applies` is taken before `applies` by images that nobody waits for; it follows the disks (pressure.py).

    `writes` is the snapshotter's file system as this process sees it. `uncollected`: leases that were given back, and
    what they held has not been collected since, as far as is known.

    The locks are in this process only. Across processes the ingest's ref and the snapshot's name do their work.
    """

    containerd: Containerd
    registry: RegistryClient
    spool: Spool
    placing: Placing
    extraction: Extraction
    folders: ChainFolders
    slots: Slots
    rooms: Rooms
    applies: Limiter
    polite_applies: Limiter
    settings: PullSettings
    boot_id: str
    writes: WriteBack
    images: KeyedLock = field(default_factory=KeyedLock)
    chains: KeyedLock = field(default_factory=KeyedLock)
    blobs: KeyedLock = field(default_factory=KeyedLock)
    uncollected: set[str] = field(default_factory=set)
