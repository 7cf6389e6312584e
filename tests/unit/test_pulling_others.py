"""What ours leaves to somebody else's pull, and for how long. Time is virtual; the other's pull is a FAKE one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.oci.descriptor import OCI_LAYER, Descriptor
from imageprepull.pulling.documents import ChainLayer
from imageprepull.pulling.others import NOTE, Lacking, Others, Signs, are_small, left_to_other
from imageprepull.pulling.progress import ImageProgress
from imageprepull.pulling.settings import PullSettings
from imageprepull.pulling.urgency import Urgency, until_next_look
from imageprepull.runtime.errors import Unavailable
from tests.unit.virtual_time import run_virtually

STALL = 4.0
SETTINGS = PullSettings(aside_poll=0.5, aside_stall=STALL, aside_small=100, wanted_poll=0.5)
NEVER = 1e9
DIGESTS = tuple(f"sha256:{number:064}" for number in range(4))


@pytest.mark.parametrize(
    ("sizes", "small"), [([], False), ([100], True), ([101], False), ([0, 200], True), ([0, 0, 301], False)]
)
def test_small_is_what_is_small_on_the_average(sizes: list[int], small: bool) -> None:
    assert are_small([Lacking(str(size), size, False) for size in sizes], 100) is small


def test_what_is_here_and_what_the_other_does_not_fetch_is_not_left() -> None:
    lacking = [Lacking("here", 9, True), Lacking("both", 9, False), Lacking("ours", 9, False)]
    assert left_to_other(lacking, {"here", "both", "elsewhere"}) == {"both"}


@given(st.floats(0, 1e6), st.floats(0.01, 1e4))
def test_looks_follow_each_other_by_the_age_of_the_pull(age: float, longest: float) -> None:
    wait = until_next_look(age, longest)
    assert 0 < wait <= longest
    assert wait <= max(0.1, age * 0.1)


def test_looks_become_rarer_up_to_the_longest() -> None:
    assert [until_next_look(age, 2.0) for age in (0, 1, 5, 20, 1000)] == [0.1, 0.1, 0.5, 2.0, 2.0]


def test_an_ingest_that_was_there_and_does_not_move_is_no_sign() -> None:
    signs = Signs(0, {"stale": 7, "alive": 7}, 0)
    signs.note(1, {"stale": 7, "alive": 8}, 0)
    assert signs.moved(1, STALL) == {"alive"}
    assert signs.since(1) == 0
    signs.note(3, {"stale": 7, "alive": 8}, 0)
    assert signs.since(3) == 2
    assert signs.moved(4.9, STALL) == {"alive"}
    assert signs.moved(5, STALL) == set()


@pytest.mark.parametrize(
    "after", [{"begun": 0, "old": 1}, {}], ids=["an ingest begins", "an ingest ends, with its blob"]
)
def test_ingests_that_come_and_go_are_signs(after: dict[str, int]) -> None:
    signs = Signs(0, {"old": 1}, 0)
    signs.note(1, after, 0)
    assert signs.moved(1, STALL) == set(after) ^ {"old"}


def test_a_layer_is_a_sign_but_not_of_a_blob() -> None:
    signs = Signs(0, {}, 2)
    signs.note(3, {}, 3)
    assert signs.since(3) == 0
    assert signs.moved(3, STALL) == set()


@dataclass
class Ingest:
    """As the runtime lists it."""

    ref: str
    offset: int


@dataclass
class OthersPull:
    """`fetched` says what of each blob is ingested at which second, `layers` how many there are; it holds its lease until `ends`."""

    sizes: list[int]
    fetched: Callable[[float], Mapping[int, int]] = lambda _: {}
    layers: Callable[[float], int] = lambda _: 0
    ends: float = NEVER
    away: Callable[[float], bool] = lambda _: False
    whole: set[int] = field(default_factory=set)

    @property
    def content(self) -> OthersPull:
        return self

    async def list_ingests(self) -> list[Ingest]:
        now = asyncio.get_running_loop().time()
        if self.away(now):
            raise Unavailable("list ingests", "gone")
        unrelated = Ingest("layer-sha256:of another image", int(now * 10))
        found = self.fetched(now).items()
        return [unrelated, *(Ingest(f"layer-{DIGESTS[number]}", offset) for number, offset in found)]

    async def wanted(self) -> bool:
        return asyncio.get_running_loop().time() < self.ends

    async def count(self) -> int:
        return self.layers(asyncio.get_running_loop().time())

    def lacking(self) -> list[Lacking]:
        there = self.layers(asyncio.get_running_loop().time())
        blobs = [
            Lacking(DIGESTS[number], size, number in self.whole) for number, size in enumerate(self.sizes)
        ]
        return blobs[there:]

    def watched(self, seconds: float, wanted_at: float = 0.0) -> list[tuple[float, set[int]]]:
        """What was left from which second on; and what a reader saw of it must say so too."""
        history: list[tuple[float, set[int]]] = [(0.0, set())]

        async def watch() -> None:
            loop = asyncio.get_running_loop()
            urgency = Urgency(SETTINGS, urgent=False)
            progress = ImageProgress("r")
            layers = [
                ChainLayer(Descriptor(OCI_LAYER, DIGESTS[number], size), "", "", "")
                for number, size in enumerate(self.sizes)
            ]
            others = Others(
                cast(Any, self),
                urgency,
                progress,
                SETTINGS,
                wanted=self.wanted,
                layers=layers,
                lacking=self.lacking,
                count=self.count,
            )

            def look() -> None:
                left = {number for number in range(len(self.sizes)) if others.left(DIGESTS[number])}
                assert progress.note == (NOTE if left else "")
                if left != history[-1][1]:
                    history.append((loop.time(), left))

            progress.on_change = look
            following = asyncio.create_task(others.follow())
            await asyncio.sleep(wanted_at)
            urgency.wanted.set()
            await asyncio.sleep(seconds - wanted_at)
            following.cancel()
            await asyncio.wait([following])
            assert following.cancelled() or following.exception() is None
            assert not any(others.left(digest) for digest in DIGESTS)

        run_virtually(watch())
        return history


def test_nothing_is_left_before_somebody_is_seen() -> None:
    assert OthersPull([1, 1]).watched(20, wanted_at=7)[:2] == [(0, set()), (7, {0, 1})]


def test_small_layers_are_left_while_they_come_though_the_lease_stays() -> None:
    pull = OthersPull([1, 1, 1], layers=lambda now: min(3, int(now / 3)))
    assert pull.watched(30) == [(0, set()), (0, {0, 1, 2}), (3, {1, 2}), (6, {2}), (9, set())]


def test_small_layers_are_left_until_the_other_ends() -> None:
    assert OthersPull([1, 1], ends=2.2).watched(30) == [(0, set()), (0, {0, 1}), (2.5, set())]


def test_a_lease_under_which_nothing_comes_is_waited_for_once() -> None:
    pull = OthersPull([1, 1], layers=lambda now: now >= 10)
    assert pull.watched(30) == [(0, set()), (0, {0, 1}), (STALL, set())]


def test_a_blob_that_the_other_fetches_is_left_while_it_moves() -> None:
    pull = OthersPull([1000, 1000], fetched=lambda now: {0: int(min(now, 8) * 50)})
    assert pull.watched(30) == [(0, set()), (0.5, {0}), (8 + STALL, set())]


def test_a_blob_that_the_other_has_fetched_is_left_until_it_had_time_to_unpack_it() -> None:
    pull = OthersPull([1000, 1000], fetched=lambda now: {0: int(now * 50)} if now < 6 else {})
    assert pull.watched(30) == [(0, set()), (0.5, {0}), (6 + STALL, set())]


def test_what_is_here_already_is_not_left() -> None:
    moving = {0: 1, 1: 1}
    pull = OthersPull(
        [1000, 1000], fetched=lambda now: {number: int(now * 10) for number in moving}, whole={0}
    )
    assert pull.watched(5) == [(0, set()), (0.5, {1}), (5, set())]


def test_nothing_is_left_while_the_runtime_is_away() -> None:
    pull = OthersPull([1000], fetched=lambda now: {0: int(now * 50)}, away=lambda now: 3 <= now < 5)
    assert pull.watched(7) == [(0, set()), (0.5, {0}), (3, set()), (5, {0}), (7, set())]


def test_small_layers_are_left_again_when_the_runtime_is_back() -> None:
    pull = OthersPull([1, 1], away=lambda now: 1 <= now < 2)
    assert pull.watched(3) == [(0, set()), (0, {0, 1}), (1, set()), (2, {0, 1}), (3, set())]


def test_who_waits_is_woken_by_each_look() -> None:
    pull = OthersPull([1000], fetched=lambda now: {0: int(now * 50)} if now < 6 else {}, ends=6)
    there: list[float] = []

    async def wait() -> None:
        urgency = Urgency(SETTINGS, urgent=False)
        urgency.wanted.set()
        layer = ChainLayer(Descriptor(OCI_LAYER, DIGESTS[0], 1000), "", "", "")
        others = Others(
            cast(Any, pull),
            urgency,
            ImageProgress("r"),
            SETTINGS,
            wanted=pull.wanted,
            layers=[layer],
            lacking=pull.lacking,
            count=pull.count,
        )
        async with asyncio.TaskGroup() as group:
            following = group.create_task(others.follow())
            for true in (True, False):
                await others.until(lambda: others.left(DIGESTS[0]) is true)  # noqa: B023 - awaited here.
                there.append(asyncio.get_running_loop().time())
            following.cancel()

    run_virtually(wait())
    assert there == [0.5, 6]
