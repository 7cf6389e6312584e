from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.controller.asked import Owners
from imageprepull.controller.assign import Candidate, assign
from imageprepull.controller.nodes import NodeFacts, Taint
from imageprepull.controller.render import Rendered, done_removals, render, takes_back
from imageprepull.controller.resolution import Resolution
from imageprepull.resources import bounds
from imageprepull.resources.imageprepull import DeletionPolicy
from imageprepull.resources.nodeprepull import Desired, DesiredImage, OnRemoval, wanted_digests
from tests.unit.controller_doubles import candidate, digest, node_prepull, nodes, report, resolution

NGINX = "docker.io/library/nginx:1"
STABLE = "docker.io/library/nginx:stable"
REDIS = "docker.io/library/redis:7"
KNOWN = {NGINX: resolution(NGINX, 1), REDIS: resolution(REDIS, 2)}


def planned(
    *candidates: Candidate,
    facts: Mapping[str, NodeFacts] | None = None,
    resolutions: Mapping[str, Resolution] = KNOWN,
    gone: Iterable[str] = (),
    confirmed: Iterable[str] = (),
    retaining: Iterable[str] = (),
    complete: bool = False,
) -> Owners:
    choices = assign(candidates, facts or nodes("n1"), resolutions)
    retained = {
        one.uid for one in candidates if one.prepull.spec.deletion_policy is not DeletionPolicy.DELETE
    }
    return Owners(
        {one.uid: one for one in candidates},
        choices,
        set(gone),
        set(confirmed),
        retained | set(retaining),
        complete,
    )


def entry(
    reference: str = NGINX, number: int = 1, owners: Iterable[str] = ("shop/web/uid-web",), **more: Any
) -> DesiredImage:
    return DesiredImage(reference=reference, digest=digest(number), owners=list(owners), pin=True, **more)


def states(rendered: Rendered) -> dict[str, str]:
    return {image.reference: image.state.value for image in rendered.images}


def test_what_is_admitted_is_present_and_sorted() -> None:
    rendered = render("n1", [], planned(candidate(images=["redis:7", "nginx:1"], priority=5)))
    assert [(image.reference, image.digest, image.priority) for image in rendered.images] == [
        (NGINX, digest(1), 5),
        (REDIS, digest(2), 5),
    ]
    assert rendered.images[0].owners == ["shop/web/uid-web"]
    assert rendered.images[0].pin
    assert (
        render("n1", rendered.images, planned(candidate(images=["nginx:1", "redis:7"], priority=5)))
        == rendered
    )


def test_an_unresolved_image_is_not_written() -> None:
    assert render("n1", [], planned(candidate(), resolutions={})).images == []


def test_of_two_owners_the_strictest_counts() -> None:
    first = candidate(
        "a", priority=-3, limits={"parallelImages": 1, "parallelDownloads": 9}, pinPolicy="Never"
    )
    second = candidate(
        "b", priority=7, limits={"parallelImages": 4, "parallelDownloads": 2}, maxBackoffSeconds=10
    )
    merged = render("n1", [], planned(first, second)).images[0]
    assert (merged.priority, merged.pin, merged.owners) == (7, True, ["shop/a/uid-a", "shop/b/uid-b"])
    assert (merged.limits.parallel_images, merged.limits.parallel_downloads) == (1, 2)
    assert merged.retry.max_backoff_seconds == 10
    assert merged.on_removal is OnRemoval.UNPIN


def test_the_free_space_that_all_owners_ask_for_stays_free() -> None:
    def asked(*wishes: int | str | None) -> str | None:
        owners = [
            candidate(f"o{number}", limits={} if wish is None else {"minFreeDisk": wish})
            for number, wish in enumerate(wishes)
        ]
        return render("n1", [], planned(*owners)).images[0].limits.min_free_disk

    assert asked(None, None) is None
    assert asked("20Gi", None) == "20Gi"
    assert asked(5) == "5"
    assert asked("20%", "15%", 1000) == "1000,20%"


def test_an_unknown_owner_keeps_its_entry() -> None:
    assert render("n1", [entry()], planned()).images == [entry()]


def test_a_gone_owner_lets_go() -> None:
    rendered = render("n1", [entry()], planned(gone=["uid-web"]))
    assert states(rendered) == {NGINX: "Absent"}
    assert not rendered.images[0].pin
    assert rendered.images[0].on_removal is OnRemoval.UNPIN


