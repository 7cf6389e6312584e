"""Pure decisions of the pull: retries, errors, labels, names, what is left to do, what stands on a snapshot."""

from __future__ import annotations

import asyncio
import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.oci.descriptor import DOCKER_INDEX, DOCKER_MANIFEST, OCI_CONFIG, OCI_LAYER, Descriptor
from imageprepull.oci.digests import sha256_digest
from imageprepull.oci.manifest import InvalidManifest, Manifest
from imageprepull.oci.platform import Platform
from imageprepull.oci.reference import Reference
from imageprepull.pulling.cleanup import finish_anyway
from imageprepull.pulling.documents import ChainLayer
from imageprepull.pulling.errors import PullError, as_pull_error
from imageprepull.pulling.labels import (
    LEASE,
    config_labels,
    extract_key,
    index_labels,
    manifest_labels,
    record_labels,
    ref_key,
    source_label,
)
from imageprepull.pulling.leases import LeaseTerms, lease_terms
from imageprepull.pulling.plan import missing_blobs
from imageprepull.pulling.processes import is_dead, process_label
from imageprepull.pulling.records import record_names
from imageprepull.pulling.retry import RetryState
from imageprepull.pulling.settings import PullSettings
from imageprepull.registry.errors import ErrorKind, RegistryError
from imageprepull.runtime.errors import DiskFailed, PermissionDenied, RuntimeFault, Unavailable

SETTINGS = PullSettings(attempts_without_progress=3, backoff_base=1, backoff_cap=8)


def digest(name: str) -> str:
    return sha256_digest(name.encode())


def layer(name: str, media_type: str = OCI_LAYER) -> Descriptor:
    return Descriptor(media_type, digest(name), 10)


def test_retries_double_up_to_the_cap_and_end_without_progress() -> None:
    state = RetryState()
    error = PullError("RegistryError", "busy")
    delays = [state.decide(error, gained=False, chance=1, settings=SETTINGS) for _ in range(4)]
    assert delays == [1, 2, 4, None]


def test_bytes_gained_reset_the_count() -> None:
    state = RetryState()
    error = PullError("ConnectionLost", "reset")
    for _ in range(50):
        assert state.decide(error, gained=True, chance=1, settings=SETTINGS) == 1


def test_a_permanent_error_is_not_tried_again_even_after_progress() -> None:
    error = PullError("NotFound", "gone", permanent=True)
    assert RetryState().decide(error, gained=True, chance=0, settings=SETTINGS) is None


@given(st.integers(0, 2), st.floats(0, 1))
def test_jitter_keeps_half_of_the_delay(failures: int, chance: float) -> None:
    error = PullError("RegistryError", "busy")
    full = 2.0**failures
    delay = RetryState(failures).decide(error, gained=False, chance=chance, settings=SETTINGS)
    assert delay is not None
    assert full / 2 <= delay <= full


def test_a_registry_that_names_its_pause_is_obeyed_or_left_to_the_caller() -> None:
    assert RetryState().decide(
        PullError("Throttled", "slow", retry_after=20), gained=False, chance=0, settings=SETTINGS
    ) == pytest.approx(20)
    too_long = PullError("Throttled", "slow", retry_after=3600)
    assert RetryState().decide(too_long, gained=False, chance=0, settings=SETTINGS) is None


@pytest.mark.parametrize(
    ("error", "reason", "permanent"),
    [
        (RegistryError("no", reason="NotFound"), "NotFound", True),
        (RegistryError("no", reason="DeniedOrMissing", kind=ErrorKind.CREDENTIALS), "DeniedOrMissing", True),
        (RegistryError("no", reason="Stalled", kind=ErrorKind.TEMPORARY), "Stalled", False),
        (Unavailable("Prepare x", "connection refused"), "RuntimeUnavailable", False),
        (PermissionDenied("Connect", "socket"), "RuntimePermissionDenied", True),
        (InvalidManifest("AmbiguousManifest", "both"), "AmbiguousManifest", True),
        (OSError(errno.ENOSPC, "No space left on device"), "DiskFull", False),
        (TimeoutError(), "Timeout", False),
    ],
)
def test_errors_say_whether_trying_again_helps(error: Exception, reason: str, permanent: bool) -> None:
    found = as_pull_error(error, "blob sha256:1")
    assert (found.reason, found.permanent) == (reason, permanent)
    assert "\n" not in str(found)


