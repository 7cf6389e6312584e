"""No status ever exceeds its size or the schema: one item too many would reject all of it."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imageprepull.controller.aggregate import Draft, aggregate
from imageprepull.controller.aggregate_node import Cluster
from imageprepull.controller.assign import assign
from imageprepull.controller.bounds import BOUNDS, HARD, TARGET, fit
from imageprepull.controller.resolution import Resolution
from imageprepull.resources.base import encode
from imageprepull.resources.imageprepull import ImagePrepullStatus
from tests.unit.controller_doubles import candidate, node_prepull, nodes, report, resolution

NOW = datetime(2026, 1, 2, tzinfo=UTC)
CRD = yaml.safe_load((Path(__file__).parents[2] / "crds" / "imageprepulls.yaml").read_text())
SCHEMA = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]


def draft_of(count: int, images: int, layers: int, states: str, text: str = "x") -> Draft:
    """A cluster where node i reports the state that letter i of `states` (again and again) stands for."""
    names = [f"r.io/team/image-{number}:1" for number in range(images)]
    one = candidate(images=names)
    facts = nodes(*(f"node-{number:05}.example.com" for number in range(count)))
    known = {name: resolution(name, number + 1, layers) for number, name in enumerate(names)}
    busy = [("Downloading", 100, 7)] * layers
    letters = {"R": "Ready", "P": "Pulling", "F": "Failed", "W": "Waiting"}
    reports = {}
    for number, name in enumerate(facts):
        state = letters[states[number % len(states)]]
        work = () if state == "Ready" else busy
        more = {"reason": text * 200, "message": text * 3000} if state == "Failed" else {}
        own = [report(image, place + 1, state, work, **more) for place, image in enumerate(names)]
        reports[name] = node_prepull(name, *own)
    cluster = Cluster(facts, reports, known)
    return aggregate(one, assign([one], facts, known)[one.uid], cluster, ImagePrepullStatus(), NOW)


def check(status: ImagePrepullStatus, size: int = HARD) -> None:
    document = encode(status)
    assert len(msgspec.json.encode(document)) <= size
    jsonschema.validate(document, SCHEMA)


def test_a_small_cluster_is_shown_whole() -> None:
    status = fit(draft_of(3, 4, 30, "RPF"))
    check(status)
    assert (status.images_omitted, status.nodes_omitted, len(status.node_details)) == (0, 0, 3)
    assert all(platform.layers_omitted == 0 for image in status.images for platform in image.platforms)


def test_layers_of_ready_images_are_shown_on_a_small_cluster() -> None:
    status = fit(draft_of(3, 1, 6, "R"))
    assert [layer.nodes for layer in status.images[0].platforms[0].layers] == [{"Applied": 3}] * 6


def test_a_large_cluster_aims_at_the_target_and_counts_what_it_leaves_out() -> None:
    status = fit(draft_of(500, 3, 20, "RRRPF"))
    check(status, TARGET)
    assert status.node_details
    assert status.node_details[0].state == "Failed"
    assert status.nodes_omitted == 500 - len(status.node_details)


def test_the_largest_cluster_fits_and_does_not_take_for_ever() -> None:
    draft_began = time.process_time()
    draft = draft_of(5000, 24, 40, "RRRRRRRRPF", "ü")
    began = time.process_time()
    status = fit(draft)
    ended = time.process_time()
    check(status)
    assert status.nodes_omitted > 4000
    assert len(status.images) + status.images_omitted == 24
    # Generous: the draft above includes building the reports themselves.
    assert ended - began < 10, f"fitting took {ended - began:.1f} s, the draft {began - draft_began:.1f} s"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    count=st.integers(0, 60),
    images=st.integers(1, 64),
    layers=st.integers(0, 300),
    states=st.text("RPFW", min_size=1, max_size=6),
    text=st.text(min_size=1, max_size=3),
)
def test_whatever_is_reported_fits_the_schema(
    count: int, images: int, layers: int, states: str, text: str
) -> None:
    fewer = max(1, min(images, 4000 // (1 + count * (1 + layers // 10))))
    draft = draft_of(count, fewer, layers, states, text)
    status = fit(draft)
    check(status)
    total = len(draft.views)
    assert len(status.node_details) + status.nodes_omitted == total


def test_an_image_nobody_could_resolve_is_cut_as_well() -> None:
    name = "r.io/x:1"
    one = candidate(images=[name])
    known = {name: Resolution(name, reason="R" * 500, message="é" * 5000)}
    facts = nodes("n1")
    cluster = Cluster(facts, {}, known)
    draft = aggregate(one, assign([one], facts, known)[one.uid], cluster, ImagePrepullStatus(), NOW)
    check(fit(draft))


def bounds_of(schema: dict[str, Any], mine: dict[str, Any], path: str = "status") -> None:
    for name, bound in mine.items():
        theirs = schema["properties"].get(name)
        if theirs is None:
            continue
        if isinstance(bound, int):
            assert theirs["maxLength"] == bound, f"{path}.{name}"
        elif isinstance(bound, dict):
            bounds_of(theirs, bound, f"{path}.{name}")
        else:
            most, inner = bound
            assert theirs["maxItems"] == most, f"{path}.{name}"
            bounds_of(theirs["items"], inner, f"{path}.{name}")


def test_the_bounds_are_the_crds() -> None:
    bounds_of(SCHEMA, dict(BOUNDS))


def every_bound(schema: dict[str, Any], mine: Any, path: str = "status") -> None:
    for name, theirs in schema.get("properties", {}).items():
        free = theirs.get("type") == "string" and theirs.get("format") != "date-time"
        if free or theirs.get("type") == "array":
            assert name in mine, f"{path}.{name} has no bound"
        if theirs.get("type") == "array":
            every_bound(theirs["items"], mine[name][1], f"{path}.{name}")
        elif "properties" in theirs:
            every_bound(theirs, mine.get(name, {}), f"{path}.{name}")


def test_no_string_or_list_of_the_crd_is_forgotten() -> None:
    every_bound(SCHEMA, BOUNDS)


@pytest.mark.parametrize("count", [0, 1, 11])
def test_nothing_chosen_or_known_is_fine(count: int) -> None:
    check(fit(draft_of(count, 1, 0, "W")))
