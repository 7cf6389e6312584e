"""Platforms, and which of them runs on which: the rules of github.com/containerd/platforms.

The choice must be containerd's own, since CRI names an image by the config of the manifest *it* would choose.
"""

from __future__ import annotations

import platform as machine
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

MAX_LISTED = 20
_PART = re.compile(r"[A-Za-z0-9_.-]+")
# Architecture and variant by the names that kernels, Debian and Docker use.
_ARCHITECTURES = {
    "i386": ("386", ""),
    "i686": ("386", ""),
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
}
_VARIANTS = {
    ("amd64", "v1"): "",
    ("arm64", "8"): "",
    ("arm64", "v8"): "",
    ("arm64", "v8.0"): "",
    ("arm64", "9"): "v9",
    ("arm64", "9.0"): "v9",
    ("arm64", "v9.0"): "v9",
    ("arm", ""): "v7",
    ("arm", "5"): "v5",
    ("arm", "6"): "v6",
    ("arm", "7"): "v7",
    ("arm", "8"): "v8",
}


class InvalidPlatform(ValueError):
    """Text that is not `os/architecture` or `os/architecture/variant`."""


class NoMatchingPlatform(ValueError):
    """An image that exists, but not for the wanted platform; lists what there is."""

    reason = "NoMatchingPlatform"

    def __init__(self, wanted: Platform, available: Sequence[str]) -> None:
        more = len(available) - MAX_LISTED
        listed = ", ".join(available[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
        super().__init__(f"the image is not there for {wanted}; it has {listed or 'no platform at all'}")
        self.wanted = wanted
        self.available = tuple(available)


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system and an architecture, in Go's names. Empty means not said."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read `linux/amd64` or `linux/arm/v7`, normalised.

        Raises:
            InvalidPlatform: anything else.
        """
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(_PART.fullmatch(part) for part in parts):
            raise InvalidPlatform(
                f"invalid platform {text!r}: os/architecture[/variant] is expected, as in linux/amd64"
            )
        return cls(parts[0], parts[1], "".join(parts[2:])).normalized()

    @classmethod
    def host(cls) -> Platform:
        """The platform of this machine, as containerd's `DefaultSpec`: a variant only on 32-bit ARM."""
        return cls(sys.platform, machine.machine()).normalized()

    def normalized(self) -> Platform:
        """The one spelling of equal platforms: `x86_64` is `amd64`, `arm64/v8` is `arm64`, `arm` is `arm/v7`."""
        system = {"macos": "darwin"}.get(self.os.lower(), self.os.lower())
        architecture, variant = self.architecture.lower(), self.variant.lower()
        if architecture in _ARCHITECTURES:
            architecture, fixed = _ARCHITECTURES[architecture]
            variant = variant if fixed is None else fixed
        variant = _VARIANTS.get((architecture, variant), variant)
        return replace(self, os=system, architecture=architecture, variant=variant)

    def __str__(self) -> str:
        return "/".join(
            part for part in (self.os or "unknown", self.architecture or "unknown", self.variant) if part
        )


def preferences(wanted: Platform) -> list[Platform]:
    """What runs on `wanted`, best first: itself, lower variants, then the 32-bit architecture (`platforms.Only`)."""
    wanted = wanted.normalized()
    found = [wanted]
    for architecture, variant in _lower(wanted.architecture, wanted.variant):
        candidate = replace(wanted, architecture=architecture, variant=variant).normalized()
        if candidate not in found:
            found.append(candidate)
    return found


def rank(candidate: Platform, wanted: Platform) -> int | None:
    """How well an image for `candidate` suits `wanted`: 0 is best; None means that it does not run there."""
    candidate = candidate.normalized()
    if (
        not candidate.os
        or not candidate.architecture
        or not set(candidate.os_features) <= set(wanted.os_features)
    ):
        return None
    for place, accepted in enumerate(preferences(wanted)):
        if (candidate.os, candidate.architecture, candidate.variant) == (
            accepted.os,
            accepted.architecture,
            accepted.variant,
        ):
            return place
    return None


def check_platform(found: Platform, wanted: Platform) -> None:
    """Refuse an image whose config is for another platform; the only test there is for one without an index.

    Raises:
        NoMatchingPlatform: the config's platform does not run on `wanted`.
    """
    if rank(found, wanted) is None:
        raise NoMatchingPlatform(wanted, [str(found)])


def _lower(architecture: str, variant: str) -> Iterator[tuple[str, str]]:
    if architecture == "amd64":
        level = _number(variant.removeprefix("v"), default=1)
        yield from (("amd64", f"v{lower}") for lower in range(level - 1, 0, -1))
        yield "386", ""
    elif architecture == "arm":
        level = _number(variant.removeprefix("v"), default=7)
        yield from (("arm", f"v{lower}") for lower in range(level - 1, 4, -1))
    elif architecture == "arm64":
        major, _, minor = (variant or "v8").removeprefix("v").partition(".")
        step = _number(minor, default=0)
        if major == "9":
            yield from (("arm64", f"v9.{lower}") for lower in range(step - 1, -1, -1))
            step += 6  # Armv9.x contains Armv8.(x+5) (Arm ARM, A1.7).
        yield from (("arm64", f"v8.{lower}") for lower in range(step - 1, -1, -1))
        yield from (("arm", f"v{lower}") for lower in range(8, 4, -1))


def _number(text: str, *, default: int) -> int:
    # At most two digits: what follows counts down from it.
    return int(text) if re.fullmatch(r"[0-9]{1,2}", text) else default
