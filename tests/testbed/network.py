"""The bridge between control plane and nodes, and each node's cable to it.

No address translation and no rules on the host: pods are reached by routes, through the address of their node.
"""

import contextlib
import ipaddress
import json

from tests.testbed.commands import run
from tests.testbed.errors import ClusterError
from tests.testbed.layout import Layout


def links() -> set[str]:
    """The names of all interfaces of the host."""
    return {link["ifname"] for link in json.loads(run("network", ["ip", "-j", "link"]))}


def ensure_bridge(layout: Layout) -> None:
    """Make the bridge, with the address that the API server and the registry listen on."""
    refuse_foreign_owner(layout)
    if layout.bridge not in links():
        run(layout.bridge, ["ip", "link", "add", layout.bridge, "type", "bridge"])
    run(layout.bridge, ["ip", "addr", "replace", f"{layout.host_ip}/24", "dev", layout.bridge])
    run(layout.bridge, ["ip", "link", "set", layout.bridge, "up"])


def refuse_foreign_owner(layout: Layout) -> None:
    """Raise where another interface has the bridge's subnet: nodes would talk to that one and time out."""
    ours = ipaddress.ip_network(f"{layout.host_ip}/24", strict=False)
    for link in json.loads(run("network", ["ip", "-j", "-4", "addr"])):
        addresses = [address["local"] for address in link.get("addr_info", []) if "local" in address]
        taken = [address for address in addresses if ipaddress.ip_address(address) in ours]
        if taken and link["ifname"] != layout.bridge:
            advice = "remove that interface first"
            if link["ifname"].startswith("ipp-"):
                owner = link["ifname"].removeprefix("ipp-").split(".")[0]
                advice = f"it is another cluster's: python -m tests.testbed --name {owner} down"
            raise ClusterError(
                layout.bridge, f"{taken[0]} is on {link['ifname']}, and {ours} is this cluster's; {advice}"
            )


def connect(layout: Layout, index: int, pid: int) -> None:
    """Plug a node, whose init is `pid`, into the bridge; does nothing where that is done already."""
    host_end = layout.veth(index)
    inside = ["nsenter", "-t", str(pid), "-n"]
    if host_end not in links():
        peer = ["peer", "name", "eth0", "netns", str(pid)]
        run(host_end, ["ip", "link", "add", host_end, "type", "veth", *peer])
    run(host_end, ["ip", "link", "set", host_end, "master", layout.bridge, "up"])
    run(host_end, [*inside, "ip", "addr", "replace", f"{layout.node_ip(index)}/24", "dev", "eth0"])
    run(host_end, [*inside, "ip", "link", "set", "eth0", "up"])
    run(host_end, [*inside, "ip", "route", "replace", "default", "via", layout.host_ip])
    run(host_end, ["ip", "route", "replace", layout.pod_subnet(index), "via", layout.node_ip(index)])


def route_pods(layout: Layout, pid: int, others: list[int]) -> None:
    """On one node: the pods of each other node are behind that node's address."""
    for index in others:
        route = ["ip", "route", "replace", layout.pod_subnet(index), "via", layout.node_ip(index)]
        run("network", ["nsenter", "-t", str(pid), "-n", *route])


def disconnect(layout: Layout, index: int) -> None:
    """Pull the cable; both ends vanish. Routes through it go when the bridge goes, or here."""
    with contextlib.suppress(ClusterError):
        run("network", ["ip", "route", "del", layout.pod_subnet(index)])
    if layout.veth(index) in links():
        with contextlib.suppress(ClusterError):  # the node's namespace may just have taken it along
            run("network", ["ip", "link", "del", layout.veth(index)])


def remove(layout: Layout) -> None:
    """Everything of this cluster's network on the host."""
    for name in own_links(layout):
        with contextlib.suppress(ClusterError):
            run("network", ["ip", "link", "del", name])


def own_links(layout: Layout) -> list[str]:
    """The interfaces of this cluster on the host."""
    return sorted(name for name in links() if name == layout.bridge or name.startswith(f"{layout.bridge}."))
