"""The throw-away cluster itself: it behaves as any cluster does, it heals, and it leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.testbed import binaries, network
from tests.testbed.cluster import Cluster
from tests.testbed.commands import run, wait_until
from tests.testbed.errors import ClusterError
from tests.testbed.images import LayerSpec, build_image, executable, push
from tests.testbed.layout import Layout
from tests.testbed.leftovers import leftovers
from tests.testbed.processes import start_time

NAME = "tbtest"
OTHER = "tbkill"
DEFAULT_ACCOUNT = "system:serviceaccount:default:default"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(NAME)
    cluster.down()
    assert leftovers(NAME) == []
    cluster.up(disk=4 << 30)
    yield cluster
    cluster.down()
    assert leftovers(NAME) == []


@pytest.fixture(scope="module")
def image(cluster: Cluster) -> str:
    programs = {"bin/busybox": Path("/bin/busybox"), "bin/probe": binaries.path("probe")}
    files = {name: executable(file.read_bytes()) for name, file in programs.items()}
    push(build_image([LayerSpec(files)]), cluster.registry_push_url, "testbed/busybox", "1")
    return f"{cluster.registry_name}/testbed/busybox:1"


def pod(image: str, node: str, script: str, **spec: object) -> dict[str, object]:
    container = {"name": "main", "image": image, "command": ["/bin/busybox", "sh", "-c", script]}
    return {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container], **spec}


def daemon_set(name: str, template: dict[str, object]) -> str:
    labels = {"app": name}
    template = {key: value for key, value in template.items() if key != "nodeName"}
    template["tolerations"] = [{"operator": "Exists"}]
    return json.dumps(
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": name},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": template},
            },
        }
    )


@pytest.fixture(scope="module")
def network_pods(cluster: Cluster, image: str) -> dict[str, dict[str, str]]:
    """A web server on every node's pod network that serves its node's name: node → name and address of its pod."""
    script = "mkdir -p /www; echo -n $NODE > /www/index.html; exec busybox httpd -f -p 8080 -h /www"
    template = pod(image, "", "export PATH=/bin; " + script)
    containers = template["containers"]
    assert isinstance(containers, list)
    containers[0]["env"] = [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]
    containers[0]["readinessProbe"] = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
    cluster.kubectl("apply", "-f", "-", stdin=daemon_set("web", template))
    cluster.kubectl("rollout", "status", "daemonset/web", "--timeout=110s")
    pods = cluster.get("pods", "-l", "app=web")["items"]
    return {
        one["spec"]["nodeName"]: {"name": one["metadata"]["name"], "ip": one["status"]["podIP"]}
        for one in pods
    }


def sh(cluster: Cluster, pod: str, script: str) -> str:
    return cluster.kubectl("exec", pod, "--", "/bin/busybox", "sh", "-c", f"export PATH=/bin; {script}")


def eventually(what: str, check: Callable[[], bool], timeout: float = 60) -> None:
    wait_until("test", what, check, timeout=timeout, interval=0.3)


def test_old_and_new_containerd_run_side_by_side_in_two_zones(cluster: Cluster) -> None:
    nodes = {node["metadata"]["name"]: node for node in cluster.get("nodes")["items"]}
    versions = {name: node["status"]["nodeInfo"]["containerRuntimeVersion"] for name, node in nodes.items()}
    assert versions["a"].startswith("containerd://1.6.")
    assert versions["b"] == versions["c"] == "containerd://2.4.2"
    zones = {node["metadata"]["labels"]["topology.kubernetes.io/zone"] for node in nodes.values()}
    assert len(zones) == 2


def test_up_on_a_running_cluster_changes_no_process(cluster: Cluster) -> None:
    before = cluster.status()
    cluster.up()
    assert cluster.status() == before
    assert len(before) == 7 + 4 * 3


def test_every_node_has_its_own_disk_and_boot_id(cluster: Cluster) -> None:
    seen = {node.exec(["cat", "/proc/sys/kernel/random/boot_id"]).stdout for node in cluster.nodes()}
    assert len(seen) == 3
    for node in cluster.nodes():
        assert len(node.loop_devices()) == 1
        kinds = node.exec(
            ["stat", "-f", "-c", "%T", "/var/lib/containerd", "/var/lib/kubelet"]
        ).stdout.split()
        assert kinds == ["ext2/ext3", "ext2/ext3"]


def test_what_a_node_writes_stays_on_the_node(cluster: Cluster) -> None:
    cluster.node("a").exec(["touch", "/etc/only-on-a", "/opt/only-on-a"])
    assert not Path("/etc/only-on-a").exists()
    assert cluster.node("b").exec(["ls", "/etc/only-on-a"], check=False).returncode != 0


def test_the_sandbox_image_is_pinned_where_containerd_can(cluster: Cluster) -> None:
    for node in cluster.nodes():
        (pause,) = [image for image in node.images() if "pause" in str(image["repoTags"])]
        assert pause["pinned"] is not node.old


def test_pods_reach_the_api_server_by_its_service_with_their_service_account(
    cluster: Cluster, network_pods: dict[str, dict[str, str]]
) -> None:
    assert set(network_pods) == {"a", "b", "c"}
    for one in network_pods.values():
        assert sh(cluster, one["name"], "probe whoami").strip() == DEFAULT_ACCOUNT


def test_pods_of_different_nodes_reach_each_other(
    cluster: Cluster, network_pods: dict[str, dict[str, str]]
) -> None:
    for one in network_pods.values():
        for node, other in network_pods.items():
            assert sh(cluster, one["name"], f"probe get http://{other['ip']}:8080/").strip() == node


def test_a_service_is_reached_from_every_node_and_by_pods_behind_it(
    cluster: Cluster, network_pods: dict[str, dict[str, str]]
) -> None:
    cluster.kubectl("create", "service", "clusterip", "web", "--tcp=80:8080")
    address = cluster.get("service", "web")["spec"]["clusterIP"]
    # Six times: each pod then most likely meets itself behind the service once.
    script = f"for i in 1 2 3 4 5 6; do probe get http://{address}/ || echo failed; done"
    # Every node has rules of its own.
    for one in network_pods.values():
        name = one["name"]
        eventually(
            f"the service answers {name}",
            lambda name=name: set(sh(cluster, name, script).split()) <= set(network_pods),  # type: ignore[misc]
        )


def test_pods_on_the_node_network_reach_the_api_server_too_and_logs_work(
    cluster: Cluster, image: str
) -> None:
    template = pod(image, "", "export PATH=/bin; probe whoami; exec busybox sleep 100000", hostNetwork=True)
    cluster.kubectl("apply", "-f", "-", stdin=daemon_set("host", template))
    cluster.kubectl("rollout", "status", "daemonset/host", "--timeout=110s")
    for one in cluster.get("pods", "-l", "app=host")["items"]:
        assert one["status"]["podIP"] == cluster.node(one["spec"]["nodeName"]).ip
        name = one["metadata"]["name"]
        # The pod is Ready when its program has started, and not when that has said something.
        eventually(
            f"{name} says who it is",
            lambda name=name: cluster.kubectl("logs", name).strip() == DEFAULT_ACCOUNT,  # type: ignore[misc]
        )


def test_the_proxy_withholds_bytes_until_they_are_released_and_counts_them(cluster: Cluster) -> None:
    built = build_image([LayerSpec({"data": os.urandom(200_000)}, compression="plain")])
    push(built, cluster.registry_push_url, "testbed/held", "1")
    digest, size = built.layers[0].blob.digest, built.layers[0].blob.size
    proxy, node = cluster.proxy, cluster.node("b")
    proxy.reset()
    proxy.hold(digest, after=50_000)
    pull = subprocess.Popen(
        node.enter(["crictl", "pull", f"{cluster.registry_name}/testbed/held:1"]), stdout=subprocess.DEVNULL
    )
    try:
        eventually("the pull stands at the held byte", lambda: proxy.waiting(digest) == 1)
        assert proxy.bytes_of("b", digest) == 50_000
        assert pull.poll() is None
        proxy.release(digest)
        assert pull.wait(timeout=120) == 0
    finally:
        proxy.release()
        pull.kill()
        pull.wait()
    assert proxy.bytes_of("b", digest) == size
    assert proxy.fetched_twice() == {}
    assert proxy.requests("b", digest)[-1]["bytes"] == size
    assert proxy.requests("c", digest) == []


def test_the_proxy_paces_one_node_and_not_the_others(cluster: Cluster) -> None:
    built = build_image([LayerSpec({"data": os.urandom(2_000_000)}, compression="plain")])
    push(built, cluster.registry_push_url, "testbed/slow", "1")
    digest, size, rate = built.layers[0].blob.digest, built.layers[0].blob.size, 500_000
    proxy = cluster.proxy
    proxy.reset()
    proxy.pace("c", rate=20_000)
    pull = ["crictl", "pull", f"{cluster.registry_name}/testbed/slow:1"]
    slow = subprocess.Popen(cluster.node("c").enter(pull), stdout=subprocess.DEVNULL)
    try:
        cluster.node("b").exec(pull)
        assert proxy.bytes_of("b", digest) == size
        assert proxy.bytes_of("c", digest) < size / 2
        assert slow.poll() is None
        proxy.pace("c", rate=rate)
        started, left = time.monotonic(), size - proxy.bytes_of("c", digest)
        assert slow.wait(timeout=120) == 0
        assert time.monotonic() - started >= 0.8 * left / rate
    finally:
        proxy.reset()
        slow.kill()
        slow.wait()


def test_containers_outlive_a_killed_containerd(
    cluster: Cluster, network_pods: dict[str, dict[str, str]]
) -> None:
    for name in ("a", "b"):
        node = cluster.node(name)
        before = node.crictl("ps", "-q", "--name", "main")
        node.restart_containerd(kill=True)
        assert node.crictl("ps", "-q", "--name", "main") == before
        assert before


def test_up_heals_what_was_killed(cluster: Cluster) -> None:
    victims = [
        cluster.node("a").kubelet,
        cluster.node("b").containerd,
        cluster.node("c").kube_proxy,
        cluster.control_plane.etcd,
        cluster.registry.proxy,
    ]
    for victim in victims:
        victim.stop(kill=True)
    cluster.node("c").sandbox.init.stop(kill=True)
    cluster.up()
    assert all("runs" in state for _, state in cluster.status())


def test_up_redoes_missing_mounts(cluster: Cluster) -> None:
    node = cluster.node("b")
    node.exec(["umount", "-l", "/var/lib/kubelet"])
    cluster.up()
    assert node._lacking_mounts() == []
    cluster.kubectl("rollout", "status", "daemonset/host", "--timeout=110s")


def test_a_reboot_changes_the_boot_id_and_pods_come_back(cluster: Cluster, image: str) -> None:
    node = cluster.node("c")
    before = node.boot_id
    cluster.reboot("c")
    assert node.boot_id != before
    assert cluster.get("node", "c")["status"]["nodeInfo"]["bootID"] == node.boot_id
    assert any("testbed/busybox" in str(one["repoTags"]) for one in node.images())
    eventually("its pods run again", lambda: bool(node.crictl("ps", "-q", "--name", "main")))


def test_a_frozen_node_stands_still_and_goes_on(cluster: Cluster) -> None:
    node = cluster.node("b")
    node.freeze()
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run(
                ["curl", "-sk", "-m", "5", f"https://{node.ip}:10250/healthz"], timeout=2, check=False
            )
    finally:
        node.freeze(frozen=False)
    cluster.wait_ready(["b"])


def test_the_api_server_can_be_restarted(cluster: Cluster) -> None:
    cluster.restart_apiserver()
    assert cluster.get("nodes")["items"]


def test_a_fourth_node_comes_and_goes(cluster: Cluster) -> None:
    node = cluster.add_node("d", disk=4 << 30)
    assert cluster.get("node", "d")["metadata"]["labels"]["topology.kubernetes.io/zone"] == node.zone
    cluster.kubectl("rollout", "status", "daemonset/host", "--timeout=110s")

    def on_every_node() -> bool:
        names = [one["spec"]["nodeName"] for one in cluster.get("pods", "-l", "app=host")["items"]]
        return sorted(names) == ["a", "b", "c", "d"]

    # The controller may have heard of the node only after the roll-out was asked about.
    eventually("a pod on every node", on_every_node)
    cluster.remove_node("d")
    assert "d" not in [one["metadata"]["name"] for one in cluster.get("nodes")["items"]]
    assert not node.folder.exists()
    assert not Path(f"/sys/class/net/ipp-{NAME}.3").exists()
    with pytest.raises(ClusterError, match="has no node 'd'"):
        cluster.node("d")


@pytest.mark.parametrize("delay", [0.3, 1.0, 2.5, 5.0])
def test_down_leaves_nothing_of_an_up_that_was_killed(cluster: Cluster, delay: float) -> None:
    command = [sys.executable, "-m", "tests.testbed", "--name", OTHER]
    up = subprocess.Popen([*command, "up", "--nodes=x,y", "--disk=2"])
    time.sleep(delay)  # the moment of the kill is what is tested
    up.send_signal(signal.SIGKILL)
    up.wait()
    subprocess.run([*command, "down"], check=True, timeout=100)
    assert leftovers(OTHER) == []
    assert all("runs" in state for _, state in cluster.status())


def test_an_up_that_was_killed_goes_on_where_it_stood(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "tests.testbed", "--name", OTHER]
    up = subprocess.Popen([*command, "up", "--nodes=x", "--disk=2"])
    time.sleep(3)
    up.send_signal(signal.SIGKILL)
    up.wait()
    other = Cluster(OTHER)
    try:
        other.up(["x"], disk=2 << 30)
        assert [one["metadata"]["name"] for one in other.get("nodes")["items"]] == ["x"]
        assert other.layout.subnet != cluster.layout.subnet
    finally:
        other.down()
    assert leftovers(OTHER) == []


def test_a_daemon_that_ends_is_named_with_the_end_of_its_log(cluster: Cluster) -> None:
    process = cluster.sandbox.process("broken")
    process.start(["/bin/sh", "-c", "echo it went wrong; exit 3"], join=cluster.sandbox.pid())
    eventually("it ends", lambda: not process.alive)
    with pytest.raises(ClusterError, match=r"(?s)control/broken: has ended.*it went wrong"):
        process.check_alive()
    process.record.unlink()


def test_start_times_tell_processes_apart() -> None:
    assert start_time(os.getpid()) is not None
    assert start_time(2**22 + 1) is None


def test_a_foreign_interface_on_the_subnet_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEPREPULL_TESTBED", str(tmp_path))
    layout = Layout("tbclash")
    # A subnet that no running cluster can have: numbers are below 100.
    monkeypatch.setattr(Layout, "subnet", 199)
    run("test", ["ip", "link", "add", "ipp-tbold", "type", "bridge"])
    try:
        run("test", ["ip", "addr", "add", f"{layout.host_ip}/24", "dev", "ipp-tbold"])
        with pytest.raises(ClusterError, match=r"10\.90\.199\.1 is on ipp-tbold.*--name tbold down"):
            network.ensure_bridge(layout)
        assert layout.bridge not in network.links()
    finally:
        run("test", ["ip", "link", "del", "ipp-tbold"])
