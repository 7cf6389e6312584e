"""What goes with a chain that is not believed: everything on it, but nothing that somebody works in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from imageprepull.pulling.chain_removal import Doomed, doomed_with, what_stays_for
from imageprepull.pulling.forgotten import forgotten
from imageprepull.pulling.labels import LEASE
from imageprepull.runtime.snapshots import SnapshotInfo, SnapshotKind


def layer(name: str, parent: str = "") -> SnapshotInfo:
    return SnapshotInfo(name, parent, SnapshotKind.COMMITTED)


def active(name: str, parent: str, **labels: str) -> SnapshotInfo:
    return SnapshotInfo(name, parent, SnapshotKind.ACTIVE, labels)


def test_children_go_before_their_parents() -> None:
    chain = [layer("a"), layer("b", "a"), layer("c", "b"), layer("apart")]
    assert doomed_with({"a"}, chain) == Doomed(["c", "b", "a"], {})


USED = [layer("a"), layer("b", "a"), active("box", "b"), layer("c", "a"), layer("d", "c")]
"""A container on one of two images that share a base."""


def test_what_a_container_stands_on_stays_and_is_named() -> None:
    found = doomed_with({"a"}, [layer("a"), layer("b", "a"), active("box", "b")])
    assert found == Doomed([], {"b": "box", "a": "box"})


def test_nothing_goes_that_stands_on_a_root_that_stays() -> None:
    """It would be gone for nothing: the root stays, and nothing is made anew on it."""
    assert doomed_with({"a"}, USED) == Doomed([], dict.fromkeys("dcba", "box"))
    assert doomed_with({"a", "c", "d"}, USED) == Doomed([], dict.fromkeys("dcba", "box")), "roots neither"


def test_a_dead_attempt_on_a_root_that_stays_is_left_to_those_who_know_its_lease() -> None:
    dead = active("extract-1", "a", **{LEASE: "node"})
    assert doomed_with({"a"}, [*USED, dead]).removable == []


def test_roots_that_can_go_go() -> None:
    """On a layer below that is in use, and where nobody works."""
    assert doomed_with({"c"}, USED) == Doomed(["d", "c"], {})
    others = [layer("e"), layer("f", "e")]
    assert doomed_with({"a", "e"}, [*USED, *others]) == Doomed(["f", "e"], dict.fromkeys("dcba", "box"))


def test_what_an_image_has_taken_stays_with_all_below_it_and_nothing_beside_it() -> None:
    """The records of what is beside it have gone by then."""
    chain = [layer("a"), layer("b", "a"), layer("c", "b"), layer("d", "a")]
    assert doomed_with({"a"}, chain, {"b": "the image x"}) == Doomed(
        ["d", "c"], {"b": "the image x", "a": "the image x"}
    )
    assert doomed_with({"c", "b"}, USED, {"d": "the image x"}) == Doomed(
        [], {"d": "the image x", "c": "the image x", "b": "box"}
    )


def test_a_dead_attempt_of_ours_is_nobody() -> None:
    found = doomed_with({"a"}, [layer("a"), active("extract-1", "a", **{LEASE: "node"})])
    assert found == Doomed(["extract-1", "a"], {})


def test_a_view_is_somebody() -> None:
    view = SnapshotInfo("look", "a", SnapshotKind.VIEW)
    assert doomed_with({"a"}, [layer("a"), view]) == Doomed([], {"a": "look"})


def test_names_that_are_not_there_are_nothing() -> None:
    assert doomed_with({"gone"}, [layer("a")]) == Doomed([], {})


def test_each_kind_of_user_is_told_apart() -> None:
    assert what_stays_for("1b9c").startswith("1b9c uses it; delete the pods")
    dead = what_stays_for(f"extract-77-Ab1x sha256:{'1' * 64}")
    assert "pods" not in dead
    assert "up to a day" in dead
    assert "tried again later" in what_stays_for("cannot remove snapshot with child: failed precondition")


def test_only_what_nobody_else_stands_on_is_left_to_a_collection() -> None:
    snapshots = [layer("a"), layer("b", "a"), layer("c", "b"), active("box", "c"), layer("d", "a")]
    assert forgotten(["d", "b"], snapshots) == ["d"]
    assert forgotten(["d", "c", "b", "a"], [one for one in snapshots if one.name != "box"]) == [
        "d",
        "c",
        "b",
        "a",
    ]
    assert forgotten(["b"], [layer("b")]) == ["b"]


@st.composite
def forests(draw: st.DrawFn) -> tuple[list[SnapshotInfo], set[str]]:
    snapshots: list[SnapshotInfo] = []
    for number in range(draw(st.integers(1, 14))):
        committed = [found.name for found in snapshots if found.kind is SnapshotKind.COMMITTED]
        parent = draw(st.sampled_from(["", *committed]))
        kind = draw(st.sampled_from([SnapshotKind.COMMITTED, SnapshotKind.COMMITTED, SnapshotKind.ACTIVE]))
        labels = {LEASE: "node"} if draw(st.booleans()) else {}
        snapshots.append(SnapshotInfo(f"s{number}", parent, kind, labels))
    roots = draw(st.sets(st.sampled_from([found.name for found in snapshots])))
    return snapshots, roots


@given(forests())
def test_the_runtime_can_remove_them_in_this_order_and_nobodys_work_is_lost(
    forest: tuple[list[SnapshotInfo], set[str]],
) -> None:
    snapshots, roots = forest
    doomed = doomed_with(roots, snapshots)
    left = {found.name: found for found in snapshots}
    for name in doomed.removable:
        assert not any(found.parent == name for found in left.values()), "it has children"
        del left[name]
    worked_in = [f for f in snapshots if f.kind is SnapshotKind.ACTIVE and LEASE not in f.labels]
    for found in worked_in:
        name = found.name
        while name:
            assert name in left
            name = left[name].parent
    for name in roots & left.keys():
        assert name in doomed.in_use or left[name].kind is SnapshotKind.ACTIVE
    parents = {found.name: found.parent for found in snapshots}
    for name in doomed.removable:
        while name := parents[name]:
            assert name not in roots & doomed.in_use.keys(), "it stands on a root that stays"