@pytest.mark.parametrize(
    ("error", "resumable"),
    [
        (RegistryError("no", reason="NotFound"), False),
        (RegistryError("no", reason="DeniedOrMissing", kind=ErrorKind.CREDENTIALS), True),
        (RegistryError("no", reason="RegistryError", kind=ErrorKind.TEMPORARY), True),
        (RegistryError("no", reason="Throttled", kind=ErrorKind.THROTTLED), True),
        (Unavailable("Prepare x", "connection refused"), True),
        (RuntimeFault("Apply x", "the archive is odd"), False),
        (DiskFailed("Commit x", "input/output error"), False),
        (OSError(errno.EIO, "Input/output error"), False),
        (TimeoutError(), True),
        (PullError("RuntimeLostLayers", "again and again"), False),
    ],
)
def test_errors_say_whether_they_speak_against_what_was_fetched(error: Exception, resumable: bool) -> None:
    assert as_pull_error(error).resumable is resumable


def test_of_several_errors_the_permanent_one_is_reported_and_a_defect_never_hides() -> None:
    temporary, permanent = PullError("Stalled", "slow"), PullError("NotFound", "gone", permanent=True)
    group = ExceptionGroup("", [temporary, ExceptionGroup("", [permanent])])
    assert as_pull_error(group) is permanent
    with pytest.raises(ZeroDivisionError):
        as_pull_error(ExceptionGroup("", [permanent, ZeroDivisionError()]))


def test_a_retry_after_reaches_the_caller() -> None:
    error = RegistryError("slow", reason="Throttled", kind=ErrorKind.THROTTLED, retry_after=30)
    assert as_pull_error(error).retry_after == 30


def test_a_manifest_keeps_its_config_and_layers_by_containerds_label_names() -> None:
    manifest = Manifest(DOCKER_MANIFEST, Descriptor(OCI_CONFIG, digest("c"), 1), (layer("a"), layer("b")))
    kept = manifest_labels(manifest, keep_layers=True)
    assert kept == {
        "containerd.io/gc.ref.content.config": digest("c"),
        "containerd.io/gc.ref.content.l.0": digest("a"),
        "containerd.io/gc.ref.content.l.1": digest("b"),
    }
    assert list(manifest_labels(manifest, keep_layers=False)) == ["containerd.io/gc.ref.content.config"]


def test_an_index_keeps_all_children_manifests_counted_apart() -> None:
    children = [
        layer("m1", DOCKER_MANIFEST),
        layer("x", "text/x"),
        layer("i", DOCKER_INDEX),
        layer("m2", DOCKER_MANIFEST),
    ]
    assert index_labels(children) == {
        "containerd.io/gc.ref.content.m.0": digest("m1"),
        "containerd.io/gc.ref.content.0": digest("x"),
        "containerd.io/gc.ref.content.1": digest("i"),
        "containerd.io/gc.ref.content.m.1": digest("m2"),
    }


def test_a_config_keeps_the_top_of_the_chain() -> None:
    assert config_labels("overlayfs", "sha256:top") == {
        "containerd.io/gc.ref.snapshot.overlayfs": "sha256:top"
    }
    assert config_labels("overlayfs", "") == {}


def test_the_source_label_drops_the_port_and_merges() -> None:
    key = "containerd.io/distribution.source.localhost"
    assert source_label("localhost:5000", "b", {}) == {key: "b"}
    assert source_label("localhost:5000", "b", {key: "c,a"}) == {key: "a,b,c"}
    assert source_label("localhost:5000", "a", {key: "c,a"}) == {}
    assert source_label("localhost:5000", "a", {key: "x" * 4096}) == {}


def test_ingests_have_the_names_that_a_kubelets_pull_waits_for() -> None:
    assert ref_key(layer("a")) == f"layer-{digest('a')}"
    assert ref_key(layer("a", DOCKER_MANIFEST)) == f"manifest-{digest('a')}"
    assert ref_key(layer("a", DOCKER_INDEX)) == f"index-{digest('a')}"
    assert ref_key(layer("a", OCI_CONFIG)) == f"config-{digest('a')}"


def test_only_records_that_we_created_are_marked_as_ours() -> None:
    assert record_labels(pin=True, existing=None) == {
        "io.cri-containerd.image": "managed",
        "io.cri-containerd.pinned": "pinned",
        "imageprepull.io/pinned": "true",
        "imageprepull.io/managed": "true",
    }
    assert record_labels(pin=False, existing={}) == {"io.cri-containerd.image": "managed"}