def test_one_remaining_owner_keeps_the_entry_present() -> None:
    both = entry(owners=["shop/a/uid-a", "shop/web/uid-web"])
    rendered = render("n1", [both], planned(candidate("a"), gone=["uid-web"]))
    assert states(rendered) == {NGINX: "Present"}
    assert rendered.images[0].owners == ["shop/a/uid-a"]


def test_it_is_deleted_only_if_all_that_name_it_say_so() -> None:
    deleting = candidate("a", deletionPolicy="Delete")
    retaining = candidate("b")
    alone = render("n1", [], planned(deleting)).images
    assert alone[0].on_removal is OnRemoval.DELETE
    both = render("n1", alone, planned(deleting, retaining)).images
    assert both[0].on_removal is OnRemoval.UNPIN
    for gone in (["uid-a", "uid-b"], ["uid-a"], ["uid-b"]):
        left = [one for one in (deleting, retaining) if one.uid not in gone]
        after = render("n1", both, planned(*left, gone=gone)).images
        assert (after[0].on_removal is OnRemoval.DELETE) == (gone == ["uid-b"]), gone
    (absent,) = render("n1", alone, planned(gone=["uid-a"])).images
    assert (absent.state, absent.on_removal) == (Desired.ABSENT, OnRemoval.DELETE)


def test_an_edit_lets_go_only_after_confirmation() -> None:
    edited = candidate(images=["redis:7"], generation=2)
    first = render("n1", [entry()], planned(edited))
    assert states(first) == {NGINX: "Present", REDIS: "Present"}
    assert first.confirm == {"uid-web"}
    second = render("n1", first.images, planned(edited, confirmed=["uid-web"]))
    assert states(second) == {NGINX: "Absent", REDIS: "Present"}
    assert not second.confirm


def test_an_image_that_is_not_resolved_any_more_stays() -> None:
    rendered = render("n1", [entry()], planned(candidate(), resolutions={}, confirmed=["uid-web"]))
    assert rendered.images == [entry()]


def test_a_moved_digest_lets_go_of_the_old_one() -> None:
    moved = {NGINX: resolution(NGINX, 9)}
    rendered = render("n1", [entry()], planned(candidate(), resolutions=moved, confirmed=["uid-web"]))
    assert [(image.digest, image.state) for image in rendered.images] == [
        (digest(1), Desired.ABSENT),
        (digest(9), Desired.PRESENT),
    ]


def test_who_says_retain_in_the_edit_that_drops_an_image_keeps_it() -> None:
    now = [entry(on_removal=OnRemoval.DELETE)]
    for policy, expected in (("Retain", OnRemoval.UNPIN), ("Delete", OnRemoval.DELETE)):
        edited = candidate(images=["redis:7"], generation=2, deletionPolicy=policy)
        (dropped,) = (
            image
            for image in render("n1", now, planned(edited, confirmed=["uid-web"])).images
            if image.reference == NGINX
        )
        assert (dropped.state, dropped.on_removal) == (Desired.ABSENT, expected)


def test_who_said_retain_right_before_it_was_deleted_keeps_its_images() -> None:
    both = entry(owners=["shop/a/uid-a", "shop/web/uid-web"], on_removal=OnRemoval.DELETE)
    for retaining, expected in (([], OnRemoval.DELETE), (["uid-a"], OnRemoval.UNPIN)):
        (left,) = render("n1", [both], planned(gone=["uid-a", "uid-web"], retaining=retaining)).images
        assert (left.state, left.on_removal) == (Desired.ABSENT, expected)


def test_a_new_object_holds_its_tag_before_it_is_resolved() -> None:
    anew = candidate(name="anew", uid="uid-anew")
    now = [entry(on_removal=OnRemoval.DELETE)]
    (kept,) = render("n1", now, planned(anew, resolutions={}, gone=["uid-web"])).images
    assert (kept.state, kept.owners) == (Desired.PRESENT, ["shop/web/uid-web"])
    (resolved,) = render("n1", [kept], planned(anew, gone=["uid-web"])).images
    assert (resolved.state, resolved.owners) == (Desired.PRESENT, ["shop/anew/uid-anew"])
    moved = render(
        "n1",
        [kept],
        planned(anew, resolutions={NGINX: resolution(NGINX, 9)}, gone=["uid-web"], confirmed=["uid-anew"]),
    ).images
    assert {(image.digest, image.state) for image in moved} == {
        (digest(1), Desired.ABSENT),
        (digest(9), Desired.PRESENT),
    }


