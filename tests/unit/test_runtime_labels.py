"""Labels that several pullers share."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from imageprepull.runtime.labels import LABEL_LIMIT, SOURCE_PREFIX, merged_sources

KEY = f"{SOURCE_PREFIX}example.org"
REPOSITORIES = st.sets(st.from_regex(r"[a-z]{1,8}/[a-z]{1,8}", fullmatch=True), max_size=8)


def test_sources_are_joined_and_everything_else_is_ours() -> None:
    present = {KEY: "b,c", "other": "theirs"}
    assert merged_sources(present, {KEY: "a", "ours": "1"}) == {KEY: "a,b,c", "ours": "1"}


def test_labels_of_others_are_not_repeated() -> None:
    assert merged_sources({KEY: "a"}, {}) == {}


def test_label_that_would_be_too_long_stays() -> None:
    full = ",".join(f"repository-{number:04}" for number in range(260))
    assert merged_sources({KEY: full}, {KEY: "x" * 200}) == {KEY: full}


@given(REPOSITORIES, REPOSITORIES)
def test_merging_loses_nothing_and_is_stable(theirs: set[str], ours: set[str]) -> None:
    wanted = {KEY: ",".join(sorted(ours))}
    merged = merged_sources({KEY: ",".join(sorted(theirs))}, wanted)
    assert set(merged[KEY].split(",")) - {""} == theirs | ours
    assert merged_sources(merged, wanted) == merged
    assert len(KEY) + len(merged[KEY]) <= LABEL_LIMIT
