"""Which pins of ours the agent reports as named by no entry. Names and labels are those of containerd's records."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from imageprepull.agent.strays import stray_pins
from imageprepull.oci.reference import Reference
from imageprepull.pulling.pins import Pin
from imageprepull.resources import bounds

ONE, TWO, CONFIG = (f"sha256:{letter * 64}" for letter in "123")
NGINX = "docker.io/library/nginx"
REDIS = "docker.io/library/redis"


def pins(digest: str, *records: str) -> list[Pin]:
    return [Pin(record, digest) for record in records]


def strays(found: list[Pin], *named: tuple[str, str]) -> list[tuple[str, str]]:
    return [(line.reference, line.digest) for line in stray_pins(found, named)]


WHOLE = pins(ONE, CONFIG, f"{NGINX}:1", f"{NGINX}@{ONE}")


def test_an_image_is_one_line_whatever_its_records() -> None:
    assert strays(WHOLE) == [(f"{NGINX}:1", ONE)]
    assert strays(pins(ONE, CONFIG, f"{NGINX}@{ONE}")) == [(f"{NGINX}@{ONE}", ONE)]
    assert strays(pins(ONE, CONFIG)) == [(CONFIG, ONE)]


def test_what_an_entry_names_is_its_affair() -> None:
    assert strays(WHOLE, (f"{NGINX}:1", ONE)) == []
    assert strays(WHOLE, ("nginx:1", ONE)) == []
    # The tag means something else by now; what it meant is pinned by its digest still.
    assert strays(WHOLE, (f"{NGINX}:1", TWO)) == [(f"{NGINX}@{ONE}", ONE)]
    assert strays([*WHOLE, *pins(TWO, f"{NGINX}:2")], (f"{NGINX}:1", ONE)) == [(f"{NGINX}:2", TWO)]


def test_of_two_names_of_one_digest_the_other_is_named_and_the_id_never() -> None:
    both = [*WHOLE, *pins(ONE, f"{NGINX}:2", f"{REDIS}:1", f"{REDIS}@{ONE}")]
    assert strays(both, (f"{NGINX}:1", ONE)) == [(f"{NGINX}:2", ONE), (f"{REDIS}:1", ONE)]
    assert strays(both, (f"{NGINX}@{ONE}", ONE)) == [
        (f"{NGINX}:1", ONE),
        (f"{NGINX}:2", ONE),
        (f"{REDIS}:1", ONE),
    ]


def test_a_name_that_no_entry_could_take_the_pin_from_is_not_reported() -> None:
    odd = pins(ONE, "nginx", "NGINX:1", "a b", f"{NGINX}@{TWO}", f"{'x' * 250}.io/{'y' * 254}:{'z' * 100}")
    assert strays([*odd, *pins("sha512:1", f"{NGINX}:9")]) == []


def test_no_more_are_named_than_the_schema_allows() -> None:
    many = pins(ONE, *(f"{NGINX}:{number}" for number in range(100)))
    assert len(strays(many)) == bounds.STRAY_PINS


@given(
    st.lists(
        st.tuples(
            st.sampled_from([CONFIG, f"{NGINX}:1", f"{NGINX}:2", f"{NGINX}@{ONE}", f"{REDIS}@{TWO}"]),
            st.sampled_from([ONE, TWO]),
        ),
        unique_by=lambda pair: pair[0],
    ),
    st.sets(
        st.tuples(
            st.sampled_from([f"{NGINX}:1", f"{NGINX}:2", f"{NGINX}@{ONE}", f"{REDIS}:7"]),
            st.sampled_from([ONE, TWO]),
        )
    ),
)
def test_no_line_is_an_entrys_and_the_orders_for_all_lines_leave_none(
    found: list[tuple[str, str]], named: set[tuple[str, str]]
) -> None:
    pinned = [Pin(*pair) for pair in found]
    lines = stray_pins(pinned, named)
    assert not {(line.reference, line.digest) for line in lines} & named
    ordered = {(line.reference, line.digest) for line in lines}
    left = [
        pin
        for pin in pinned
        if not any(
            digest == pin.digest
            and (
                pin.record.startswith("sha256:")
                or pin.record
                in (Reference.parse(text).canonical, Reference.parse(text).digest_record(digest))
            )
            for text, digest in ordered
        )
    ]
    assert stray_pins(left, named) == []
