import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from imageprepull.controller.witness import Witness

WHERE = ("shop", "web")


def test_a_deleted_event_needs_one_get() -> None:
    witness = Witness(interval=30)
    witness.deleted("u", *WHERE)
    assert [suspect.uid for suspect in witness.due(0)] == ["u"]
    witness.read("u", found=False, trusted=True, now=0)
    assert witness.gone == {"u"}


def test_a_deleted_event_is_not_believed_while_a_crd_is_missing() -> None:
    witness = Witness()
    witness.deleted("u", *WHERE)
    witness.read("u", found=False, trusted=False, now=0)
    assert witness.gone == frozenset()
    assert witness.due(1)


def test_a_re_created_object_has_another_uid() -> None:
    witness = Witness()
    witness.deleted("old", *WHERE)
    witness.seen("new")
    witness.read("old", found=False, trusted=True, now=0)
    assert witness.gone == {"old"}


def test_what_a_restored_backup_brings_back_is_not_gone_any_more() -> None:
    witness = Witness(interval=30)
    witness.deleted("u", *WHERE)
    witness.read("u", found=False, trusted=True, now=0)
    witness.listed(["u"], {"u": WHERE})
    assert witness.gone == frozenset()
    witness.deleted("u", *WHERE)
    witness.read("u", found=False, trusted=True, now=60)
    assert witness.gone == {"u"}


@pytest.mark.parametrize("gone", [True, False])
@pytest.mark.parametrize("by", ["list", "object", "suspicion"])
def test_an_answer_that_was_on_its_way_when_the_deletion_was_told_says_nothing(by: str, gone: bool) -> None:
    witness = Witness(interval=30)
    witness.deleted("u", *WHERE, now=10)
    if gone:
        witness.read("u", found=False, trusted=True, now=10)

    def answer(asked: float) -> None:
        if by == "list":
            witness.listed(["u"], {"u": WHERE}, asked=asked)
        elif by == "object":
            witness.seen("u", asked=asked)
        else:
            witness.read("u", found=True, trusted=True, now=12, asked=asked)

    answer(9)
    witness.read("u", found=False, trusted=True, now=12)
    assert witness.gone == {"u"}
    witness.seen("u", asked=11)
    assert witness.gone == frozenset(), "a backup was restored"
    witness.listed([], {"u": WHERE}, asked=12)
    assert witness.missing


@pytest.mark.parametrize("gone", [True, False])
def test_when_a_deletion_was_told_is_remembered_as_long_as_anything_follows_from_it(gone: bool) -> None:
    witness = Witness(interval=30)
    witness.deleted("u", *WHERE, now=10)
    if gone:
        witness.read("u", found=False, trusted=True, now=10)
    witness.forget(["u"])
    assert not witness.seen("u", asked=9)
    witness.read("u", found=False, trusted=True, now=12)
    witness.forget([])
    assert witness.seen("u", asked=9)


def test_missing_after_a_gap_needs_two_gets_apart() -> None:
    witness = Witness(interval=30)
    witness.listed([], {"u": WHERE})
    witness.read("u", found=False, trusted=True, now=0)
    assert witness.due(29) == []
    assert witness.due(30)
    witness.read("u", found=False, trusted=True, now=30)
    assert witness.release(alive=20) is None
    assert witness.gone == {"u"}


def test_distrust_between_the_two_gets_starts_anew() -> None:
    witness = Witness(interval=30)
    witness.listed([], {"u": WHERE})
    witness.read("u", found=False, trusted=True, now=0)
    witness.read("u", found=False, trusted=False, now=30)
    witness.read("u", found=False, trusted=True, now=60)
    witness.release(alive=20)
    assert witness.gone == frozenset()
    witness.read("u", found=False, trusted=True, now=90)
    witness.release(alive=20)
    assert witness.gone == {"u"}


def missing(count: int, interval: float = 30) -> Witness:
    witness = Witness(interval=interval)
    uids = [f"u{number}" for number in range(count)]
    witness.listed([], dict.fromkeys(uids, WHERE))
    for now in (0, interval):
        for uid in uids:
            witness.read(uid, found=False, trusted=True, now=now)
    return witness


