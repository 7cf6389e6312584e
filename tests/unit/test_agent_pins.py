"""Of which entries the node's pins are. Names are those of containerd's records."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from imageprepull.agent.pins import pinned_entries
from imageprepull.agent.plan import Key
from imageprepull.oci.reference import Reference
from imageprepull.pulling.pins import Pin
from imageprepull.pulling.records import is_record_of

ONE, TWO, CONFIG = (f"sha256:{letter * 64}" for letter in "123")
NGINX, REDIS = "docker.io/library/nginx", "docker.io/library/redis"


def test_a_tag_its_digest_and_the_id_are_the_entrys() -> None:
    for record in (f"{NGINX}:1", f"{NGINX}@{ONE}", CONFIG):
        assert pinned_entries([Pin(record, ONE)], [("nginx:1", ONE), ("nginx:1", TWO)]) == {("nginx:1", ONE)}


def test_an_id_is_of_all_names_of_its_digest_and_another_name_of_none() -> None:
    named = [("nginx:1", ONE), ("redis:1", ONE), ("redis:1", TWO)]
    assert pinned_entries([Pin(CONFIG, ONE)], named) == set(named[:2])
    assert pinned_entries([Pin(f"{NGINX}:2", ONE), Pin(f"{NGINX}:1", TWO)], named) == set()
    assert pinned_entries([Pin(f"{REDIS}:1", ONE)], named) == {("redis:1", ONE)}


def test_an_entry_that_names_nothing_has_no_pin() -> None:
    assert pinned_entries([Pin(CONFIG, ONE)], [("NO NAME", ONE)]) == set()


@given(
    st.lists(
        st.builds(
            Pin,
            st.sampled_from([CONFIG, f"{NGINX}:1", f"{NGINX}:2", f"{NGINX}@{ONE}", f"{REDIS}@{TWO}"]),
            st.sampled_from([ONE, TWO]),
        )
    ),
    st.sets(
        st.tuples(
            st.sampled_from(["nginx:1", f"nginx@{ONE}", f"{NGINX}:2@{TWO}", "redis", "BAD NAME"]),
            st.sampled_from([ONE, TWO]),
        )
    ),
)
def test_an_entry_is_pinned_as_long_as_there_is_a_pin_that_its_unpinning_would_take(
    pins: list[Pin], named: set[Key]
) -> None:
    expected = {
        (text, digest)
        for text, digest in named
        if " " not in text
        for pin in pins
        if is_record_of(pin.record, pin.digest, Reference.parse(text), digest)
    }
    assert pinned_entries(pins, named) == expected
