"""Which of several digests a tag means on a node."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from imageprepull.agent.plan import key_of
from imageprepull.agent.tags import tags_elsewhere, without_tag
from imageprepull.resources.nodeprepull import Desired, DesiredImage
from tests.unit.agent_doubles import image

ONE, TWO, THREE = (f"sha256:{digit * 64}" for digit in "123")

entries = st.builds(
    lambda reference, digest, state, priority: image(
        reference, digest=digest, state=state, priority=priority
    ),
    st.sampled_from(["a:1", "a:2", "b:1"]),
    st.sampled_from([ONE, TWO, THREE]),
    st.sampled_from(list(Desired)),
    st.integers(-1, 1),
)
specs = st.lists(entries, max_size=6, unique_by=key_of)


def test_the_highest_priority_gets_the_tag_and_among_equals_the_digest_that_sorts_first() -> None:
    one, two, three = (image("a:1", digest=digest) for digest in (ONE, TWO, THREE))
    first = image("a:1", digest=THREE, priority=1)
    assert tags_elsewhere([two, one]) == {key_of(two): ONE}
    assert tags_elsewhere([one, two, first]) == {key_of(one): THREE, key_of(two): THREE}
    assert tags_elsewhere([three]) == {}


def test_who_is_paused_or_absent_claims_no_tag() -> None:
    two = image("a:1", digest=TWO)
    for state in (Desired.PAUSED, Desired.ABSENT):
        assert tags_elsewhere([image("a:1", digest=ONE, priority=9, state=state), two]) == {}


@given(specs, st.randoms(use_true_random=False))
def test_every_tag_is_one_entrys_whatever_their_order(spec: list[DesiredImage], random: Random) -> None:
    elsewhere = tags_elsewhere(spec)
    shuffled = sorted(spec, key=lambda _: random.random())
    assert tags_elsewhere(shuffled) == elsewhere
    present = [one for one in spec if one.state is Desired.PRESENT]
    for reference in {one.reference for one in present}:
        rivals = [one for one in present if one.reference == reference]
        (owner,) = (one for one in rivals if key_of(one) not in elsewhere)
        assert {elsewhere[key_of(one)] for one in rivals if one is not owner} <= {owner.digest}


def test_an_entry_without_its_tag_names_its_digest() -> None:
    entry = image("registry:5000/a/b:1", digest=ONE, pin=True)
    assert without_tag(entry) == image(f"registry:5000/a/b@{ONE}", digest=ONE, pin=True)
