"""Which pins of ours the agent reports as named by no entry. Names and labels are those of containerd's records."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from imageprepull.agent.strays import TURN, stray_pins
from imageprepull.oci.reference import Reference
from imageprepull.pulling.pins import Pin
from imageprepull.resources import bounds
from imageprepull.resources.nodeprepull import StrayPin

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


def numbered(numbers: Iterable[int]) -> list[Pin]:
    return pins(ONE, *(f"{NGINX}:{number:03}" for number in numbers))


def test_the_window_stands_still_until_it_is_others_turn() -> None:
    shown = stray_pins(numbered(range(50)), ())
    assert stray_pins(numbered(range(50)), (), shown) == shown
    turned = stray_pins(numbered(range(50)), (), shown, turn=True)
    assert turned == stray_pins(numbered(range(TURN, TURN + bounds.STRAY_PINS)), ())
    assert stray_pins(numbered(range(50)), (), turned) == turned
    # One of them went: those behind it move up, and the others stay where they are.
    left = stray_pins(numbered(set(range(50)) - {TURN}), (), turned)
    assert left[:-1] == turned[1:]


def test_what_a_status_always_holds_has_no_turns() -> None:
    few = stray_pins(numbered(range(TURN)), ())
    assert stray_pins(numbered(range(TURN)), (), few, turn=True) == few
    # Of more that were turned these are left.
    shown = stray_pins(numbered(range(20)), (), stray_pins(numbered(range(20)), ()), turn=True)
    assert shown[0].reference.endswith(f":00{TURN}")
    left = numbered(range(TURN - 3, 2 * TURN - 3))
    assert stray_pins(left, (), shown) == stray_pins(left, ())


@given(st.integers(0, 150), st.lists(st.tuples(st.integers(0, 150), st.booleans()), max_size=60))
def test_each_that_stays_has_its_turn_whatever_comes_and_goes_beside_it(
    count: int, changes: list[tuple[int, bool]]
) -> None:
    """Also where a status has room for `TURN` of them only."""
    stay = {2 * number for number in range(count)}
    shown: list[StrayPin] = []
    beside: set[int] = set()
    for number, comes in changes:
        beside = beside | {2 * number + 1} if comes else beside - {2 * number + 1}
        shown = stray_pins(numbered(stay | beside), (), shown, turn=comes)
    seen: set[str] = set()
    for _ in range(-(-len(stay | beside) // TURN)):
        shown = stray_pins(numbered(stay | beside), (), shown, turn=True)
        assert len(shown) == len({line.reference for line in shown}) <= bounds.STRAY_PINS
        seen |= {line.reference for line in shown[:TURN]}
    assert seen == {pin.record for pin in numbered(stay | beside)}


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
