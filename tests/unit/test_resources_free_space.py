"""Amounts of free space as the CRDs and the kubelet write them, and what satisfies several objects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.resources.free_space import Amount, parse_amount, strictest

ASKED = st.one_of(
    st.integers(0, 10**15),
    st.builds(
        lambda n, unit: f"{n}{unit}", st.integers(0, 10**6), st.sampled_from(["", "k", "Mi", "G", "Ti"])
    ),
    st.builds(lambda n: f"{n}%", st.integers(0, 100)),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20Gi", Amount(20 << 30)),
        ("1k", Amount(1000)),
        (5, Amount(5)),
        ("15%", Amount(percent=15)),
        ("0", Amount()),
        ("10%,20", Amount(20, 10)),
    ],
)
def test_forms(text: int | str, expected: Amount) -> None:
    assert parse_amount(text) == expected


@pytest.mark.parametrize("text", ["", "20GiB", "-1", "101%", "ten", "1Gi,", "1.5Gi"])
def test_others_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"quantity|more than"):
        parse_amount(text)


@given(st.lists(st.one_of(st.none(), ASKED), max_size=4), st.integers(1, 10**14))
def test_the_strictest_satisfies_all_and_no_more(asked: list[int | str | None], capacity: int) -> None:
    found = strictest(asked)
    each = [parse_amount(one).of(capacity) for one in asked if one is not None]
    if not each:
        assert found is None
        return
    assert found is not None
    assert parse_amount(found).of(capacity) == max(each)


def test_what_one_object_says_stays_as_it_says_it() -> None:
    assert strictest([None, "20Gi", "20Gi"]) == "20Gi"
    assert strictest(["20Gi", "15%", "10%"]) == "21474836480,15%"
