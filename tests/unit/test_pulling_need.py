"""What a pull is expected to write: figures by hand, and what must hold for any layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.oci.descriptor import DOCKER_LAYER, OCI_LAYER
from imageprepull.pulling.need import GZIP_RATIO, ZSTD_RATIO, LayerSpace, Need, need_of, usual_ratio

MB = 1_000_000


def layer(name: str, packed: int = 100 * MB, here: int = 0, **known: int | bool) -> LayerSpace:
    return LayerSpace(name, packed, here, GZIP_RATIO, **known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [
        (OCI_LAYER + "+gzip", GZIP_RATIO),
        (OCI_LAYER + "+zstd", ZSTD_RATIO),
        (OCI_LAYER, 1.0),
        (DOCKER_LAYER, GZIP_RATIO),
        (DOCKER_LAYER + ".gzip", GZIP_RATIO),
    ],
)
def test_the_ratio_of_a_media_type(media_type: str, expected: float) -> None:
    assert usual_ratio(media_type) == expected


def test_at_first_the_ratio_of_the_media_type_counts_and_what_is_there_is_not_fetched() -> None:
    layers = [layer("a"), layer("b", here=100 * MB), layer("c", here=40 * MB)]
    assert need_of(layers, copied=False) == Need(spool=160 * MB, snapshots=1050 * MB)
    assert need_of(layers, copied=True).content == 300 * MB


def test_a_blob_that_is_two_layers_is_fetched_once_and_unpacked_twice() -> None:
    assert need_of([layer("a"), layer("a")], copied=True) == Need(100 * MB, 100 * MB, 700 * MB)


def test_a_layer_that_unpacks_to_more_than_expected_raises_what_is_still_to_come() -> None:
    half = layer("a", here=50 * MB, unpacked=400 * MB)
    assert need_of([half], copied=False).snapshots == 400 * MB


def test_unpacked_layers_teach_what_the_others_will_be() -> None:
    big = layer("done", 1000 * MB, 1000 * MB, unpacked=7000 * MB, complete=True)
    learned = need_of([big, layer("next")], copied=False).snapshots
    assert 650 * MB < learned < 700 * MB
    small = replace(big, unpacked=1000 * MB)
    assert need_of([small, layer("next")], copied=False).snapshots < 160 * MB


def test_few_bytes_teach_little() -> None:
    tiny = layer("done", 1000, 1000, unpacked=100_000, complete=True)
    assert need_of([tiny, layer("next")], copied=False).snapshots < 352 * MB


@st.composite
def layers(draw: st.DrawFn) -> list[LayerSpace]:
    found = []
    for number in range(draw(st.integers(0, 6))):
        packed = draw(st.integers(1, 10**10))
        here = draw(st.integers(0, packed))
        unpacked = draw(st.integers(0, 10**11)) if here else 0
        complete = here == packed and draw(st.booleans())
        found.append(
            LayerSpace(
                f"{number % 4}", packed, here, draw(st.sampled_from([1.0, 3.5, 4.0])), unpacked, complete
            )
        )
    return found


@given(layers(), st.booleans())
def test_no_part_is_ever_negative_and_nothing_is_left_in_the_end(
    found: list[LayerSpace], copied: bool
) -> None:
    need = need_of(found, copied=copied)
    assert min(need.spool, need.content, need.snapshots) >= 0
    assert copied or need.content == 0
    ended = [replace(one, here=one.packed, complete=True, stored=True) for one in found]
    assert need_of(ended, copied=copied) == Need()


@given(layers())
def test_a_further_layer_never_lowers_the_need_and_more_bytes_here_never_raise_the_spools(
    found: list[LayerSpace],
) -> None:
    fresh = LayerSpace("fresh", 10**6, 0, 3.5)
    need, more = need_of(found, copied=True), need_of([*found, fresh], copied=True)
    assert (more.spool, more.content) == (need.spool + 10**6, need.content + 10**6)
    assert more.snapshots >= need.snapshots
    arrived = [replace(one, here=one.packed) for one in found]
    assert need_of(arrived, copied=False).spool == 0


@given(layers(), st.integers(0, 10**11))
def test_what_was_learned_lies_between_what_was_expected_and_what_was_seen(
    found: list[LayerSpace], unpacked: int
) -> None:
    done = LayerSpace("done", 10**9, 10**9, 3.5, max(1, unpacked), complete=True)
    fresh = LayerSpace("fresh", 10**9, 0, 3.5)
    expected = need_of([done, fresh], copied=False).snapshots
    low, high = sorted((3_500_000_000, max(1, unpacked)))
    assert low - 1 <= expected <= high + 1