@pytest.mark.parametrize(
    ("why", "owner"), [("not resolved yet", "uid-web"), ("skips the node for now", "uid-anew")]
)
def test_an_order_is_taken_back_for_who_may_mean_that_very_image(why: str, owner: str) -> None:
    """It waits for a container, say, when an object that names the image is made anew."""
    anew = candidate(name="web", uid="uid-anew", deletionPolicy="Delete")
    doubtful = (
        planned(anew, resolutions={}, gone=["uid-web"])
        if why == "not resolved yet"
        else planned(anew, facts=nodes("n1", disk_pressure=True), gone=["uid-web"])
    )
    order = entry(state=Desired.ABSENT, on_removal=OnRemoval.DELETE)
    (kept,) = render("n1", [order], doubtful).images
    assert (kept.state, kept.owners, kept.pin) == (Desired.PAUSED, [f"shop/web/{owner}"], True)
    assert render("n1", [kept], doubtful).images == [kept], "as long as that is so"
    (back,) = render("n1", [kept], planned(anew, gone=["uid-web"])).images
    assert (back.state, back.owners) == (Desired.PRESENT, ["shop/web/uid-anew"])
    (again,) = render("n1", [kept], planned(gone=["uid-web", "uid-anew"])).images
    assert (again.state, again.on_removal) == (Desired.ABSENT, OnRemoval.DELETE)
    done = {(order.reference, order.digest)}
    assert render("n1", [order], doubtful, done).images == [], "there is nothing left to keep"


def test_who_may_mean_an_image_and_does_not_has_no_say_in_what_becomes_of_it() -> None:
    """Neither is what somebody wanted to retain deleted, nor retained what was to be deleted."""
    pinned = entry(owners=["shop/retains/uid-retains"], on_removal=OnRemoval.UNPIN)
    order = msgspec.structs.replace(pinned, state=Desired.ABSENT, pin=False)
    stray = msgspec.structs.replace(order, owners=[])
    wanted = entry(owners=["shop/web/uid-web"], on_removal=OnRemoval.DELETE)
    to_delete = msgspec.structs.replace(wanted, state=Desired.ABSENT, pin=False)
    for now, policy in (
        (pinned, "Delete"),
        (order, "Delete"),
        (stray, "Delete"),
        (wanted, "Retain"),
        (to_delete, "Retain"),
    ):
        anew = candidate("anew", deletionPolicy=policy)
        sayings: dict[str, Any] = {"gone": ["uid-web", "uid-retains"], "retaining": ["uid-retains"]}
        (held,) = render("n1", [now], planned(anew, resolutions={}, **sayings)).images
        assert held.state is not Desired.ABSENT
        moved = planned(anew, resolutions={NGINX: resolution(NGINX, 9)}, confirmed=["uid-anew"], **sayings)
        found = {image.digest: image for image in render("n1", [held], moved).images}
        assert found[digest(1)] == msgspec.structs.replace(now, state=Desired.ABSENT, pin=False)


def test_an_owner_that_comes_back_to_its_tag_does_not_make_an_order_to_unpin_one_to_delete() -> None:
    both = ["shop/retains/uid-retains", "shop/web/uid-web"]
    now = entry(owners=both, on_removal=OnRemoval.UNPIN, state=Desired.ABSENT)
    web = candidate(deletionPolicy="Delete")
    gone = ["uid-retains"]
    for confirmed in ([], ["uid-web"]):
        back = planned(web, resolutions={}, gone=gone, confirmed=confirmed)
        (held,) = render("n1", [now], back).images
        assert render("n1", [held], back).images == [held]
        moved = planned(web, resolutions={NGINX: resolution(NGINX, 9)}, gone=gone, confirmed=["uid-web"])
        found = {image.digest: image for image in render("n1", [held], moved).images}
        assert (found[digest(1)].state, found[digest(1)].on_removal) == (Desired.ABSENT, OnRemoval.UNPIN)


