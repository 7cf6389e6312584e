from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.agent.backoff import Backoff
from imageprepull.agent.image import ImageView
from imageprepull.agent.node import Held, Pulled
from imageprepull.agent.status import (
    HARD_BYTES,
    SOFT_BYTES,
    Report,
    build_status,
    patch_of,
    same_news,
    verdict_of,
)
from imageprepull.pulling.progress import ImageProgress, LayerProgress
from imageprepull.resources import bounds
from imageprepull.resources.nodeprepull import (
    Agent,
    Desired,
    Disk,
    LayerState,
    NodePrepullStatus,
    StrayPin,
)
from tests.unit.agent_doubles import image

CRD = Path(__file__).parents[2] / "crds" / "nodeprepulls.yaml"
SCHEMA: dict[str, Any] = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"][
    "properties"
]["status"]
WHEN = "2026-01-01T00:00:00Z"


def view_of(
    reference: str = "docker.io/library/nginx:1.27",
    *,
    state: str = "Pulling",
    layers: int = 2,
    message: str = "",
    hosts: int = 1,
    letters: LayerState = LayerState.DOWNLOADING,
) -> ImageView:
    desired = {"Paused": Desired.PAUSED, "Absent": Desired.ABSENT}.get(state, Desired.PRESENT)
    view = ImageView(image(reference, state=desired), running=state == "Pulling")
    view.held = Held(state == "Ready", layers=layers)
    view.progress = ImageProgress(reference)
    view.progress.layers = [
        LayerProgress("sha256:" + "f" * 64, 10**9, "", "", letters, 10**6) for _ in range(layers)
    ]
    if state == "Ready":
        view.pulled = Pulled(True, {"total": 12.3456}, {f"host{i}:5000": i for i in range(hosts)})
    if state in ("Failed", "Waiting"):
        view.backoff = Backoff(3, state == "Failed", "RegistryUnreachable" * 20, message, 5)
        view.next_attempt = WHEN
    return view


def test_an_image_that_is_left_to_the_runtime_says_so_while_it_comes_and_when_it_is_there() -> None:
    def said(state: str, note: str) -> tuple[str, str, str]:
        view = view_of(state=state)
        assert view.progress is not None
        view.progress.note = note
        if state == "Pulling":
            view.backoff = Backoff(1, False, "Stalled", "of the attempt before", 5)
        (shown,) = build_status(report_of(view), WHEN).images
        return shown.state, shown.reason, shown.message

    for state in ("Pulling", "Ready"):
        assert said(state, "not valid HTTP") == (state, "LeftToRuntime", "not valid HTTP")
    assert said("Pulling", "") == ("Pulling", "Stalled", "of the attempt before")
    assert said("Ready", "") == ("Ready", "", "")
    assert said("Failed", "not valid HTTP")[1].startswith("RegistryUnreachable")


def test_pins_without_an_entry_are_reported_and_give_way_to_images_in_work() -> None:
    strays = [StrayPin(reference=f"{'r' * 500}:{n}", digest="sha256:" + "d" * 64) for n in range(100)]
    report = replace(report_of(), stray_pins=strays)
    few = build_status(report, WHEN, soft=HARD_BYTES)
    assert few.stray_pins == strays[: bounds.STRAY_PINS]
    jsonschema.validate(msgspec.to_builtins(few), SCHEMA)
    assert build_status(report, WHEN).stray_pins == strays[:8]
    assert not same_news(build_status(report_of(), WHEN), few)


def report_of(*views: ImageView, runtime: str = "containerd 2.4.2") -> Report:
    return Report(7, Agent(version="0.1.0", runtime=runtime), Disk(capacity=10, available=5), views)


def size(status: NodePrepullStatus) -> int:
    return len(msgspec.json.encode(status))


views = st.lists(
    st.builds(
        view_of,
        st.text(min_size=1, max_size=600),
        state=st.sampled_from(["Pulling", "Ready", "Failed", "Waiting", "Paused", "Absent"]),
        layers=st.integers(0, 300),
        message=st.text(max_size=3000),
        hosts=st.integers(0, 40),
        letters=st.sampled_from(list(LayerState)),
    ),
    max_size=8,
)


@given(views, st.text(max_size=300))
def test_every_status_is_within_the_schema_and_the_hard_limit(found: list[ImageView], runtime: str) -> None:
    status = build_status(report_of(*found, runtime=runtime), WHEN)
    jsonschema.validate(msgspec.to_builtins(status), SCHEMA)
    assert size(status) <= HARD_BYTES
    assert len(status.images) + status.images_omitted == len(found)
    shown = sum(len(i.layers) for i in status.images)
    known = sum(len(v.progress.layers) for v in found if v.progress and v.state != "Ready")
    assert shown <= known
    assert status.summary is not None
    assert sum(msgspec.structs.astuple(status.summary)) <= len(found)


@pytest.mark.parametrize("state", ["Pulling", "Ready", "Failed", "Waiting"])
def test_256_images_of_128_layers_fit(state: str) -> None:
    found = [
        view_of(f"registry.example/{'x' * 100}/{number}:v1", state=state, layers=128, message="m" * 1000)
        for number in range(256)
    ]
    status = build_status(report_of(*found), WHEN)
    jsonschema.validate(msgspec.to_builtins(status), SCHEMA)
    assert size(status) <= HARD_BYTES
    assert status.summary is not None
    assert sum(msgspec.structs.astuple(status.summary)) == 256
    assert len(status.images) + status.images_omitted == 256
    if state != "Ready":
        assert status.layers_omitted + sum(len(i.layers) for i in status.images) == 256 * 128


