"""The pure parts of the testbed: pace, accounts, names and addresses, configuration, cache keys."""

import ipaddress
import json
import tarfile
import tomllib
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.testbed import binaries, build, layout, node_config, pause_image
from tests.testbed.errors import ClusterError
from tests.testbed.layout import Layout
from tests.testbed.proxy_state import BURST, Delivery, Pace, State

INTERVALS = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 50)), max_size=20)


@given(INTERVALS)
def test_distinct_bytes_are_those_of_the_union(intervals: list[tuple[int, int]]) -> None:
    delivery = Delivery()
    seen: set[int] = set()
    for first, size in intervals:
        delivery.add(first, size)
        seen |= set(range(first, first + size))
    assert delivery.distinct == len(seen)
    assert delivery.bytes == sum(size for _, size in intervals)


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=50), st.integers(1000, 100_000))
def test_a_pace_never_lets_more_through_than_its_rate_and_burst(sizes: list[int], rate: int) -> None:
    pace, now = Pace(rate=rate), 100.0
    for size in sizes:
        now += pace.wait(size, now)
    assert sum(sizes) <= rate * (now - 100.0 + BURST) + 1e-6 * sum(sizes)


def test_a_pace_without_a_rate_never_waits() -> None:
    assert Pace().wait(10**12, 0) == 0


def test_a_rate_for_each_node_is_not_shared_between_nodes() -> None:
    state = State()
    state.set_pace("*", 1000, None)
    state.set_pace("b", None, 0.5)
    waits = {node: max(pace.wait(500, 10.0) for pace in state.pace(node)) for node in ("a", "b")}
    assert waits == {"a": pytest.approx(0.5 - BURST), "b": pytest.approx(0.5 - BURST)}
    assert [sum(pace.delay for pace in state.pace(node)) for node in ("a", "b")] == [0, 0.5]
    state.set_pace("*", 0, None)
    assert max(pace.wait(500, 10.0) for pace in state.pace("a")) == 0


def test_of_two_holds_the_earlier_byte_counts() -> None:
    state = State()
    state.hold("sha256:aa", 500, "")
    state.hold("sha256:aa", 100, "b")
    assert [hold.after for node in ("a", "b") if (hold := state.held(node, "sha256:aa"))] == [500, 100]
    assert state.release("sha256:aa", "b") == 1
    assert state.held("a", "sha256:aa") is not None
    assert state.held("a", "sha256:bb") is None


@pytest.mark.parametrize("name", ["", "Demo", "a-b", "ninechars", "../etc", "1a"])
def test_a_name_that_no_interface_could_carry_is_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="must match"):
        Layout(name)


def test_clusters_never_share_addresses_ports_or_interfaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEPREPULL_TESTBED", str(tmp_path))
    one, two = Layout("one"), Layout("two")
    assert one.subnet != two.subnet == Layout("two").subnet
    networks = [ipaddress.ip_network(each.pod_subnet(index)) for each in (one, two) for index in range(3)]
    networks += [ipaddress.ip_network(f"{each.host_ip}/24", strict=False) for each in (one, two)]
    networks += [ipaddress.ip_network(layout.SERVICES)]
    assert not any(a.overlaps(b) for a in networks for b in networks if a is not b)
    assert one.registry_port != two.registry_port
    assert len(Layout("eightchr").veth(99)) <= 15
    assert [layout.free_subnet(name) for name in ("one", "nobody", "two")] == [False, False, True]


@pytest.mark.parametrize("restrict", [True, False])
def test_containerd_configurations_are_toml_with_the_sandbox_image_and_registry_folder(
    restrict: bool,
) -> None:
    old = tomllib.loads(node_config.containerd_16(restrict_oom=restrict))["plugins"][
        "io.containerd.grpc.v1.cri"
    ]
    assert old["sandbox_image"] == node_config.PAUSE_IMAGE
    assert old["restrict_oom_score_adj"] is restrict
    new = tomllib.loads(node_config.containerd_2(restrict_oom=restrict))["plugins"]
    assert new["io.containerd.cri.v1.images"]["pinned_images"]["sandbox"] == node_config.PAUSE_IMAGE
    assert new["io.containerd.cri.v1.runtime"]["restrict_oom_score_adj"] is restrict
    folders = {old["registry"]["config_path"], new["io.containerd.cri.v1.images"]["registry"]["config_path"]}
    assert folders == {"/etc/containerd/certs.d"}


def test_hosts_toml_has_the_host_table_that_containerd_16_demands() -> None:
    hosts = tomllib.loads(node_config.hosts_toml("10.90.0.1:5000"))
    assert list(hosts["host"]) == [hosts["server"]] == ["http://10.90.0.1:5000"]


def test_the_sandbox_image_is_the_same_for_the_same_program() -> None:
    data = pause_image.archive(b"program")
    assert data == pause_image.archive(b"program")
    with tarfile.open(fileobj=BytesIO(data)) as tar:
        manifest = tar.extractfile("manifest.json")
        assert manifest is not None
        assert json.load(manifest)[0]["RepoTags"] == [node_config.PAUSE_IMAGE]


def test_a_component_is_found_by_its_binary_and_an_unbuilt_one_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEPREPULL_CACHE", str(tmp_path))
    monkeypatch.setattr(binaries, "go_version", lambda: "go version go1.26.8 linux/amd64")
    assert binaries.component_of("ctr").name == "containerd"
    with pytest.raises(ClusterError, match=r"python -m tests\.testbed\.build cri-tools"):
        binaries.path("crictl")
    assert [one.name for one in build.missing(["etcd"])] == ["etcd"]
    folder = binaries.COMPONENTS["etcd"].folder()
    folder.mkdir(parents=True)
    (folder / "etcd").touch()
    assert build.missing(["etcd"]) == []
    monkeypatch.setattr(binaries, "go_version", lambda: "go version go1.27.0 linux/amd64")
    assert build.missing(["etcd"]) != []


def test_go_names_binaries_after_their_package_or_the_element_before_its_major_version() -> None:
    names = {
        component.name: [build._go_name(package, component) for package in component.packages]
        for component in binaries.COMPONENTS.values()
    }
    assert names["etcd"] == ["server"]
    assert names["pause"] == ["pause"]
    assert names["containerd"] == ["containerd", "containerd-shim-runc-v2", "ctr"]


@pytest.mark.parametrize(
    ("version", "enough"), [("go1.26.8", True), ("go1.27", True), ("go1.26.5", False), ("go1.9.9", False)]
)
def test_a_go_that_is_too_old_is_refused_with_the_version_that_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, enough: bool
) -> None:
    go = tmp_path / "go"
    go.write_text(f"#!/bin/sh\necho {version}\n")
    go.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(binaries, "OTHER_FOLDERS", ())
    if enough:
        assert binaries.go_binary() == str(go)
    else:
        with pytest.raises(ClusterError, match=r"needs Go 1\.26\.6"):
            binaries.go_binary()


def test_no_module_needs_a_newer_go_than_we_ask_for() -> None:
    lines = [line for file in binaries.MODULES.glob("*/go.mod") for line in file.read_text().splitlines()]
    versions = [tuple(map(int, line.split()[1].split("."))) for line in lines if line.startswith("go ")]
    assert max(versions) == binaries.GO_NEEDED