def test_an_edit_from_one_tag_to_the_next_waits_for_the_next_ones_digest() -> None:
    edited = candidate(images=["nginx:stable"], generation=2, deletionPolicy="Delete")
    now = entry(on_removal=OnRemoval.DELETE)
    waiting = msgspec.structs.replace(now, state=Desired.PAUSED)
    for confirmed in ([], ["uid-web"]):
        assert render("n1", [now], planned(edited, resolutions={}, confirmed=confirmed)).images == [waiting]
    known = {STABLE: resolution(STABLE, 2)}
    rendered = render("n1", [now], planned(edited, resolutions=known, confirmed=["uid-web"]))
    assert states(rendered) == {NGINX: "Absent", STABLE: "Present"}


@pytest.mark.parametrize("state", [Desired.ABSENT, Desired.PRESENT])
def test_what_is_to_be_deleted_waits_for_tags_of_its_repository_that_have_no_digest_yet(
    state: Desired,
) -> None:
    """They may mean the very same image, as with stray pins. That a pin is taken away can be mended.

    It is not brought for them: nobody names its tag any more, and theirs may never have a digest.
    """
    now = entry(on_removal=OnRemoval.DELETE, state=state)
    stable = candidate("anew", images=["nginx:stable"], deletionPolicy="Delete")
    unknown = planned(stable, resolutions={}, gone=["uid-web"])
    (kept,) = render("n1", [now], unknown).images
    assert (kept.state, kept.owners, kept.on_removal) == (Desired.PAUSED, now.owners, OnRemoval.DELETE)
    assert render("n1", [kept], unknown).images == [kept]
    for number in (1, 9):
        known = planned(stable, resolutions={STABLE: resolution(STABLE, number)}, gone=["uid-web"])
        assert states(render("n1", [kept], known)) == {NGINX: "Absent", STABLE: "Present"}
    unpin = msgspec.structs.replace(now, on_removal=OnRemoval.UNPIN)
    other = planned(candidate("anew", images=["redis:7"]), resolutions={}, gone=["uid-web"])
    assert states(render("n1", [unpin], unknown)) == states(render("n1", [now], other)) == {NGINX: "Absent"}


def test_an_object_made_anew_keeps_its_image_on_a_node_that_it_skips_for_now() -> None:
    """Replaced while the node is short of disk: the node gets nothing new, and loses nothing."""
    anew = candidate(name="web", uid="uid-anew", deletionPolicy="Delete")
    now = [entry(on_removal=OnRemoval.DELETE)]
    facts = nodes("n1", disk_pressure=True)
    (kept,) = render("n1", now, planned(anew, facts=facts, gone=["uid-web"])).images
    assert (kept.state, kept.owners) == (Desired.PAUSED, ["shop/web/uid-anew"])
    (back,) = render("n1", [kept], planned(anew)).images
    assert (back.state, back.owners) == (Desired.PRESENT, ["shop/web/uid-anew"])


def test_who_skips_the_node_for_now_still_says_what_becomes_of_its_image() -> None:
    toleration = [{"key": "team", "operator": "Exists"}]
    facts = {"n1": NodeFacts("n1", taints=(Taint("team", "x"),))}
    skipping = candidate("b", priority=3)
    for priority, policy in ((5, "Retain"), (1, "Delete")):
        both = candidate("a", priority=priority, deletionPolicy=policy, tolerations=toleration)
        now = [entry(owners=["shop/a/uid-a", "shop/b/uid-b"], priority=9, on_removal=OnRemoval.DELETE)]
        (merged,) = render("n1", now, planned(both, skipping, facts=facts)).images
        assert merged.owners == ["shop/a/uid-a", "shop/b/uid-b"]
        assert (merged.state, merged.priority, merged.on_removal) == (
            Desired.PRESENT,
            max(priority, 3),
            OnRemoval.UNPIN,
        )


TAINTED = {"n1": NodeFacts("n1", taints=(Taint("team", "x"),))}
PRESSED = nodes("n1", disk_pressure=True)


