"""When the leader vouches for the orders that stand, and above all when it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from imageprepull.controller.dirty import DirtyKeys
from imageprepull.controller.intake import PLAN
from imageprepull.controller.settings import OperatorSettings
from imageprepull.controller.standby import Standby
from imageprepull.controller.vouching import Vouching
from imageprepull.kube.errors import ApiError
from imageprepull.kube.informer import Change

LONG = 10_000.0


class Api:
    """A FAKE API server that lists what it is told to, and whose CRDs are in order or not."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = [prepull("web")]
        self.error: ApiError | None = None
        self.trusted = True
        self.lists = 0
        self.version = "1"
        self.meanwhile: Callable[[], None] = lambda: None
        self.taken_back = {"n1"}

    async def list(self, kind: object, *, metadata_only: bool) -> tuple[list[dict[str, Any]], str]:
        assert metadata_only
        self.lists += 1
        if self.error is not None:
            raise self.error
        self.meanwhile()
        return self.found, self.version

    async def holds(self) -> bool:
        return self.trusted


def prepull(name: str, generation: int = 1) -> dict[str, Any]:
    metadata = {"namespace": "shop", "name": name, "uid": f"uid-{name}", "resourceVersion": str(generation)}
    return {"metadata": metadata | {"generation": generation}, "spec": {"images": [{"image": "redis:7"}]}}


def ordered(state: str = "Absent", on_removal: str = "Delete", *, done: bool = False) -> dict[str, Any]:
    image = {"reference": "a", "digest": "sha256:" + "a" * 64}
    status = {"observedGeneration": 1, "images": [image | {"state": "Absent"}] if done else []}
    metadata = {"name": "n1", "uid": "n1", "resourceVersion": "1", "generation": 1}
    spec = {"images": [image | {"state": state, "onRemoval": on_removal}]}
    return {"metadata": metadata, "spec": spec, "status": status}


async def settle(standby: Standby) -> None:
    """Whatever was marked has been worked on."""
    queues = standby.queues
    for queue in (queues.prepulls, queues.plan, queues.nodes, queues.statuses):
        await work_off(cast("DirtyKeys[Any]", queue))


async def work_off(queue: DirtyKeys[Any]) -> None:
    while len(queue):
        queue.done(await queue.take())


async def until(check: Callable[[], bool]) -> None:
    """Nothing here waits for anything but other tasks."""
    while not check():  # noqa: ASYNC110 - no event tells it
        await asyncio.sleep(0)


async def operator(document: dict[str, Any] | None = None) -> tuple[Api, Standby, Vouching]:
    """One that knows its only object and a node where an order stands, and has nothing left to do."""
    api = Api()
    settings = OperatorSettings(access=cast("Any", None), identity="one", debounce=0)
    standby = Standby(cast("Any", api), settings)
    standby.trust.holds = api.holds  # type: ignore[method-assign]
    standby.intake.prepull(prepull("web"))
    standby.intake.node_prepull(Change("added", document or ordered(), None, witnessed=True))
    await settle(standby)
    vouching = Vouching(
        cast("Any", api), standby, takes_back=lambda name: name in api.taken_back, poll=LONG, rest=LONG
    )
    return api, standby, vouching


async def test_one_look_vouches_for_one_renewal() -> None:
    api, _, vouching = await operator()
    assert not vouching.vouches()
    await vouching.look()
    assert vouching.vouches()
    await vouching.look()
    assert api.lists == 1, "enough was seen for this renewal"
    vouching.renewed()
    assert not vouching.vouches()
    await vouching.look()
    assert (vouching.vouches(), api.lists) == (True, 2)


async def test_nothing_is_vouched_for_until_the_plan_is_of_a_list_after_the_loss_of_the_server() -> None:
    _, standby, vouching = await operator()
    standby.node_prepulls.sight.regained = 7
    looking = asyncio.create_task(vouching.look())
    async with asyncio.timeout(30):
        await until(lambda: "lost from sight" in vouching.doubt)
    assert not vouching.vouches()
    standby.world.planned_of = 8
    async with asyncio.timeout(30):
        await looking
    assert vouching.vouches()


async def test_a_look_that_a_renewal_has_overtaken_vouches_for_nothing() -> None:
    """It may have begun before the order was seen that the second word is for."""
    api, _, vouching = await operator()
    api.meanwhile = vouching.renewed
    await vouching.look()
    assert not vouching.vouches()
    note = vouching.note()
    assert note is not None
    assert "takes longer than the Lease is left without a renewal" in note


async def test_a_renewal_brings_the_next_look() -> None:
    api, _, vouching = await operator()
    running = asyncio.create_task(vouching.run())
    async with asyncio.timeout(30):
        for number in (1, 2, 3):
            await until(vouching.vouches)
            assert api.lists == number
            vouching.renewed()
    running.cancel()


