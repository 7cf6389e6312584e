"""Who competes: a containerd with its configuration, and the command that makes it pull."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.daemon import Setup, crictl
from tests.testbed import binaries

OURS = "ours"
DEFAULT = (OURS, "ours-polite", "tuned-2.4", "stock-2.4", "stock-1.6")
SETUPS = {
    "2.4": Setup("2.4"),
    "2.4-tuned": Setup("2.4", tuned=True),
    "1.6": Setup("1.6"),
}


@dataclass(frozen=True, slots=True)
class Contender:
    """A daemon's setup and a command.

    The command has the placeholders {image}, {socket}, {certs} (folder of hosts.toml files) and {folder} (where the
    daemon works, on the fresh disk). `beside`: an agent of ours pulls the same image, and is told so as the command begins.
    """

    name: str
    setup: Setup
    command: tuple[str, ...]
    beside: bool = False

    def command_line(self, **places: str | Path) -> list[str]:
        """The command with its placeholders filled."""
        return [word.format(**{name: str(place) for name, place in places.items()}) for word in self.command]


def imageprepull() -> Path:
    """The command of the environment that runs the benchmark."""
    return Path(sys.executable).parent / "imageprepull"


def known(*, sync: bool = False) -> dict[str, Contender]:
    """All contenders by name; with `sync` those that can have the image on disk before it counts."""
    cri = [str(crictl()), "--timeout", "1h", "--runtime-endpoint", "unix://{socket}", "pull", "{image}"]
    ctr = [str(binaries.path("ctr")), "--address", "{socket}", "--namespace", "k8s.io"]
    ctr += ["images", "pull", "--hosts-dir", "{certs}", "{image}"]
    pull = [str(imageprepull()), "pull", "{image}", "--address", "unix://{socket}", "--output", "json"]
    pull += ["--sync", "before"] if sync else []
    # "fast" rather than "auto": a figure of the fallback must not pass for one of the fast path.
    fast = (*pull, "--path", "fast")
    tuned = Setup("2.4", tuned=True, sync=sync)
    found = [
        Contender(OURS, Setup("2.4"), fast),
        Contender("ours-polite", Setup("2.4"), (*fast, "--polite")),
        Contender("ours-portable", Setup("2.4"), (*pull, "--path", "portable")),
        Contender("ours-1.6", Setup("1.6"), fast),
        # The transfer service serves both ways to pull; its CRI way cannot sync in parallel (see Setup).
        Contender("tuned-2.4", tuned, tuple(cri if sync else ctr)),
        Contender("tuned-cri-2.4", tuned, tuple(cri)),
        Contender("stock-2.4", Setup("2.4", sync=sync), tuple(cri)),
    ]
    if not sync:
        found.append(Contender("stock-1.6", Setup("1.6"), tuple(cri)))
        # What a pod waits for while the agent is at the same image; it ends when the CRI has it.
        found += [
            Contender(f"beside-ours-{version}", Setup(version), tuple(cri), beside=True)
            for version in ("2.4", "1.6")
        ]
    return {contender.name: contender for contender in found}


def custom(text: str) -> Contender:
    """A contender from "NAME=DAEMON:COMMAND …", DAEMON being one of `SETUPS`.

    Raises ValueError for another form.
    """
    name, equals, rest = text.partition("=")
    daemon, colon, command = rest.partition(":")
    if not (name and equals and colon and command.split()) or daemon not in SETUPS:
        raise ValueError(f"{text!r} is not NAME=DAEMON:COMMAND with DAEMON of {', '.join(SETUPS)}")
    return Contender(name, SETUPS[daemon], tuple(command.split()))


def chosen(names: Sequence[str], commands: Sequence[str], *, sync: bool) -> list[Contender]:
    """The contenders of a run in the order given: by name, then those of command lines.

    Raises ValueError for a name that is not known (or cannot sync).
    """
    offered = known(sync=sync)
    wanted = names or [name for name in DEFAULT if name in offered]
    if unknown := [name for name in wanted if name not in offered]:
        raise ValueError(f"no contender {', '.join(unknown)}; there are {', '.join(offered)}")
    return [*(offered[name] for name in wanted), *(custom(text) for text in commands)]