@pytest.mark.parametrize("resolutions", [KNOWN, {}], ids=["same digest", "no digest yet"])
@pytest.mark.parametrize(
    ("name", "facts", "state"),
    [
        ("b", TAINTED, "Absent"),
        ("a", TAINTED, "Paused"),
        ("b", PRESSED, "Paused"),
        ("b", {"n1": replace(PRESSED["n1"], taints=TAINTED["n1"].taints)}, "Absent"),
    ],
    ids=["tainted", "tainted, and made anew", "short of disk", "both"],
)
def test_who_never_had_an_image_on_a_node_does_not_keep_it_where_it_will_never_bring_it(
    name: str, facts: Mapping[str, NodeFacts], state: str, resolutions: Mapping[str, Resolution]
) -> None:
    """One that chooses all nodes, as by default, and does not tolerate what only some have."""
    anew = candidate(name, uid="uid-anew", deletionPolicy="Delete")
    owners = planned(anew, facts=facts, resolutions=resolutions, gone=["uid-a"])
    now = entry(owners=["shop/a/uid-a"], on_removal=OnRemoval.DELETE, state=Desired.PAUSED)
    assert states(render("n1", [now], owners)) == {NGINX: state}
    order = msgspec.structs.replace(now, state=Desired.ABSENT, pin=False)
    assert states(render("n1", [order], owners)) == {NGINX: state}


def test_one_of_many_owners_may_be_who_skips_the_node() -> None:
    now = entry(owners=[f"shop/o/{number}" for number in range(bounds.OWNERS)])
    gone = [str(number) for number in range(bounds.OWNERS)]
    owners = planned(candidate("b"), facts=TAINTED, gone=gone, complete=True)
    assert states(render("n1", [now], owners)) == {NGINX: "Paused"}


def test_who_skips_the_node_and_means_another_image_by_now_keeps_none() -> None:
    """A node that is short of disk needs the room."""
    moved = planned(
        candidate(), facts=PRESSED, resolutions={NGINX: resolution(NGINX, 9)}, confirmed=["uid-web"]
    )
    for state in Desired:
        assert states(render("n1", [entry(state=state)], moved)) == {NGINX: "Absent"}


def test_a_tag_that_moves_leaves_nothing_to_who_skips_the_node() -> None:
    toleration = [{"key": "team", "operator": "Exists"}]
    bringing, skipping = candidate("a", tolerations=toleration), candidate("b")
    images: list[DesiredImage] = []
    for number in (1, 2, 3):
        moved = {NGINX: resolution(NGINX, number)}
        confirmed = ["uid-a", "uid-b"]
        owners = planned(bringing, skipping, facts=TAINTED, resolutions=moved, confirmed=confirmed)
        images = render("n1", images, owners).images
    assert [(image.digest, image.state, image.owners) for image in images] == [
        (digest(1), Desired.ABSENT, ["shop/a/uid-a"]),
        (digest(2), Desired.ABSENT, ["shop/a/uid-a"]),
        (digest(3), Desired.PRESENT, ["shop/a/uid-a"]),
    ]


def test_what_is_to_be_deleted_waits_for_other_tags_of_who_skips_the_node_for_a_while() -> None:
    now = entry(on_removal=OnRemoval.DELETE)
    stable = candidate("anew", images=["nginx:stable"], deletionPolicy="Delete")
    for facts, state in ((PRESSED, "Paused"), (TAINTED, "Absent")):
        owners = planned(stable, facts=facts, resolutions={}, gone=["uid-web"])
        assert states(render("n1", [now], owners)) == {NGINX: state}


@pytest.mark.parametrize("state", list(Desired))
@pytest.mark.parametrize(("number", "waits"), [(1, "Paused"), (9, "Absent")])
def test_what_is_to_be_deleted_waits_for_who_skips_the_node_and_means_it_by_another_tag(
    state: Desired, number: int, waits: str
) -> None:
    """As long as that tag had no digest it did: it must not go when it turns out to be meant."""
    now = entry(on_removal=OnRemoval.DELETE, state=state)
    stable = candidate("anew", images=["nginx:stable"])
    known = {STABLE: resolution(STABLE, number)}
    (kept,) = render("n1", [now], planned(stable, facts=PRESSED, resolutions=known, gone=["uid-web"])).images
    assert (kept.state.value, kept.owners, kept.on_removal) == (waits, now.owners, OnRemoval.DELETE)
    tainted = planned(stable, facts=TAINTED, resolutions=known, gone=["uid-web"])
    assert states(render("n1", [kept], tainted)) == {NGINX: "Absent"}, "it is never brought there"
    brought = planned(stable, resolutions=known, gone=["uid-web"])
    assert states(render("n1", [kept], brought)) == {NGINX: "Absent", STABLE: "Present"}


