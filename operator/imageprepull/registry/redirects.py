"""Where a registry sends us: read from `Location`, refused where that is no address, and remembered for a while.

`transport` follows redirects by it, after `guard` has judged who is behind the address; `asking` keeps the places of
blobs in `Locations`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from yarl import URL

from imageprepull.registry.bounded import Bounded
from imageprepull.registry.errors import RegistryError

REDIRECTS = frozenset({301, 302, 303, 307, 308})
STALE = frozenset({400, 401, 403, 404, 410})
"""What a signed URL answers when its time is over; the registry gives a new one."""
PLACES = 2000
LIFE = 60.0
"""Seconds that the place of a blob is used for further parts; signatures live for five minutes and more."""


@dataclass(slots=True)
class Place:
    """Where one host keeps one blob. `lock`: one asks the registry anew, the others wait for what it learns.

    `turn` counts how often that was done: who waited and finds nothing learnt waits for no second one.
    """

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    turn: int = 0
    target: URL | None = None
    until: float = 0.0

    def current(self) -> URL | None:
        """The target while it is fresh."""
        return self.target if time.monotonic() < self.until else None

    def learn(self, target: URL) -> None:
        """Keep the end of a redirect that worked."""
        self.target, self.until = target, time.monotonic() + LIFE

    def spoil(self, target: URL | None) -> None:
        """A target failed: the next request goes to the registry, unless another has been learnt meanwhile."""
        if target is not None and self.target == target:
            self.until = 0.0


class Locations(Bounded[tuple[str, str], Place]):
    """The places by (URL of the host, path of the blob there)."""

    def __init__(self) -> None:
        super().__init__(PLACES)

    def place(self, host: str, path: str) -> Place:
        """The place of a blob, which may not be known yet."""
        found = self.touch((host, path))
        if found is None:
            found = self[host, path] = Place()
        return found


def http_url(text: str, *, encoded: bool = True, base: URL | None = None) -> URL | None:
    """What a stranger calls a URL; None unless it is http or https with a host, a port in range and no user.

    Names with other letters than ASCII have two spellings that lead to different hosts: they must come in the one of
    DNS (`xn--…`). With `encoded` nothing of the spelling is changed.
    """
    try:
        url = URL(text, encoded=encoded)
        if base is not None:
            url = base.join(url)
        usable = bool(text and url.host and url.port is not None)
        usable = usable and url.scheme in ("http", "https") and not url.raw_user and not url.raw_password
    except ValueError:  # Host and port are read late; other letters, and a broken `xn--`, are a UnicodeError.
        return None
    return url if usable else None


def next_target(current: URL, location: str, host: str, request: str) -> URL:
    """The URL of a redirect in its exact spelling.

    Raises:
        RegistryError: RedirectRefused: no http address, or one without TLS where TLS was.
    """
    target = http_url(location, base=current)
    if target is None:
        raise refused(f"it redirects to {location[:100]!r}, which is no http address", host, request)
    if target.scheme == "http" and current.scheme == "https":
        if target.raw_host != current.raw_host:
            raise refused(f"it redirects to {target.raw_host} without TLS", host, request)
        # A registry behind a TLS proxy that does not know of it.
        if target.port == 80:  # noqa: PLR2004 - the port of http: none was meant.
            return URL(f"{current.origin()}{target.raw_path_qs}", encoded=True)
        return URL("https" + str(target).removeprefix("http"), encoded=True)
    return target


def refused(problem: str, host: str, request: str) -> RegistryError:
    """The error about a target."""
    return RegistryError(problem, reason="RedirectRefused", host=host, request=request)