def test_details_go_only_as_far_as_the_soft_limit_asks() -> None:
    found = [view_of(f"r/{number}", layers=40) for number in range(10)]
    status = build_status(report_of(*found), WHEN)
    assert size(status) <= SOFT_BYTES
    assert status.layers_omitted > 0
    assert any(i.layers for i in status.images)
    assert status.images_omitted == 0


def test_a_small_status_leaves_nothing_out() -> None:
    status = build_status(report_of(view_of(layers=3), view_of("b", state="Failed", message="no")), WHEN)
    assert [len(i.layers) for i in status.images] == [3, 2]
    assert (status.layers_omitted, status.images_omitted) == (0, 0)


def test_a_ready_image_has_a_letter_a_layer_and_no_list() -> None:
    brought = view_of(state="Ready", letters=LayerState.APPLIED)
    found_there = view_of("b", state="Ready")
    found_there.pulled = found_there.progress = None
    first, second = build_status(report_of(brought, found_there), WHEN).images
    assert (first.layer_states, first.layers) == ("AA", [])
    assert second.layer_states == "EE"
    assert first.seconds is not None
    assert first.seconds.total == 12.35


def test_layers_stand_in_the_manifests_order_with_their_bytes() -> None:
    view = view_of(layers=0)
    assert view.progress is not None
    view.progress.layers = [
        LayerProgress("sha256:b", 10, "", "", LayerState.DOWNLOADING, 4),
        LayerProgress("sha256:a", 20, "", "", LayerState.EXISTS),
    ]
    layers = build_status(report_of(view), WHEN).images[0].layers
    assert [(layer.digest, layer.state, layer.size, layer.done) for layer in layers] == [
        ("sha256:b", "Downloading", 10, 4),
        ("sha256:a", "Exists", 20, 0),
    ]


def test_during_backoff_the_reason_attempts_and_next_try_are_shown() -> None:
    line = build_status(report_of(view_of(state="Waiting", message="dial tcp")), WHEN).images[0]
    assert (line.state, line.message, line.attempts, line.next_attempt) == ("Waiting", "dial tcp", 3, WHEN)


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


@given(views, views)
def test_a_patch_leaves_nothing_of_what_stood_before(before: list[ImageView], after: list[ImageView]) -> None:
    old = build_status(report_of(*before), WHEN)
    new = build_status(report_of(*after), WHEN)
    stored = merge(msgspec.to_builtins(old), patch_of(new)["status"])
    assert msgspec.convert(stored, NodePrepullStatus) == new


def test_heartbeat_and_free_disk_are_no_news() -> None:
    one = build_status(Report(7, Agent(), Disk(capacity=10, available=5), []), WHEN)
    other = build_status(Report(7, Agent(), Disk(capacity=10, available=4), []), "2027-01-01T00:00:00Z")
    assert same_news(one, other)
    assert not same_news(one, build_status(Report(8, Agent(), None, []), WHEN))


@pytest.mark.parametrize(
    ("states", "verdict"),
    [
        ([], "ready"),
        (["Ready", "Paused"], "ready"),
        (["Ready", "Failed"], "failed"),
        (["Failed", "Pulling"], "working"),
        (["Waiting"], "working"),
    ],
)
def test_the_node_as_a_whole(states: list[str], verdict: str) -> None:
    found = [view_of(str(number), state=state) for number, state in enumerate(states)]
    assert verdict_of(build_status(report_of(*found), WHEN)) == verdict


@pytest.mark.parametrize(
    ("pin", "cri_says", "reason"),
    [(True, False, "PinIneffective"), (True, True, ""), (False, False, "")],
)
def test_a_pin_that_the_runtime_does_not_tell_the_kubelet_is_said(
    pin: bool, cri_says: bool, reason: str
) -> None:
    view = view_of(state="Ready")
    view.desired = msgspec.structs.replace(view.desired, pin=pin)
    view.held = Held(True, pinned=cri_says, layers=2, our_pin=pin)
    (shown,) = build_status(report_of(view), WHEN).images
    assert (shown.state, shown.reason) == ("Ready", reason)


@pytest.mark.parametrize(("pin", "reason"), [(True, "PinIneffective"), (False, "")])
def test_a_pin_that_the_kubelet_ignores_is_said(pin: bool, reason: str) -> None:
    view = view_of(state="Ready")
    view.desired = msgspec.structs.replace(view.desired, pin=pin)
    view.held = Held(True, pinned=pin, layers=2, our_pin=pin)
    report = replace(report_of(view), kubelet_without_pins="v1.28.1")
    (shown,) = build_status(report, WHEN).images
    assert (shown.state, shown.reason) == ("Ready", reason)
    assert ("v1.28.1" in shown.message) is pin


def test_an_image_whose_tag_somebody_moved_says_where_and_is_ready() -> None:
    view = view_of(state="Ready")
    view.held = Held(True, layers=2, tag_means=f"sha256:{'e' * 64}")
    (shown,) = build_status(report_of(view), WHEN).images
    assert (shown.state, shown.reason) == ("Ready", "HeldByDigest")
    assert view.held.tag_means in shown.message
    assert len(shown.message) < bounds.MESSAGE


def test_an_image_whose_tag_means_another_says_which_and_is_ready() -> None:
    view = view_of(state="Ready")
    view.desired = msgspec.structs.replace(view.desired, pin=True)
    view.tag_means = f"sha256:{'e' * 64}"
    (shown,) = build_status(report_of(view), WHEN).images
    assert (shown.state, shown.reason) == ("Ready", "HeldByDigest"), "it matters more than an ineffective pin"
    assert view.tag_means in shown.message
    assert len(shown.message) < bounds.MESSAGE
    (failed,) = build_status(report_of(view_of(state="Failed")), WHEN).images
    assert failed.reason.startswith("RegistryUnreachable")