def test_of_those_who_wait_for_a_node_no_more_are_named_than_the_schema_allows() -> None:
    crowd = [candidate(f"c{number:02}") for number in range(70)]
    facts = nodes("n1", disk_pressure=True)
    (kept,) = render("n1", [entry()], planned(*crowd, facts=facts, gone=["uid-web"])).images
    assert (kept.state, len(kept.owners)) == (Desired.PAUSED, 64)


def test_a_no_schedule_taint_pauses_and_a_no_execute_taint_takes_back() -> None:
    for effect, state in (("NoSchedule", "Paused"), ("NoExecute", "Absent")):
        facts = {"n1": NodeFacts("n1", taints=(Taint("team", "x", effect),))}
        rendered = render("n1", [entry()], planned(candidate(), facts=facts, confirmed=["uid-web"]))
        assert states(rendered) == {NGINX: state}
    assert states(render("n1", rendered.images, planned(candidate()))) == {NGINX: "Present"}


def test_an_absent_entry_stays_until_it_is_done() -> None:
    absent = msgspec.structs.replace(entry(), state=Desired.ABSENT, pin=False)
    assert render("n1", [absent], planned()).images == [absent]
    assert render("n1", [absent], planned(), done={(NGINX, digest(1))}).images == []
    assert states(render("n1", [absent], planned(candidate()))) == {NGINX: "Present"}


def test_done_is_believed_of_the_current_generation_only() -> None:
    reported = node_prepull("n1", report(NGINX, 1, "Absent"), report(REDIS, 2, "Ready"), generation=4)
    assert done_removals(reported.status, 4) == {(NGINX, digest(1))}
    assert done_removals(reported.status, 5) == set()


def test_too_many_images_keep_orders_and_priorities() -> None:
    many = [
        entry(f"r.io/x:{number}", number, owners=["a/b/unknown"], priority=number) for number in range(300)
    ]
    many[0] = msgspec.structs.replace(many[0], state=Desired.ABSENT)
    rendered = render("n1", many, planned())
    assert (len(rendered.images), len(rendered.omitted)) == (256, 44)
    kept = {image.reference for image in rendered.images}
    assert "r.io/x:0" in kept
    assert "r.io/x:299" in kept
    assert "r.io/x:1" not in kept


@pytest.mark.parametrize("wanted", [NGINX, STABLE])
def test_what_takes_an_order_back_has_room_or_counts_without(wanted: str) -> None:
    """The order stands as long as its entry does, and what keeps its digest under another reference would be left out."""
    crowd = [
        candidate(f"c{number}", images=[f"r.io/x{number}:{place}" for place in range(64)], priority=5)
        for number in range(4)
    ]
    known = {image.record: resolution(image.record, 7) for one in crowd for image in one.images}
    web = candidate(images=[wanted], deletionPolicy="Delete")
    order = entry(state=Desired.ABSENT, on_removal=OnRemoval.DELETE, owners=["shop/old/uid-old"])
    owners = planned(web, *crowd, resolutions=known | {wanted: resolution(wanted, 1)}, gone=["uid-old"])
    rendered = render("n1", [order], owners)
    assert rendered.omitted
    assert takes_back([order], rendered)
    after = render("n1", rendered.images, owners)
    assert not takes_back(rendered.images, after), "once written, nothing is doubted any more"
    assert not any(image.to_be_deleted for image in after.images) or digest(1) in wanted_digests(after.images)


@given(st.data())
def test_nothing_that_has_an_owner_left_is_ever_let_go(data: st.DataObject) -> None:
    """Whatever of the cluster is known, missing or unresolved: Absent needs every owner gone or confirmed."""
    uids = ["uid-a", "uid-b", "uid-c"]
    alive = [
        candidate(uid[-1], data.draw(st.sampled_from([["nginx:1"], ["redis:7"]])))
        for uid in data.draw(st.sets(st.sampled_from(uids)))
    ]
    resolutions = data.draw(st.sampled_from([{}, KNOWN, {NGINX: KNOWN[NGINX]}, {NGINX: Resolution(NGINX)}]))
    gone = data.draw(st.sets(st.sampled_from(uids))) - {one.uid for one in alive}
    confirmed = data.draw(st.sets(st.sampled_from(uids)))
    owners = data.draw(st.lists(st.sampled_from(uids), unique=True, max_size=3))
    facts = data.draw(st.sampled_from([nodes("n1"), nodes("n2"), nodes("n1", "n2")]))
    old = entry(owners=[f"shop/{uid[-1]}/{uid}" for uid in owners])
    rendered = render(
        "n1", [old], planned(*alive, facts=facts, resolutions=resolutions, gone=gone, confirmed=confirmed)
    )
    found = next(image for image in rendered.images if image.reference == NGINX)
    if found.state is Desired.ABSENT:
        assert owners
        by_uid = {one.uid: one for one in alive}
        for uid in owners:
            assert uid in gone or (uid in by_uid and uid in confirmed)
            if uid in by_uid and facts.get("n1"):
                assert by_uid[uid].images[0].record != NGINX


