"""WWW-Authenticate, tokenised by RFC 9110 §11.6.1: several challenges in one line, commas within quotes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_WORD = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
# Unquoted values are read leniently, up to a comma or blank: `Basic realm=/` is served in the wild.
_PARAMETER = re.compile(rf"\s*({_WORD})\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,\"]+))\s*(?=,|$)")
_SCHEME = re.compile(rf"\s*({_WORD})(?=\s|,|$)")
_TOKEN68 = re.compile(r"\s+[A-Za-z0-9._~+/-]+=*\s*(?=,|$)")
_COMMAS = re.compile(r"[\s,]*")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in that a registry offers; scheme and parameter names in lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_challenges(lines: Iterable[str]) -> list[Challenge]:
    """All challenges of all header lines, in order; what cannot be read ends its line."""
    return [challenge for line in lines for challenge in _parse_line(line)]


def choose(challenges: Iterable[Challenge]) -> Challenge | None:
    """The best scheme that this client knows: bearer with a realm, else basic, else None."""
    known = [challenge for challenge in challenges if challenge.scheme in ("bearer", "basic")]
    bearer = [
        challenge for challenge in known if challenge.scheme == "bearer" and challenge.parameters.get("realm")
    ]
    basic = [challenge for challenge in known if challenge.scheme == "basic"]
    return next(iter(bearer + basic), None)


def _parse_line(line: str) -> Iterable[Challenge]:
    position = _end(_COMMAS, line, 0)
    while scheme := _SCHEME.match(line, position):
        position = scheme.end()
        parameters: dict[str, str] = {}
        if token := _TOKEN68.match(line, position):
            position = token.end()
        while found := _PARAMETER.match(line, position):
            name, quoted, plain = found.groups()
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            parameters.setdefault(name.lower(), value)
            position = _end(_COMMAS, line, found.end())
        yield Challenge(scheme.group(1).lower(), parameters)
        position = _end(_COMMAS, line, position)


def _end(pattern: re.Pattern[str], line: str, position: int) -> int:
    found = pattern.match(line, position)
    return found.end() if found else position
