"""Which pins without an entry are ordered away, and above all which are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import msgspec
import pytest

from imageprepull.controller.asked import Owners
from imageprepull.controller.assign import Candidate, assign
from imageprepull.controller.dirty import Rate
from imageprepull.controller.node_writer import NodeWriter
from imageprepull.controller.nodes import NodeFacts, Taint
from imageprepull.controller.render import render
from imageprepull.controller.resolution import Resolution
from imageprepull.controller.settings import OperatorSettings
from imageprepull.controller.standby import Standby
from imageprepull.controller.strays import believed, order_of
from imageprepull.controller.uninstall import has_let_go, is_ordered, let_go_spec
from imageprepull.kube.informer import Change
from imageprepull.resources import bounds
from imageprepull.resources.nodeprepull import Desired, DesiredImage, NodePrepull, OnRemoval, StrayPin
from tests.unit.controller_doubles import candidate, digest, node_prepull, nodes, report, resolution

REPOSITORY = "docker.io/library/nginx"
NGINX = f"{REPOSITORY}:1"
BY_DIGEST = f"{REPOSITORY}@{digest(1)}"
STRAY = (NGINX, digest(1))
KNOWN = {NGINX: resolution(NGINX, 1), f"{REPOSITORY}:2": resolution(f"{REPOSITORY}:2", 2)}


def rendered(
    *candidates: Candidate,
    stray: tuple[str, str] = STRAY,
    current: Iterable[DesiredImage] = (),
    facts: Mapping[str, NodeFacts] | None = None,
    resolutions: Mapping[str, Resolution] = KNOWN,
) -> list[DesiredImage]:
    choices = assign(candidates, facts or nodes("n1"), resolutions)
    owners = Owners({one.uid: one for one in candidates}, choices)
    return render("n1", list(current), owners, strays={stray}).images


def ordered(images: Iterable[DesiredImage]) -> list[str]:
    return [image.reference for image in images if image.state is Desired.ABSENT and not image.owners]


def test_a_pin_that_nobody_means_is_ordered_away_until_that_is_done() -> None:
    (order,) = rendered(candidate(images=["redis:7"]), resolutions={})
    assert (order.reference, order.digest) == STRAY
    assert (order.state, order.on_removal, order.pin) == (Desired.ABSENT, OnRemoval.UNPIN, False)
    assert rendered(current=[order]) == [order]
    nobody = Owners({}, {})
    assert render("n1", [order], nobody).images == [order], "reported no more, and not done"
    assert render("n1", [order], nobody, {STRAY}).images == []


def test_orders_for_strays_push_nothing_out_that_is_wanted() -> None:
    wanted = candidate(images=[f"docker.io/library/redis:{number}" for number in range(bounds.IMAGES - 1)])
    known = {image.record: resolution(image.record, 2) for image in wanted.images}
    owners = Owners({wanted.uid: wanted}, assign([wanted], nodes("n1"), known))
    strays = {(f"{REPOSITORY}:{number}", digest(1)) for number in range(3)}
    made = render("n1", [], owners, strays=strays)
    assert (len(made.images), made.omitted) == (bounds.IMAGES, ())
    assert ordered(made.images) == [f"{REPOSITORY}:0"]


@pytest.mark.parametrize("stray", [STRAY, (BY_DIGEST, digest(1)), ("quay.io/other:1", digest(1))])
def test_an_image_that_an_object_asks_for_keeps_its_pins_under_every_name(stray: tuple[str, str]) -> None:
    assert ordered(rendered(candidate(), stray=stray)) == []
    # Held by an owner that nobody can read.
    unknown = DesiredImage(reference=NGINX, digest=digest(1), owners=["shop/x/unreadable"])
    assert ordered(rendered(stray=stray, current=[unknown])) == []


def test_an_image_that_is_let_go_of_by_an_entry_is_its_affair() -> None:
    """Its Delete would find the digest wanted by an order that only unpins."""
    entry = DesiredImage(
        reference=f"{REPOSITORY}:2",
        digest=digest(1),
        owners=["shop/x/gone"],
        state=Desired.ABSENT,
        on_removal=OnRemoval.DELETE,
    )
    assert ordered(rendered(current=[entry])) == []


def test_a_tag_that_moved_lets_go_of_what_it_meant() -> None:
    moved = {NGINX: resolution(NGINX, 9)}
    assert ordered(rendered(candidate(), stray=(BY_DIGEST, digest(1)), resolutions=moved)) == [BY_DIGEST]
    # The tag's own record is the entry's affair.
    assert ordered(rendered(candidate(), resolutions=moved)) == []


@pytest.mark.parametrize("stray", [STRAY, (BY_DIGEST, digest(1))])
def test_who_has_no_digest_yet_may_mean_it(stray: tuple[str, str]) -> None:
    other = candidate(images=["nginx:2"])
    assert ordered(rendered(other, stray=stray)) == [stray[0]]
    assert ordered(rendered(other, stray=stray, resolutions={})) == []
    pressed = nodes("n1", disk_pressure=True)
    assert ordered(rendered(other, stray=stray, facts=pressed, resolutions={})) == []
    # Of another repository, or about another node.
    assert ordered(rendered(candidate(images=["redis:7"]), stray=stray, resolutions={})) == [stray[0]]
    elsewhere = candidate(images=["nginx:2"], nodeSelector={"zone": "x"})
    assert ordered(rendered(elsewhere, stray=stray, resolutions={})) == [stray[0]]


@pytest.mark.parametrize("facts", [{"disk_pressure": True}, {"taints": (Taint("team", "x"),)}])
def test_who_skips_the_node_keeps_the_pins_of_what_it_means_and_no_others(facts: dict[str, Any]) -> None:
    """Or none would ever be taken away where an object that chooses all nodes is kept off by a taint."""
    skipping, skipped = candidate(images=["nginx:2"]), nodes("n1", **facts)
    for stray in (STRAY, (BY_DIGEST, digest(1))):
        assert ordered(rendered(skipping, stray=stray, facts=skipped)) == [stray[0]]
    for stray in ((f"{REPOSITORY}:2", digest(9)), ("quay.io/other:1", digest(2))):
        assert ordered(rendered(skipping, stray=stray, facts=skipped)) == []


def strays_of(*lines: tuple[str, str], entries: Iterable[DesiredImage] = ()) -> NodePrepull:
    found = node_prepull("n1", entries=list(entries))
    pins = [StrayPin(reference=reference, digest=digest) for reference, digest in lines]
    return msgspec.structs.replace(found, status=msgspec.structs.replace(found.status, stray_pins=pins))


def test_what_is_no_entry_or_of_an_older_spec_is_not_believed() -> None:
    odd = [("Nginx:1", digest(1)), ("", digest(1)), (NGINX, "sha256:1"), (NGINX, "md5:" + "a" * 32)]
    ids = ("sha256:" + "c" * 64, digest(3))
    assert believed(strays_of(STRAY, ids, *odd)) == {STRAY, ids}
    old = strays_of(STRAY)
    newer = msgspec.structs.replace(old.metadata, generation=2)
    assert believed(msgspec.structs.replace(old, metadata=newer)) == frozenset()


def test_an_uninstall_orders_them_away_as_well() -> None:
    entry = DesiredImage(reference=f"{REPOSITORY}:2", digest=digest(2), pin=True, owners=["shop/web/1"])
    before = strays_of(STRAY, entries=[entry])
    orders = let_go_spec(before)
    assert [(order.reference, order.state, order.pin) for order in orders] == [
        (f"{REPOSITORY}:2", Desired.ABSENT, False),
        (NGINX, Desired.ABSENT, False),
    ]
    assert not is_ordered(before)
    after = node_prepull("n1", report(f"{REPOSITORY}:2", 2, "Absent"), entries=orders)
    assert is_ordered(after)
    assert not has_let_go(after)
    done = node_prepull(
        "n1", report(f"{REPOSITORY}:2", 2, "Absent"), report(NGINX, 1, "Absent"), entries=orders
    )
    assert has_let_go(done)


def test_an_uninstall_is_not_done_with_a_node_whose_orders_are_others() -> None:
    """All that stands there is done, and one more pin is not ordered away yet."""
    order = order_of((f"{REPOSITORY}:2", digest(2)))
    found = node_prepull("n1", report(f"{REPOSITORY}:2", 2, "Absent"), entries=[order])
    assert has_let_go(found)
    more = StrayPin(reference=NGINX, digest=digest(1))
    assert not has_let_go(
        msgspec.structs.replace(found, status=msgspec.structs.replace(found.status, stray_pins=[more]))
    )
    pinned = msgspec.structs.replace(order, pin=True)
    assert not has_let_go(node_prepull("n1", report(f"{REPOSITORY}:2", 2, "Absent"), entries=[pinned]))


def test_an_uninstall_waits_until_the_pins_were_listed_after_its_orders() -> None:
    """A status has no room for all pins: when those it named are gone, others may be behind them."""
    order = order_of(STRAY)
    found = node_prepull("n1", report(NGINX, 1, "Absent"), entries=[order])
    before = StrayPin(reference=NGINX, digest=digest(1))
    status = msgspec.structs.replace(found.status, stray_pins=[before])
    stale = msgspec.structs.replace(found, status=status)
    assert is_ordered(stale)
    assert not has_let_go(stale)
    assert has_let_go(found)


class Api:
    """A FAKE API server that takes applies, and whose CRDs are in order or not."""

    def __init__(self) -> None:
        self.applied: list[dict[str, Any]] = []
        self.trusted = True

    async def apply(self, kind: object, name: str, body: dict[str, Any], **_: object) -> dict[str, Any]:
        self.applied.append(body)
        metadata = {"uid": name, "resourceVersion": "2", "generation": 2}
        return {**body, "metadata": body["metadata"] | metadata}

    async def holds(self) -> bool:
        return self.trusted


def prepull(generation: int = 1, image: str = "redis:7") -> dict[str, Any]:
    metadata = {"namespace": "shop", "name": "web", "uid": "web", "resourceVersion": str(generation)}
    return {"metadata": metadata | {"generation": generation}, "spec": {"images": [{"image": image}]}}


def plan(standby: Standby) -> None:
    """As the planner does."""
    world = standby.world
    world.planned = {one.uid: one.candidate for one in world.prepulls.values() if one.candidate}
    world.choices = assign(world.planned.values(), world.nodes, {})


async def read(standby: Standby) -> None:
    """Whoever waits to be read has been read."""
    while len(standby.queues.prepulls):
        standby.queues.prepulls.done(await standby.queues.prepulls.take())


async def gone(standby: Standby) -> None:
    standby.intake.prepull_event("DELETED", prepull())
    await read(standby)


async def unread(standby: Standby) -> None:
    standby.intake.prepull_event("MODIFIED", prepull(2, "nginx:1"))


async def edited(standby: Standby) -> None:
    standby.intake.prepull(prepull(2, "nginx:1"))


async def refused(standby: Standby) -> None:
    standby.intake.prepull(prepull(1, "No Image"))
    plan(standby)


async def reported_after_the_list(standby: Standby) -> None:
    standby.world.strays = {}


async def listed_something_else(standby: Standby) -> None:
    standby.world.strays = {"n1": frozenset({(NGINX, digest(2))})}


async def nothing(standby: Standby) -> None:
    pass


@pytest.mark.parametrize(
    ("doubt", "expected"),
    [
        (nothing, True),
        (gone, False),
        (unread, False),
        (edited, False),
        (refused, False),
        (reported_after_the_list, False),
        (listed_something_else, False),
    ],
)
async def test_nothing_is_ordered_while_an_object_may_mean_it_that_is_not_in_the_plan(
    doubt: Callable[[Standby], Any], expected: bool
) -> None:
    api, standby, writer = operator()
    await doubt(standby)
    await writer.write("n1")
    assert bool(api.applied) is expected
    if expected:
        (order,) = api.applied[0]["spec"]["images"]
        assert order == {"reference": NGINX, "digest": digest(1), "state": "Absent"}
        # The status speaks of the spec before: nothing is ordered twice.
        await writer.write("n1")
        assert len(api.applied) == 1


async def test_nothing_is_ordered_while_crds_or_caches_are_not_in_order() -> None:
    api, _, writer = operator()
    api.trusted = False
    await writer.write("n1")
    assert api.applied == []


def operator() -> tuple[Api, Standby, NodeWriter]:
    """One that has read its only object, listed everything, and knows of a stray pin since before."""
    api = Api()
    standby = Standby(cast("Any", api), OperatorSettings(access=cast("Any", None), identity="one"))
    standby.trust.holds = api.holds  # type: ignore[method-assign]
    standby.world.nodes.update(nodes("n1"))
    owner = {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "uid-n1"}
    metadata = {
        "name": "n1",
        "uid": "n1",
        "resourceVersion": "1",
        "generation": 1,
        "ownerReferences": [owner],
    }
    status = {"observedGeneration": 1, "strayPins": [{"reference": NGINX, "digest": digest(1)}]}
    document = {"metadata": metadata, "spec": {"images": []}, "status": status}
    standby.intake.node_prepull(Change("added", document, None, witnessed=True))
    standby.intake.prepull(prepull())
    plan(standby)
    standby.world.strays = standby.world.reported_strays()
    return api, standby, NodeWriter(cast("Any", api), standby, Rate(1000))
