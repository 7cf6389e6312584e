"""The keys of one table of a hosts.toml, each in every shape that containerd takes, or an error that names it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imageprepull.registry.host import InvalidHostsFile

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_UNSENDABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def go_duration(text: str) -> float:
    """Seconds of a Go duration (`1m30s`, `500ms`).

    Raises:
        ValueError: it is none.
    """
    if text == "0":
        return 0.0
    if not re.fullmatch(rf"(?:{_PART.pattern})+", text):
        raise ValueError(f"{text!r} is not a duration such as '30s' or '1m30s'")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


@dataclass(frozen=True, slots=True)
class Table:
    """The values of a table; `where` is how errors name it. A key matches in any case, as in go-toml."""

    values: Mapping[str, Any]
    path: Path
    where: str

    def wrong(self, problem: str) -> InvalidHostsFile:
        """The error to raise."""
        return InvalidHostsFile(self.path, f"{self.where}: {problem}")

    def get(self, key: str) -> Any:
        """The value of a key, or None."""
        if key in self.values:
            return self.values[key]
        return next((value for name, value in self.values.items() if name.lower() == key), None)

    def text(self, key: str) -> str:
        """A string, empty where there is none."""
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(f"{key!r} must be a string")
        return value or ""

    def flag(self, key: str) -> bool | None:
        """True or false, or None where it is not said."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(f"{key!r} must be true or false")
        return value

    def duration(self, key: str) -> float | None:
        """Seconds; None where there is none, or where 0 stands for none."""
        try:
            return go_duration(text) or None if (text := self.text(key)) else None
        except ValueError as error:
            raise self.wrong(f"{key!r}: {error}") from None

    def capabilities(self, known: frozenset[str]) -> frozenset[str]:
        """What the host may be asked for; an empty list is all."""
        value = self.get("capabilities")
        if value is None:
            return known
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise self.wrong("'capabilities' must be a list of strings")
        for entry in value:
            if entry.lower() not in known:
                raise self.wrong(f"unknown capability {entry!r}; known are {', '.join(sorted(known))}")
        return frozenset(entry.lower() for entry in value) or known

    def paths(self, key: str) -> tuple[Path, ...] | None:
        """One path or a list of them, relative to the file."""
        value = self.get(key)
        if value is None:
            return None
        entries = [value] if isinstance(value, str) else value
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise self.wrong(f"{key!r} must be a path or a list of paths")
        return tuple(self.path.parent / entry for entry in entries)

    def pairs(self, key: str) -> tuple[tuple[Path, Path | None], ...] | None:
        """Certificates with their keys: a path, a list of paths, or a list of [certificate, key]."""
        value = self.get(key)
        if value is None:
            return None
        entries = [value] if isinstance(value, str) else value
        if not isinstance(entries, list):
            raise self.wrong(f"{key!r} must be a path, a list of paths or a list of [certificate, key]")
        return tuple(self._pair(key, entry) for entry in entries)

    def _pair(self, key: str, entry: Any) -> tuple[Path, Path | None]:
        pair = [entry] if isinstance(entry, str) else entry
        if (
            not isinstance(pair, list)
            or len(pair) not in (1, 2)
            or not all(isinstance(part, str) for part in pair)
            or not pair[0]
        ):
            raise self.wrong(f"{key!r}: {entry!r} is neither a path nor a pair [certificate, key]")
        certificate, *rest = pair
        return self.path.parent / certificate, self.path.parent / rest[0] if rest and rest[0] else None

    def headers(self, key: str) -> tuple[tuple[str, str], ...]:
        """Names and values; a list of values is one line, joined by commas. Values are never shown in an error."""
        value = self.get(key)
        if value is None:
            return ()
        if not isinstance(value, dict):
            raise self.wrong(f"{key!r} must be a table of names and values")
        found: list[tuple[str, str]] = []
        for name, entry in value.items():
            lines = [entry] if isinstance(entry, str) else entry
            if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
                raise self.wrong(f"{key!r}: {name!r} must be a string or a list of strings")
            text = ", ".join(lines)
            if not _NAME.fullmatch(name) or _UNSENDABLE.search(text):
                raise self.wrong(f"{key!r}: {name!r} or its value cannot stand in an HTTP header")
            found.append((name, text))
        return tuple(found)
