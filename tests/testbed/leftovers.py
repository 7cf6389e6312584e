"""What of a cluster is still on the machine: after `down`, nothing may be."""

import contextlib
import json
from pathlib import Path

from tests.testbed import cgroups, network
from tests.testbed.commands import run
from tests.testbed.layout import Layout, root


def leftovers(name: str) -> list[str]:
    """One line for each process, mount, namespace, loop device, interface, route, cgroup or file that is left."""
    layout = Layout(name)
    found = [f"process {pid}: {_command(pid)}" for pid in sorted(_processes(layout))]
    found += [f"mount {line}" for line in _mounts(layout)]
    found += [f"loop device {line}" for line in _loops(layout)]
    found += [f"interface {link}" for link in network.own_links(layout)]
    found += [f"cgroup {folder}" for folder in cgroups.folders(layout.cgroup)]
    if layout.folder.exists():
        found.append(f"folder {layout.folder}")
    subnets = root() / "subnets.json"
    if subnets.exists() and name in json.loads(subnets.read_text() or "{}"):
        found.append(f"subnet of {name}")
    return found


def _processes(layout: Layout) -> set[int]:
    """By cgroup, and by arguments that name the cluster's folder: what escaped its cgroup would be found so."""
    pids = cgroups.pids(layout.cgroup)
    needle = f"{layout.folder}/".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if needle in (entry / "cmdline").read_bytes():
                    pids.add(int(entry.name))
    return pids


def _mounts(layout: Layout) -> set[str]:
    """In any mount namespace, by the namespace of any process."""
    found, seen = set(), set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            namespace = (entry / "ns/mnt").readlink()
            if namespace in seen:
                continue
            seen.add(namespace)
            text = (entry / "mountinfo").read_text()
            found |= {f"{namespace} {line}" for line in text.splitlines() if f"{layout.folder}/" in line}
    return found


def _loops(layout: Layout) -> list[str]:
    lines = run("losetup", ["losetup", "-n", "-O", "NAME,BACK-FILE"]).splitlines()
    return [line for line in lines if f"{layout.folder}/" in line]


def _command(pid: int) -> str:
    try:
        return (
            Path(f"/proc/{pid}/cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode(errors="replace")
            .strip()[:200]
        )
    except OSError:
        return "(just gone)"
