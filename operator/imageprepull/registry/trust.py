"""Where a registry may send us: token realms and redirects are chosen by whoever answers, and agents run on nodes.

A public registry must not make a node ask its metadata service or what listens on its loopback; a registry on a
private network may well have its token service beside it. So a target may be as private as the registry itself,
no more, and neither link-local nor a metadata service ever. Pure; `guard` asks DNS and judges connections by it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from enum import IntEnum

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Reach(IntEnum):
    """From whom an address is hidden, the more hidden the higher."""

    PUBLIC = 0
    PRIVATE = 1
    LOOPBACK = 2
    FORBIDDEN = 3


_WORDS = {
    Reach.PUBLIC: "a public address",
    Reach.PRIVATE: "a private address",
    Reach.LOOPBACK: "a loopback address",
    Reach.FORBIDDEN: "a link-local, metadata or multicast address",
}
METADATA = frozenset(
    map(
        ipaddress.ip_address,
        (
            "169.254.169.254",  # nearly all clouds
            "169.254.170.2",  # AWS ECS
            "169.254.170.23",  # AWS EKS
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",  # Google
            "100.100.100.200",  # Alibaba
            "168.63.129.16",  # Azure
            "192.0.0.192",  # Oracle
        ),
    )
)
"""What clouds tell a machine of itself, its credentials too: some of these look public, some private."""
_SITE_LOCAL = ipaddress.ip_network("fec0::/10")
_TEREDO = ipaddress.ip_network("2001::/32")
_6TO4 = ipaddress.ip_network("2002::/16")
_LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")
_IPV4_AT_THE_END = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "::ffff:0:0/96",  # mapped
            "::ffff:0:0:0/96",  # translated (RFC 2765)
            "64:ff9b::/96",  # NAT64 (RFC 6052)
            "::/96",  # compatible (RFC 4291)
        ),
    )
)
_NAT64_BYTES = ((6, 7, 9, 10), (7, 9, 10, 11), (9, 10, 11, 12), (12, 13, 14, 15))
"""Where the IPv4 address stands behind a prefix of 48, 56, 64 or 96 bits; zeros follow (RFC 6052, 2.2)."""


def reach(address: str) -> Reach:
    """The class of an IP address; one that carries an IPv4 address is at least as hidden as that."""
    return _reach(ipaddress.ip_address(address))


def _reach(ip: Address) -> Reach:
    plain = ipaddress.ip_address(ip.packed)  # without an interface
    if plain in METADATA or plain.is_link_local or plain.is_unspecified or plain.is_multicast:
        return Reach.FORBIDDEN
    if plain.is_loopback:
        return Reach.LOOPBACK
    if isinstance(plain, ipaddress.IPv4Address):
        return Reach.PUBLIC if plain.is_global else Reach.PRIVATE
    inside = [_reach(one) for one in _carried(plain)]
    if any(plain in network for network in _IPV4_AT_THE_END):
        return max(inside)
    hidden = not plain.is_global or plain in _SITE_LOCAL or plain in _LOCAL_NAT64
    return max([Reach.PRIVATE if hidden else Reach.PUBLIC, *inside])


def _carried(ip: ipaddress.IPv6Address) -> Iterator[ipaddress.IPv4Address]:
    """The IPv4 addresses that a translator or a tunnel may take out of it."""
    packed = ip.packed
    if any(ip in network for network in _IPV4_AT_THE_END):
        yield ipaddress.IPv4Address(packed[12:])
    elif ip in _6TO4:
        yield ipaddress.IPv4Address(packed[2:6])
    elif ip in _TEREDO and ip.teredo is not None:
        yield from ip.teredo
    elif ip in _LOCAL_NAT64:
        # How long the network's prefix is cannot be seen: what fits is taken for it.
        for places in _NAT64_BYTES:
            found = bytes(packed[place] for place in places)
            if found[0] and not packed[8] and not any(packed[places[-1] + 1 :]):
                yield ipaddress.IPv4Address(found)


def reach_of(addresses: Iterable[str]) -> Reach:
    """How private a registry at these addresses is, which is how private its targets may be.

    Networks of both families have public IPv6 and private IPv4 addresses for one server, so that one private address
    is enough. Loopback and link-local are not: whoever owns a name can give it such an address beside its own.
    """
    found = {reach(address) for address in addresses}
    if found == {Reach.LOOPBACK}:
        return Reach.LOOPBACK
    return Reach.PRIVATE if found - {Reach.PUBLIC} else Reach.PUBLIC


def refusal(limit: Reach, target: Iterable[str]) -> str | None:
    """Why a registry of that reach may not send us to the addresses of `target`; None when it may."""
    for address in target:
        found = reach(address)
        if found is Reach.FORBIDDEN or found > limit:
            return f"{address} is {_WORDS[found]}"
    return None