def test_records_in_the_place_of_somebody_elses_say_so_and_no_others() -> None:
    managed = {"io.cri-containerd.image": "managed"}
    restored = {"imageprepull.io/managed": "restored"}
    assert record_labels(pin=False, existing=None, restored=True) == managed | restored
    assert record_labels(pin=False, existing={}, restored=True) == managed, "somebody made it meanwhile"


def test_only_pins_that_we_set_are_marked_as_ours() -> None:
    theirs = {"io.cri-containerd.pinned": "pinned"}
    ours = {**theirs, "imageprepull.io/pinned": "true"}
    managed = {"io.cri-containerd.image": "managed"}
    assert record_labels(pin=True, existing={}) == managed | ours
    assert record_labels(pin=True, existing=theirs) == managed
    assert record_labels(pin=True, existing=ours) == managed | ours, "it may be gone since"
    assert record_labels(pin=False, existing=ours) == managed
    for existing in ({}, theirs):
        assert record_labels(pin=True, existing=existing, by_hand=True) == managed | theirs
    taken_over = {"imageprepull.io/pinned": ""}
    assert record_labels(pin=True, existing=ours, by_hand=True) == managed | theirs | taken_over


def test_records_are_written_id_tag_digest_and_a_digest_reference_has_no_tag() -> None:
    target, config = digest("t"), digest("c")
    assert record_names(Reference.parse("nginx:1"), target, config) == [
        config,
        "docker.io/library/nginx:1",
        f"docker.io/library/nginx@{target}",
    ]
    assert record_names(Reference.parse(f"nginx@{target}"), target, config) == [
        config,
        f"docker.io/library/nginx@{target}",
    ]


def test_a_retry_finds_its_lease_and_two_calls_of_the_cli_do_not_share_one() -> None:
    def name(
        owner: str = "node-a",
        image: str = "t",
        snapshotter: str = "overlayfs",
        platform: str = "linux/amd64",
        *,
        shared: bool = True,
    ) -> str:
        terms = lease_terms(
            digest(image),
            {LEASE: owner},
            snapshotter=snapshotter,
            platform=Platform.parse(platform),
            seconds=60,
            shared=shared,
        )
        assert terms == LeaseTerms(terms.id, digest(image), {LEASE: owner}, 60)
        return terms.id

    assert name() == name()
    others = [name("node-b"), name(image="u"), name(snapshotter="zfs"), name(platform="linux/arm64")]
    assert len({name(), *others}) == 5
    assert name(shared=False) != name(shared=False)


def test_keys_of_active_snapshots_are_containerds_and_never_the_same() -> None:
    keys = {extract_key("sha256:abc") for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("extract-") and key.endswith(" sha256:abc") for key in keys)


@given(st.lists(st.sampled_from("abc"), max_size=8), st.integers(0, 8))
def test_each_missing_blob_is_fetched_once_lowest_first_and_covers_all_its_layers(
    names: list[str], existing: int
) -> None:
    existing = min(existing, len(names))
    layers = [ChainLayer(layer(name), "", str(number), "") for number, name in enumerate(names)]
    blobs = missing_blobs(layers, existing)
    assert sorted(position for positions in blobs.values() for position in positions) == list(
        range(existing, len(names))
    )
    assert all(layers[p].descriptor.digest == found for found, positions in blobs.items() for p in positions)
    firsts = [positions[0] for positions in blobs.values()]
    assert firsts == sorted(firsts)


async def test_cleaning_up_is_not_interrupted_by_a_second_cancellation() -> None:
    cleaned = asyncio.Event()
    begun = asyncio.Event()
    go = asyncio.Event()

    async def clean() -> None:
        begun.set()
        await go.wait()
        cleaned.set()

    task = asyncio.create_task(finish_anyway(clean(), 60))
    await begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned.is_set()


async def test_cleaning_up_that_hangs_or_fails_does_not_hide_the_error() -> None:
    async def fail() -> None:
        raise OSError("no")

    await finish_anyway(fail(), 60)
    await finish_anyway(asyncio.Event().wait(), 0.01)


def test_only_a_process_known_to_be_gone_is_dead() -> None:
    mine = process_label("boot")
    assert not is_dead(mine, "boot")
    assert is_dead(mine, "another boot")
    boot, namespace, pid, started = mine.split("/")
    assert is_dead("/".join((boot, namespace, pid, str(int(started) + 1))), "boot"), "the PID was used again"
    assert not is_dead(f"{boot}/another/{pid}/1", "boot"), "not to be seen from here"
    assert not is_dead("", "boot")
