"""Every delay, size and bound of the pull in one place, so that tests use short ones."""

from __future__ import annotations

from dataclasses import dataclass, field

from imageprepull.pulling.pressure import PressureTerms
from imageprepull.pulling.width import WidthTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class PullSettings:
    """Seconds and bytes. The defaults are the product's; only tests have a reason to change most of them."""

    parallel_applies: int = 3
    """Diff.Apply calls at once over all images. Each writes to the same disk; within an image they are serial anyway."""
    attempts_without_progress: int = 5
    """How often in a row a download may fail without one new byte; bytes gained reset the count."""
    backoff_base: float = 0.5
    backoff_cap: float = 30.0
    longest_obeyed_retry_after: float = 60.0
    """A registry that asks for a longer pause ends the attempt: the caller's backoff is made for such times."""
    range_size: int = 8 * 1024 * 1024
    """Bytes of one ranged request; a blob that is no larger is asked for as a whole."""
    small_blob: int = 1024 * 1024
    """Blobs up to this size may use every connection that is allowed, however narrow the pool is at the time."""
    width: WidthTerms = field(default_factory=WidthTerms)
    write_batch: int = 2 * 1024 * 1024
    """Bytes gathered before a thread writes and hashes them: fewer hops between loop and thread."""
    longest_batch: float = 0.5
    """Seconds after which a batch is written though it is small, so that a slow download shows that it moves."""
    checkpoint: int = 8 * 1024 * 1024
    """Bytes between two writes of a spool file's range map within a request, and one follows each request: what came
    after the last is fetched again when the process is killed."""
    hash_step: int = 8 * 1024 * 1024
    """Bytes that the hash of a blob may lag behind its frontier, and those it takes at once when it does."""
    source_stall: float = 60.0
    """Seconds without a byte after which a blob that the runtime has is asked of the registry instead."""
    lease_seconds: float = 24 * 3600.0
    lease_losses: int = 2
    """How often a pull starts its chain again because lease or snapshots vanished under it."""
    prepare_attempts: int = 3
    polite_nice: int = 10
    """Added to the priority of workers whose image is not urgent."""
    wanted_poll: float = 2.0
    """At most between two looks whether somebody else waits for an image; a pull's first ones follow faster."""
    aside_small: int = 1024 * 1024
    """Missing layers of so many compressed bytes on the average are left to somebody else who pulls the image now."""
    aside_poll: float = 0.25
    aside_stall: float = 10.0
    """Without a sign of their coming; then ours goes on. The runtime shows a download's progress in steps of a MiB."""
    polite_dirty_bytes: int = 2 * 1024 * 1024
    """How much such a worker writes before it waits for the disk: a neighbour's fsync waits behind it."""
    pressure: PressureTerms = field(default_factory=PressureTerms)
    """When fewer of them unpack at once."""
    space_interval: float = 1.0
    """Between two looks at how much is free, while pulls run."""
    apply_timeout: float = 3600.0
    """Diff.Apply has no progress to watch; this only ends what hangs for good."""
    ingest_stall: float = 600.0
    """Without a byte taken by the runtime. Waiting for a kubelet that downloads the same blob counts too."""
    visible_timeout: float = 60.0
    visible_poll: float = 0.02
    visible_poll_cap: float = 0.5
    cleanup_timeout: float = 30.0
    runtime_pull_timeout: float = 3600.0
    """The CRI tells no progress, so a stall cannot be told from a slow download; this ends what hangs for good."""
    settle_patience: float = 300.0
    """How long what follows a ready image, keeping its blobs and syncing it, waits for a daemon that went away."""
    sync_retry: float = 2.0
    sync_retry_cap: float = 300.0
    """Layers that could not be synced when their image was ready are tried again, first and at most after so long."""
    stop_patience: float = 5.0
    """How long a process that ends waits for the runtime to believe the layers that it has synced."""
    daemon_patience: float = 5.0
    """How long a failed pull waits for a daemon that went away, to delete the lease that nobody comes back for."""