@pytest.mark.parametrize(
    "document",
    [ordered("Present"), ordered(on_removal="Unpin"), ordered(done=True)],
    ids=["none", "Unpin", "done"],
)
async def test_while_there_is_nothing_to_delete_it_looks_seldom(document: dict[str, Any]) -> None:
    api, _, vouching = await operator(document)
    await vouching.look()
    assert api.lists == 1, "whether objects can be read is always of interest"
    assert not vouching.vouches(), "an order that a node may have nevertheless is none that is known"
    for _ in range(3):
        vouching.renewed()
        await vouching.look()
    assert (api.lists, vouching.vouches()) == (1, False)


async def test_without_an_order_a_lost_connection_does_not_bring_new_lists_of_everything() -> None:
    api, standby, vouching = await operator(ordered("Present"))
    for informer in standby.informers:
        informer.sight.broken = True
        informer.synced.set()
    await vouching.look()
    assert (api.lists, [informer.synced.is_set() for informer in standby.informers]) == (1, [True] * 3)


async def unreadable(api: Api, standby: Standby) -> None:
    api.error = ApiError(403, "Forbidden", "by order of the test")


async def not_following(api: Api, standby: Standby) -> None:
    api.trusted = False


async def unheard_of(api: Api, standby: Standby) -> None:
    api.found = [prepull("web"), prepull("anew")]


async def edited(api: Api, standby: Standby) -> None:
    api.found = [prepull("web", 2)]


async def not_planned(api: Api, standby: Standby) -> None:
    standby.queues.plan.add(PLAN)


async def to_be_read(api: Api, standby: Standby) -> None:
    standby.queues.prepulls.add(("shop", "web"))


async def to_be_written(api: Api, standby: Standby) -> None:
    standby.queues.nodes.add("n1")


async def being_written(api: Api, standby: Standby) -> None:
    standby.queues.nodes.add("n1")
    await standby.queues.nodes.take()


async def refused_a_write(api: Api, standby: Standby) -> None:
    standby.queues.nodes.failures["n1"] = 1
    standby.queues.nodes.add("n1", LONG)


async def gone_back(api: Api, standby: Standby) -> None:
    standby.informers[1].newest = 4712
    api.version = "4711"


async def lost_from_sight(api: Api, standby: Standby) -> None:
    standby.informers[0].sight.broken = True


Doubt = Callable[[Api, Standby], Awaitable[None]]
DOUBTS: list[tuple[Doubt, str]] = [
    (unreadable, "403 Forbidden"),
    (not_following, "caches do not follow"),
    (gone_back, "older state (4711) than was seen before (4712)"),
    (lost_from_sight, "the API server was lost from sight (nodes)"),
    (unheard_of, "1 ImagePrepulls are not read yet: anew"),
    (edited, "1 ImagePrepulls are not read yet: web"),
    (not_planned, "not everything that was read is in the plan"),
    (to_be_read, "not everything that was read is in the plan"),
    (to_be_written, "1 NodePrepulls are not written yet, where an order is to be taken back: n1"),
    (being_written, "1 NodePrepulls are not written yet, where an order is to be taken back: n1"),
    (refused_a_write, "1 NodePrepulls are not written yet, where an order is to be taken back: n1"),
]


@pytest.mark.parametrize(("doubt", "message"), DOUBTS, ids=[doubt.__name__ for doubt, _ in DOUBTS])
async def test_nothing_is_vouched_for_that_might_have_to_be_taken_back(doubt: Doubt, message: str) -> None:
    api, standby, vouching = await operator()
    await doubt(api, standby)
    looking = asyncio.create_task(vouching.look())
    async with asyncio.timeout(30):
        await until(lambda: bool(vouching.doubt))
    assert not vouching.vouches()
    note = vouching.note()
    assert note is not None
    assert note.startswith("not vouched for, nothing is deleted: ")
    assert message in note
    vouching.renewed()
    await looking
    assert not vouching.vouches()
    assert (vouching.unreadable is not None) is (doubt is unreadable)
    assert bool(standby.queues.prepulls) is (
        doubt in (unheard_of, edited, to_be_read, gone_back, lost_from_sight)
    )