def many(number: int = bounds.OWNERS + 1) -> list[Candidate]:
    return [candidate(f"o{place:03d}", deletionPolicy="Delete") for place in range(number)]


def test_where_more_own_an_image_than_are_listed_nothing_is_withdrawn_while_anybody_may_be_one_of_them() -> (
    None
):
    objects = many()
    current = render("n1", [], planned(*objects, complete=True)).images
    assert len(current[0].owners) == bounds.OWNERS
    assert objects[-1].owner not in current[0].owners
    # The last one is refused by now; the others go one after the other.
    for number in range(1, bounds.OWNERS + 1):
        gone = [one.uid for one in objects[:number]]
        rendered = render("n1", current, planned(*objects[number:-1], gone=gone))
        assert states(rendered) == {NGINX: "Present"}
        assert rendered.unsure is (number == bounds.OWNERS), "before that somebody is known to want it"
        current = rendered.images
    assert len(current[0].owners) == bounds.OWNERS, "that there are so many must stay on record"
    rendered = render("n1", current, planned(gone=[one.uid for one in objects], complete=True))
    (entry,) = rendered.images
    assert (entry.state, entry.on_removal, rendered.unsure) == (Desired.ABSENT, OnRemoval.DELETE, False)


def test_only_where_nobody_is_known_to_hold_an_entry_its_owners_are_waited_for() -> None:
    objects = many()
    crowded = msgspec.structs.replace(render("n1", [], planned(*objects)).images[0], reference=STABLE)
    others = [entry(REDIS, 2), entry()]
    gone = [one.uid for one in objects]
    for order in ([crowded, *others], [*others, crowded]):
        assert render("n1", order, planned(candidate(images=["redis:7", "nginx:1"]), gone=gone)).unsure
    known = {STABLE: resolution(STABLE, 1)}
    skipping = candidate(images=["nginx:stable"])
    pressed = render("n1", [crowded], planned(skipping, facts=PRESSED, resolutions=known, gone=gone))
    unread = render("n1", [crowded], planned(gone=gone[1:]))
    assert not pressed.unsure
    assert not unread.unsure
    assert not unread.confirm, "there is nothing to read again"


def test_when_all_are_in_the_plan_the_owners_are_counted_anew() -> None:
    objects = many()
    current = render("n1", [], planned(*objects)).images
    gone = [one.uid for one in objects[:-1]]
    (entry,) = render("n1", current, planned(objects[-1], gone=gone, complete=True)).images
    assert (entry.state, entry.owners) == (Desired.PRESENT, [objects[-1].owner])


def test_the_last_word_of_an_owner_that_is_not_listed_counts() -> None:
    objects = many()
    current = render("n1", [], planned(*objects)).images
    gone = [one.uid for one in objects]
    for retaining, expected in (
        ([objects[-1].uid], OnRemoval.UNPIN),
        # It may have said so in the very edit that drops the image.
        (["somebody that lives"], OnRemoval.UNPIN),
        ([], OnRemoval.DELETE),
    ):
        owners = planned(gone=gone, retaining=retaining, complete=True)
        assert [image.on_removal for image in render("n1", current, owners).images] == [expected]


def test_as_many_owners_as_there_is_room_for_wait_for_nobody_else_once_they_are_fewer() -> None:
    objects = many(bounds.OWNERS - 1)
    current = render("n1", [], planned(*objects)).images
    (entry,) = render("n1", current, planned(gone=[one.uid for one in objects])).images
    assert entry.state is Desired.ABSENT
