"""WWW-Authenticate as registries send it, well-formed or not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imageprepull.registry.challenges import Challenge, choose, parse_challenges

BEARER = Challenge(
    "bearer",
    {
        "realm": "https://auth.example/token",
        "service": "registry.example",
        "scope": "repository:team/app:pull,push",
    },
)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], []),
        ([""], []),
        ([" , ,"], []),
        (["Basic"], [Challenge("basic")]),
        (['Basic realm="Registry Realm"'], [Challenge("basic", {"realm": "Registry Realm"})]),
        (["Basic realm=/"], [Challenge("basic", {"realm": "/"})]),
        (
            [
                (
                    'Bearer realm="https://auth.example/token",service="registry.example",'
                    'scope="repository:team/app:pull,push"'
                )
            ],
            [BEARER],
        ),
        (
            [
                (
                    'BEARER REALM = "https://auth.example/token" , Service="registry.example" ,'
                    ' scope = "repository:team/app:pull,push"'
                )
            ],
            [BEARER],
        ),
        (
            ['Negotiate, Basic realm="a, b", Bearer realm="c"'],
            [
                Challenge("negotiate"),
                Challenge("basic", {"realm": "a, b"}),
                Challenge("bearer", {"realm": "c"}),
            ],
        ),
        (["Negotiate YWJj==, Basic realm=x"], [Challenge("negotiate"), Challenge("basic", {"realm": "x"})]),
        (
            ["Basic realm=x", "Bearer realm=y"],
            [Challenge("basic", {"realm": "x"}), Challenge("bearer", {"realm": "y"})],
        ),
        ([r'Basic realm="a\"b\\c"'], [Challenge("basic", {"realm": 'a"b\\c'})]),
        (['Bearer realm="a",realm="b"'], [Challenge("bearer", {"realm": "a"})]),
        (['Bearer realm=""'], [Challenge("bearer", {"realm": ""})]),
        (['Basic realm="open'], [Challenge("basic")]),
        (['=,"', "Basic"], [Challenge("basic")]),
    ],
)
def test_challenges_are_read(lines: list[str], expected: list[Challenge]) -> None:
    found = parse_challenges(lines)
    assert found[: len(expected)] == expected
    assert all(challenge.scheme not in ("basic", "bearer") for challenge in found[len(expected) :])


@pytest.mark.parametrize(
    ("line", "scheme"),
    [
        ('Basic realm="a", Bearer realm="https://b/"', "bearer"),
        ('Bearer realm="https://b/", Basic realm="a"', "bearer"),
        ("Bearer, Basic", "basic"),
        ('Bearer realm="", Basic', "basic"),
        ("Negotiate, NTLM", None),
        ("Bearer", None),
        ("", None),
    ],
)
def test_the_best_known_scheme_is_chosen(line: str, scheme: str | None) -> None:
    chosen = choose(parse_challenges([line]))
    assert (chosen.scheme if chosen else None) == scheme


names = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)


@settings(deadline=None)  # other work on the machine is no failure
@given(st.lists(st.tuples(names, st.dictionaries(names, values, min_size=1, max_size=3)), max_size=4))
def test_what_is_written_by_the_rules_is_read_back(wanted: list[tuple[str, dict[str, str]]]) -> None:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    line = ", ".join(
        f"{scheme} " + ", ".join(f"{name}={quoted(value)}" for name, value in parameters.items())
        for scheme, parameters in wanted
    )
    assert parse_challenges([line]) == [Challenge(scheme, parameters) for scheme, parameters in wanted]


@settings(deadline=None)  # other work on the machine is no failure
@given(st.lists(st.one_of(st.text(), st.text(alphabet='Basic =",\\ \t/', max_size=60)), max_size=3))
def test_any_text_can_be_read(lines: list[str]) -> None:
    for challenge in parse_challenges(lines):
        assert challenge.scheme
        assert challenge.scheme == challenge.scheme.lower()