@pytest.mark.parametrize("seen_by", ["a watch", "a look", "a lost connection"])
async def test_after_a_restored_backup_nothing_is_vouched_for_before_all_is_read_again(seen_by: str) -> None:
    """The watches live on: they wait for versions that will not come for long, and all caches seem to follow."""
    api, standby, vouching = await operator()
    for informer in standby.informers:
        informer.synced.set()
    api.version = "9"
    if seen_by == "a look":
        await vouching.look()
        vouching.renewed()
    elif seen_by == "a watch":
        standby.informers[1].newest = 9
    else:
        standby.informers[1].sight.broken = True
    # It may have overtaken by now what was seen before.
    api.version = "10" if seen_by == "a lost connection" else "8"
    await vouching.look()
    assert not vouching.vouches()
    assert [informer.synced.is_set() for informer in standby.informers] == [False] * 3
    assert standby.queues.prepulls
    # What was edited since the backup may have as many generations as what was lost.
    edited = prepull("web")
    edited["spec"]["images"] = [{"image": "redis:8"}]
    while len(standby.queues.prepulls):
        key = await standby.queues.prepulls.take()
        standby.intake.prepull(edited)
        standby.queues.prepulls.done(key)
    assert standby.queues.plan
    await settle(standby)
    for informer in standby.informers:
        informer.sight.regained = 7
    standby.world.planned_of = 8
    vouching.renewed()
    await vouching.look()
    assert vouching.vouches()


async def test_one_that_cannot_follow_does_not_have_the_others_list_again_and_again() -> None:
    """It fails for good, say: whoever may not list pods gets the same answer each time."""
    api, standby, vouching = await operator()
    api.trusted = False
    for informer in standby.informers:
        informer.synced.set()
    pods = standby.informers[2]
    for _ in range(2):
        pods.sight.broken, pods.sight.problem = True, "403 Forbidden"
        await vouching.look()
        vouching.renewed()
        assert [informer.synced.is_set() for informer in standby.informers] == [True] * 3
        assert not standby.queues.prepulls
        assert vouching.doubt == "the caches do not follow the API server"
    pods.sight.problem, api.trusted = "", True
    await vouching.look()
    assert [informer.synced.is_set() for informer in standby.informers] == [False] * 3
    assert not vouching.vouches()


async def test_a_connection_that_is_lost_during_a_look_is_not_vouched_beyond() -> None:
    api, standby, vouching = await operator()

    def cut() -> None:
        standby.informers[1].sight.broken = True

    api.meanwhile = cut
    await vouching.look()
    assert not vouching.vouches()
    assert vouching.doubt == "the API server was lost from sight (nodeprepulls)"


async def test_what_events_tell_while_a_list_is_under_way_is_no_step_back() -> None:
    api, standby, vouching = await operator()

    def told() -> None:
        standby.informers[1].newest = 2

    api.meanwhile = told
    await vouching.look()
    assert vouching.vouches()


async def test_what_settles_before_the_next_renewal_is_vouched_for() -> None:
    api, standby, vouching = await operator()
    await unheard_of(api, standby)
    looking = asyncio.create_task(vouching.look())
    async with asyncio.timeout(30):
        await until(lambda: bool(vouching.doubt))
        standby.intake.prepull(prepull("anew"))
        await settle(standby)
        await looking
    assert vouching.vouches()
    assert vouching.note() is None
    assert api.lists == 1


async def test_objects_that_can_be_read_again_are_ready_again() -> None:
    api, _, vouching = await operator()
    api.error = ApiError(403, "Forbidden", "by order of the test")
    await vouching.look()
    assert vouching.unreadable is not None
    assert "403 Forbidden" in vouching.unreadable
    api.error = None
    await vouching.look()
    assert vouching.unreadable is None


@pytest.mark.parametrize("doubt", [to_be_written, being_written, refused_a_write])
async def test_writes_that_take_nothing_back_can_wait(doubt: Doubt) -> None:
    """As thousands do in a roll-out, and as one does that is refused for days."""
    api, standby, vouching = await operator()
    api.taken_back = set()
    await doubt(api, standby)
    await vouching.look()
    assert vouching.vouches()


async def test_an_order_that_is_said_to_be_carried_out_may_have_to_be_taken_back_too() -> None:
    """A backup brings back both, of an image that was brought again since; its agent obeys once more."""
    api, standby, vouching = await operator()
    done = ordered(done=True)
    done["metadata"] |= {"name": "n2", "uid": "n2"}
    standby.intake.node_prepull(Change("added", done, None, witnessed=False))
    api.taken_back = {"n2"}
    looking = asyncio.create_task(vouching.look())
    async with asyncio.timeout(30):
        await until(lambda: bool(vouching.doubt) or vouching.vouches())
        assert vouching.doubt.endswith("where an order is to be taken back: n2")
        await settle(standby)
        await looking
    assert vouching.vouches()


async def test_a_node_that_is_looked_at_again_later_is_written() -> None:
    _, standby, vouching = await operator()
    standby.queues.nodes.add("n1", LONG)
    await vouching.look()
    assert vouching.vouches()