def test_many_missing_at_once_wait_for_exactly_their_approval() -> None:
    witness = missing(3)
    held = witness.release(alive=10)
    assert held is not None
    assert (held.count, held.known) == (3, 13)
    assert witness.release(alive=10, approved="something-old") == held
    assert witness.gone == frozenset()
    assert witness.release(alive=10, approved=held.token) is None
    assert witness.gone == {"u0", "u1", "u2"}


def test_a_tenth_or_a_single_one_is_let_go() -> None:
    assert missing(2).release(alive=18) is None
    assert missing(2).release(alive=17) is not None
    assert missing(1).release(alive=0) is None


def test_with_a_kind_made_anew_even_one_waits() -> None:
    witness = missing(1)
    assert witness.missing
    held = witness.release(alive=100, remade=True)
    assert held is not None
    assert str(held).startswith("1 of 101 ImagePrepulls vanished unseen, maybe with their CRD (shop/web);")
    assert witness.gone == frozenset()
    assert witness.release(alive=100, remade=True, approved=held.token) is None
    assert witness.gone == {"u0"}
    assert not witness.missing


def test_a_wipe_is_not_let_through_one_by_one() -> None:
    witness = Witness(interval=30)
    witness.listed([], {"u0": WHERE, "u1": WHERE})
    for now in (0, 30):
        witness.read("u0", found=False, trusted=True, now=now)
    assert witness.release(alive=0) is not None
    assert witness.gone == frozenset()


class Cluster(RuleBasedStateMachine):
    """Objects come and go while lists, events, reads and CRDs fail in any order: the living are never gone."""

    @initialize()
    def start(self) -> None:
        self.witness = Witness(interval=30)
        self.alive: set[str] = set()
        self.known: set[str] = set()
        self.now = 0.0
        self.count = 0

    @rule()
    def create(self) -> None:
        self.count += 1
        self.alive.add(f"u{self.count}")
        self.known.add(f"u{self.count}")

    @rule(watched=st.booleans(), data=st.data())
    def delete(self, watched: bool, data: st.DataObject) -> None:
        if self.alive:
            uid = data.draw(st.sampled_from(sorted(self.alive)))
            self.alive.discard(uid)
            if watched:
                self.witness.deleted(uid, *WHERE)

    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        """A backup brings an object back, uid and all, and the operator reads it."""
        if self.known - self.alive:
            uid = data.draw(st.sampled_from(sorted(self.known - self.alive)))
            self.alive.add(uid)
            self.witness.seen(uid)

    @rule()
    def list_all(self) -> None:
        self.witness.listed(self.alive, dict.fromkeys(self.known, WHERE))

    @rule()
    def list_of_an_emptied_server(self) -> None:
        """An API server restored from an old backup, or a list with narrowed rights: empty, and wrong."""
        self.witness.listed([], dict.fromkeys(self.known, WHERE))

    @rule()
    def ghost_event(self) -> None:
        """A DELETED of an object that is alive: its CRD is being deleted, or the event is of another cluster."""
        for uid in self.alive:
            self.witness.deleted(uid, *WHERE)

    @rule(trusted=st.booleans(), passed=st.floats(0, 60))
    def read(self, trusted: bool, passed: float) -> None:
        self.now += passed
        for suspect in self.witness.due(self.now):
            # Without its CRD even a living object answers 404, and then the read is not trusted.
            found = suspect.uid in self.alive and trusted
            self.witness.read(suspect.uid, found=found, trusted=trusted, now=self.now)

    @rule()
    def release(self) -> None:
        self.witness.release(alive=len(self.alive))

    @invariant()
    def the_living_are_not_gone(self) -> None:
        if hasattr(self, "witness"):
            assert not self.witness.gone & self.alive


TestCluster = Cluster.TestCase


@given(st.integers(2, 40), st.integers(0, 400))
def test_the_brake_is_a_tenth(count: int, alive: int) -> None:
    held = missing(count).release(alive=alive)
    assert (held is not None) == (count * 10 > alive + count)
