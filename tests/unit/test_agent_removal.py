"""Absent with Delete: when it is carried out, when it waits, and that it is never more than was ordered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.agent.accounts import Delays
from imageprepull.agent.image import ImageView
from imageprepull.agent.node import NodeError
from imageprepull.agent.orders import order_in, pinned_elsewhere, staying_digests
from imageprepull.agent.plan import Key, Observed, key_of, plan
from imageprepull.agent.reconciler import Reconciler
from imageprepull.agent.sightings import Sightings, sighted
from imageprepull.kube.client import ApiClient
from imageprepull.oci.reference import Reference, repository_of
from imageprepull.resources.base import decode
from imageprepull.resources.nodeprepull import Desired, DesiredImage, OnRemoval, wanted_digests
from imageprepull.telemetry.metrics import AgentMetrics
from tests.unit.agent_doubles import FakeNode, StillClock, image
from tests.unit.fake_api_server import serve
from tests.unit.test_agent_reconciler import Bench

NOW = 100.0
ONE, TWO = ("sha256:" + digit * 64 for digit in "12")
KEYS = [(f"r.io/{name}", digest) for name in ("a:1", "a:2", "b:1") for digest in (ONE, TWO)]


def gone(reference: str, **more: Any) -> DesiredImage:
    return image(reference, state=Desired.ABSENT, on_removal=OnRemoval.DELETE, **more)


entries = st.builds(
    lambda key, state, on_removal, pin: image(
        key[0], digest=key[1], state=state, on_removal=on_removal, pin=pin
    ),
    st.sampled_from(KEYS),
    st.sampled_from(list(Desired)),
    st.sampled_from(list(OnRemoval)),
    st.booleans(),
)
specs = st.lists(entries, max_size=6, unique_by=key_of)
keys = st.sets(st.sampled_from(KEYS), max_size=4)
observations = st.builds(
    Observed,
    present=st.dictionaries(st.sampled_from(KEYS), st.booleans()),
    running=keys,
    due=st.dictionaries(st.sampled_from(KEYS), st.sampled_from([50.0, 150.0])),
    final=keys,
    released=keys,
    removing=keys,
    cramped=keys,
)


@given(specs, observations)
def test_only_what_says_so_is_removed_one_at_a_time(spec: list[DesiredImage], observed: Observed) -> None:
    wanted = {key_of(entry): entry for entry in spec}
    actions = plan(spec, observed, NOW)
    assert len(actions.remove) + len(observed.removing) <= max(1, len(observed.removing))
    for key in actions.remove:
        assert wanted[key].to_be_deleted
        assert key not in observed.released
        assert observed.due.get(key, NOW) <= NOW
        assert not any(digest == key[1] for _, digest in observed.running)
    assert not set(actions.unpin) & {key for key, entry in wanted.items() if entry.to_be_deleted}


@given(specs, observations)
def test_what_is_being_removed_is_not_pulled(spec: list[DesiredImage], observed: Observed) -> None:
    removed = {digest for _, digest in observed.removing}
    assert not {digest for _, digest in plan(spec, observed, NOW).start} & removed


def seen(**present: bool) -> Observed:
    found: dict[Key, bool] = {(f"r.io/{name[0]}:{name[1]}", TWO): there for name, there in present.items()}
    return Observed(found, frozenset(), {})


def test_a_removal_waits_for_the_new_version_of_its_repository_only() -> None:
    old, new, other = (
        gone("r.io/a:1", digest=ONE),
        image("r.io/a:2", digest=TWO),
        image("r.io/b:1", digest=TWO),
    )
    assert plan([old, new], seen(a2=False), NOW).remove == ()
    assert plan([old, new], seen(), NOW).remove == (), "it was not asked yet"
    assert plan([old, new], seen(a2=True), NOW).remove == (key_of(old),)
    assert plan([old, other], seen(b1=False), NOW).remove == (key_of(old),)
    for failed in (
        replace(seen(a2=False), final={key_of(new)}),
        replace(seen(a2=False), cramped={key_of(new)}),
    ):
        assert plan([old, new], failed, NOW).remove == (key_of(old),)


@pytest.mark.parametrize(
    "text", ["nginx", "r.io:5000/a", "r.io:5000/a/b:1", f"r.io:5000/a@{ONE}", f"r.io/a:1@{ONE}"]
)
def test_repositories_are_those_of_references(text: str) -> None:
    reference = Reference.parse(text)
    assert repository_of(reference.canonical) == reference.name


@given(specs)
def test_a_digest_stays_unless_every_entry_of_it_orders_its_removal(spec: list[DesiredImage]) -> None:
    wanted = wanted_digests(spec)
    for digest in (ONE, TWO):
        of_digest = [entry for entry in spec if entry.digest == digest]
        assert (digest in wanted) == (not all(entry.to_be_deleted for entry in of_digest))
    for entry in spec:
        for other in pinned_elsewhere(entry, spec):
            assert other != entry.reference
            assert any(one.reference == other and one.pin and one.digest == entry.digest for one in spec)


@given(specs, specs, st.sampled_from(KEYS))
def test_what_is_wanted_by_either_stays_and_the_image_itself_unless_the_newest_order_its_removal(
    confirmed: list[DesiredImage], newest: list[DesiredImage], key: Key
) -> None:
    going = gone(key[0], digest=key[1])
    staying = staying_digests(going, confirmed, newest)
    assert wanted_digests(confirmed) | wanted_digests(newest) <= staying
    assert (going.digest not in staying) <= any(
        entry.to_be_deleted and key_of(entry) == key for entry in newest
    )


@dataclass
class Order:
    """What the API server would say of the order."""

    entries: Sequence[DesiredImage] = ()
    problem: str = ""
    reason: str = "OrderNotConfirmed"
    asked: list[str] = field(default_factory=list)
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, wanted: DesiredImage) -> Sequence[DesiredImage]:
        self.asked.append(wanted.reference)
        await self.answered.wait()
        if self.problem:
            raise NodeError(self.reason, self.problem)
        return self.entries


@pytest.fixture
def order() -> Order:
    order = Order()
    order.answered.set()
    return order


@pytest.fixture
async def bench(order: Order) -> AsyncIterator[Bench]:
    node, clock, metrics = FakeNode(), StillClock(), AgentMetrics()
    async with asyncio.TaskGroup() as tasks:
        reconciler = Reconciler(
            node,
            tasks,
            clock=clock,
            metrics=metrics,
            on_change=lambda: None,
            delays=Delays(retry_base=2, retry_slow=900),
            confirm=order,
        )
        yield Bench(reconciler, node, clock, metrics)
        await reconciler.stop_pulls()


def view_of(bench: Bench, entry: DesiredImage) -> ImageView:
    return bench.reconciler.views[key_of(entry)]


async def test_absent_stops_the_pull_then_removes_once(bench: Bench) -> None:
    await bench.spec(image("a"))
    assert await bench.spec(gone("a")) == ["cancelled a", "unpin a", "remove a"]
    assert bench.states() == ["a Absent"]
    bench.reconciler.suspect_all()
    bench.reconciler.retry_used()
    assert await bench.steps(1000) == []


async def test_nothing_is_removed_that_the_api_server_does_not_confirm(bench: Bench, order: Order) -> None:
    order.problem = "the newest NodePrepull does not order it any more"
    assert await bench.spec(gone("a")) == ["unpin a"]
    assert order.asked
    assert bench.states() == ["a Waiting"]
    backoff = view_of(bench, gone("a")).backoff
    assert backoff is not None
    assert backoff.reason == "OrderNotConfirmed"
    order.problem = ""
    assert await bench.steps(10) == []
    assert await bench.steps(60) == ["unpin a", "remove a"]


@pytest.mark.parametrize("reason", ["OrderNotConfirmed", "OperatorAway", "ImageInUse"])
async def test_what_others_end_is_waited_for_without_counting_attempts(
    bench: Bench, order: Order, reason: str
) -> None:
    order.problem, order.reason = "not now", reason
    await bench.spec(gone("a", limit=2))
    for _ in range(5):
        assert await bench.steps(1100) == ["unpin a"]
        backoff = view_of(bench, gone("a")).backoff
        assert backoff is not None
        assert (backoff.reason, backoff.attempts, backoff.final) == (reason, 0, False)
        assert backoff.delay == (900 if reason == "ImageInUse" else 60)


async def test_an_order_that_is_taken_back_while_it_is_confirmed_does_not_hold_its_image_up(
    bench: Bench, order: Order
) -> None:
    order.answered.clear()
    assert await bench.spec(gone("a")) == ["unpin a"]
    assert await bench.spec(image("a")) == ["pull a"]
    order.answered.set()
    assert await bench.steps() == []


async def test_a_vanished_object_ends_what_is_being_confirmed(bench: Bench, order: Order) -> None:
    order.answered.clear()
    await bench.spec(gone("a"))
    bench.reconciler.freeze()
    order.answered.set()
    assert await bench.steps() == []


async def test_a_removal_that_failed_after_it_was_taken_back_does_not_put_the_pull_off(bench: Bench) -> None:
    bench.node.collected.clear()
    assert await bench.spec(gone("a")) == ["unpin a", "remove a"]
    await bench.spec(image("a"))
    bench.node.users = "web"
    bench.node.collected.set()
    assert await bench.steps() == ["pull a"]
    assert view_of(bench, image("a")).backoff is None


async def test_what_the_newest_entries_want_is_kept(bench: Bench, order: Order) -> None:
    order.entries = [gone("a"), image("b")]
    assert await bench.spec(gone("a")) == ["unpin a", "keep a"]
    assert bench.states() == ["a Absent"]


async def test_an_image_in_use_says_by_whom_and_goes_when_containers_go(bench: Bench) -> None:
    bench.node.users = "web"
    assert await bench.spec(gone("a")) == ["unpin a"]
    view = view_of(bench, gone("a"))
    assert bench.states() == ["a Waiting"]
    assert view.backoff is not None
    assert (view.backoff.reason, view.backoff.message) == ("ImageInUse", "container web uses it")
    assert await bench.steps(60) == [], "only events and a slow retry ask again"
    bench.node.users = ""
    bench.reconciler.retry_used()
    assert await bench.steps() == ["unpin a", "remove a"]


@pytest.mark.parametrize("first", [True, False], ids=["the first look", "a later one"])
async def test_a_container_that_goes_while_it_is_looked_for_is_not_waited_for_slowly(
    bench: Bench, first: bool
) -> None:
    if not first:
        bench.node.users = "web"
        await bench.spec(gone("a"))
        bench.node.users = ""
        bench.clock.seconds += 1000
    bench.node.collected.clear()
    await bench.spec(gone("a"))
    # It has been found, nobody has been told yet, and it goes.
    bench.node.users = "web"
    bench.clock.seconds += 100
    bench.reconciler.retry_used()
    bench.clock.seconds += 100
    bench.node.collected.set()
    await bench.steps()
    assert bench.states() == ["a Waiting"]
    bench.node.users = ""
    assert await bench.steps(3) == ["unpin a", "remove a"]


async def test_a_container_that_is_listed_a_moment_after_it_has_gone_is_not_waited_for_slowly(
    bench: Bench,
) -> None:
    bench.node.users = "web"
    await bench.spec(gone("a"))
    bench.clock.seconds += 10
    bench.reconciler.retry_used()
    assert await bench.steps(1) == ["unpin a"]
    bench.node.users = "another"
    assert await bench.steps(3) == ["unpin a"]
    assert await bench.steps(60) == [], "it is asked for once more, not for ever"
    bench.reconciler.retry_used()
    await bench.steps()
    bench.node.users = ""
    assert await bench.steps(3) == ["unpin a", "remove a"]


async def test_containers_that_go_confirm_no_order(bench: Bench, order: Order) -> None:
    order.problem = "no leader"
    bench.reconciler.retry_used()
    await bench.spec(gone("a"))
    await bench.steps(3)
    assert order.asked == ["a"]
    await bench.steps(60)
    assert order.asked == ["a", "a"]


async def test_an_image_in_use_is_asked_for_slowly_and_forgotten_with_its_entry(bench: Bench) -> None:
    bench.node.users = "web"
    await bench.spec(gone("a"))
    bench.node.users = ""
    assert await bench.steps(1000) == ["unpin a", "remove a"]
    bench.node.users = "web"
    await bench.spec(gone("b"))
    bench.node.users = ""
    assert await bench.spec() == ["abandon b"], "an entry that is gone orders no removal"
    assert await bench.steps(2000) == []


async def test_an_order_that_becomes_unpin_is_carried_out_at_once(bench: Bench) -> None:
    """As an uninstall does with what waits for its containers."""
    bench.node.users = "web"
    await bench.spec(gone("a"))
    assert await bench.spec(image("a", state=Desired.ABSENT)) == ["unpin a", "abandon a"]
    assert bench.states() == ["a Absent"]


async def test_an_image_that_is_named_anew_while_it_is_removed_is_pulled_afterwards(bench: Bench) -> None:
    bench.node.holds.add("a")
    bench.node.collected.clear()
    assert await bench.spec(gone("a")) == ["unpin a", "remove a"]
    assert "pull a" not in await bench.spec(image("a"))
    bench.node.collected.set()
    assert await bench.steps() == ["pull a"]
    assert bench.states() == ["a Pulling"]


@pytest.mark.parametrize(
    ("later", "states"),
    [
        ([image("a")], ["a Ready"]),
        ([image("a", state=Desired.ABSENT)], ["a Absent"]),
        ([gone("a"), image("b")], ["a Absent", "b Ready"]),
        ([], []),
    ],
    ids=["wanted again", "to be retained", "wanted by another entry", "not named"],
)
async def test_what_changes_while_the_runtime_is_slow_is_seen_before_anything_is_deleted(
    bench: Bench, order: Order, later: list[DesiredImage], states: list[str]
) -> None:
    bench.node.holds = {"a", "b"}
    bench.node.asked.clear()
    order.entries = [gone("a")]
    assert await bench.spec(gone("a")) == ["unpin a"]
    await bench.spec(*later)
    bench.node.asked.set()
    assert "keep a" in await bench.steps()
    assert bench.node.holds == {"a", "b"}
    assert bench.states() == states


async def test_a_vanished_object_stops_what_is_being_removed(bench: Bench) -> None:
    bench.node.asked.clear()
    await bench.spec(gone("a"))
    bench.reconciler.freeze()
    bench.node.asked.set()
    assert await bench.steps() == ["keep a"]


async def test_pulls_go_on_beside_a_removal(bench: Bench) -> None:
    bench.node.collected.clear()
    await bench.spec(gone("a", digest=ONE))
    assert await bench.spec(gone("a", digest=ONE), image("b", digest=TWO)) == ["pull b"]
    bench.node.succeed("b")
    await bench.steps()
    assert bench.states() == ["a Waiting", "b Ready"]


async def test_of_two_references_to_one_digest_that_are_pulled_one_is_let_go_and_the_other_goes_on(
    bench: Bench, order: Order
) -> None:
    await bench.spec(image("a"), image("b"))
    assert await bench.spec(image("a", state=Desired.ABSENT), image("b", pin=True)) == [
        "cancelled a",
        "unpin a but-b",
    ], "the lease is b's as well"
    order.entries = [gone("a"), image("b", pin=True)]
    assert await bench.spec(*order.entries) == [], "not while the digest is pulled"
    bench.node.succeed("b")
    assert await bench.steps() == ["unpin a but-b", "keep a"]
    assert bench.states() == ["a Absent", "b Ready"]


async def test_without_its_object_nothing_is_removed(bench: Bench) -> None:
    bench.reconciler.take_spec([gone("a")])
    bench.reconciler.freeze()
    assert await bench.steps(1000) == ["abandon a"], "what an unfinished pull has kept is no image"


async def test_stopping_cuts_a_removal_off(bench: Bench) -> None:
    bench.node.collected.clear()
    await bench.spec(gone("a"))
    await bench.reconciler.stop_pulls()
    assert bench.states() == ["a Waiting"]


async def alive(_: float) -> None:
    """An operator that lives."""


def seeing(*entries: DesiredImage) -> Sightings:
    sightings = Sightings(StillClock())
    sightings.take("mine", entries)
    return sightings


WRITTEN = {"reference": "a", "digest": gone("a").digest, "state": "Absent", "onRemoval": "Delete"}
READ = decode(DesiredImage, WRITTEN)


async def test_the_order_is_read_after_the_operator_was_seen_alive() -> None:
    """It had the time to take an old order back."""
    async with serve() as server, ApiClient(server.access(), timeout=2) as api:
        await server.put("n1", uid="mine", spec={"images": [WRITTEN]})

        async def takes_it_back(_: float) -> None:
            await server.put("n1", uid="mine", spec={"images": [{**WRITTEN, "state": "Present"}]})

        with pytest.raises(NodeError, match="does not order it any more"):
            await order_in(api, "n1", seeing(READ).of, takes_it_back)(gone("a"))


async def test_an_order_that_changes_while_it_is_proven_is_proven_anew() -> None:
    async with serve() as server, ApiClient(server.access(), timeout=2) as api:
        clock = StillClock()
        sightings = Sightings(clock)
        sightings.take("mine", [READ])
        asked: list[float] = []

        async def changes(since: float) -> None:
            asked.append(since)
            await server.put("n1", uid="mine", spec={"images": [written]})

        written = {**WRITTEN, "owners": ["other"]}
        confirm = order_in(api, "n1", sightings.of, changes)
        with pytest.raises(NodeError, match="is another one"):
            # The watch has not told of it yet: what is read was not seen when the proof began.
            await confirm(gone("a"))
        clock.seconds += 3
        sightings.take("mine", [decode(DesiredImage, written)])
        assert await confirm(gone("a")) == [decode(DesiredImage, written)]
        assert asked == [1000, 1003]


async def test_an_order_that_vanishes_while_the_api_server_answers_is_none() -> None:
    async with serve() as server, ApiClient(server.access(), timeout=2) as api:
        await server.put("n1", uid="mine", spec={"images": [WRITTEN]})
        sightings = seeing(READ)

        async def vanishes(_: float) -> None:
            sightings.take("", [])

        with pytest.raises(NodeError, match="does not order it any more"):
            await order_in(api, "n1", sightings.of, vanishes)(gone("a"))


@given(specs, specs, st.sampled_from(["same", "another"]))
def test_an_order_counts_from_when_it_was_first_seen_as_it_is(
    before: list[DesiredImage], now: list[DesiredImage], uid: str
) -> None:
    first = sighted({}, "same", before, 1)
    assert [order.entry for order in first.values()] == [entry for entry in before if entry.to_be_deleted]
    found = sighted(first, uid, now, 2)
    assert [order.entry for order in found.values()] == [entry for entry in now if entry.to_be_deleted]
    for order in found.values():
        assert order.uid == uid
        assert order.seen == (1 if uid == "same" and order.entry in before else 2)


@pytest.mark.parametrize(
    ("state", "policy", "uid", "problem"),
    [
        ("Absent", "Delete", "mine", ""),
        ("Absent", "Unpin", "mine", "does not order it any more"),
        ("Present", "Delete", "mine", "does not order it any more"),
        ("Absent", "Delete", "another", "made anew"),
    ],
)
async def test_the_order_is_read_from_the_api_server(state: str, policy: str, uid: str, problem: str) -> None:
    async with serve() as server, ApiClient(server.access(), timeout=2) as api:
        confirm = order_in(api, "n1", seeing(READ).of, alive)
        with pytest.raises(NodeError, match="cannot be read again"):
            await confirm(gone("a"))
        written = {"reference": "a", "digest": gone("a").digest, "state": state, "onRemoval": policy}
        await server.put("n1", uid=uid, spec={"images": [written]})
        if problem:
            with pytest.raises(NodeError, match=problem) as caught:
                await confirm(gone("a"))
            assert caught.value.reason == "OrderNotConfirmed"
        else:
            assert [key_of(entry) for entry in await confirm(gone("a"))] == [key_of(gone("a"))]
