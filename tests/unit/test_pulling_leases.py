from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.pulling.leases import bridge_of, expires_at, is_aged, is_bridge, until_renewal
from imageprepull.runtime.leases import Lease

NOW = 1_800_000_000.0
DAY = 86400.0


def lease(left: float) -> Lease:
    expiry = datetime.fromtimestamp(NOW + left, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Lease("imageprepull-x", {"containerd.io/gc.expire": expiry})


@pytest.mark.parametrize(("left", "aged"), [(DAY, False), (DAY / 2, False), (DAY / 2 - 1, True), (-1, True)])
def test_a_lease_is_old_when_half_of_its_time_has_passed(left: float, aged: bool) -> None:
    assert expires_at(lease(left)) == NOW + left
    assert is_aged(lease(left), DAY, NOW) is aged
    assert not is_aged(Lease("x"), DAY, NOW), "without expiry it never is"


@given(st.integers(int(DAY / 2), int(DAY)))
def test_work_under_a_lease_ends_when_it_is_old_and_long_before_it_expires(left: int) -> None:
    at = until_renewal(left, DAY)
    assert at >= DAY / 4, "it is not interrupted all the time"
    assert left - at >= DAY / 4
    assert is_aged(lease(left - at), DAY, NOW)


def test_a_bridge_is_known_by_its_name() -> None:
    assert is_bridge(Lease(bridge_of("imageprepull-x")))
    assert not is_bridge(Lease("imageprepull-x"))
    assert not is_bridge(Lease("somebodys-bridge"))
