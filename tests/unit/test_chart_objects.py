"""What the chart installs: valid objects, confined pods, paths that fit the runtime."""

from __future__ import annotations

import json
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.unit.chart_render import CHART, NAMESPACE, ROOT, helm, one, pod_of, render, template

VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "k3s": {"runtime": {"preset": "k3s"}},
    "everything": {
        "image": {"digest": "sha256:" + "0" * 64, "pullSecrets": ["regcred"]},
        "commonLabels": {"team": "platform"},
        "crds": {"keep": False},
        "runtime": {"socket": "/run/other/containerd.sock", "root": "/mnt/containerd"},
        "registry": {
            "hosts": {"registry.example:5000": 'server = "https://mirror.example"\n'},
            "plainHTTP": ["10.0.0.1:5000"],
            "hostsConfigMap": {"name": "hosts", "items": [{"key": "a.toml", "registry": "a.example"}]},
            "caConfigMap": "ca",
        },
        "operator": {
            "replicas": 2,
            "extraArgs": ["--resync=60"],
            "podLabels": {"a": "b"},
            "podAnnotations": {"c": "d"},
        },
        "agent": {
            "seLinuxOptions": {"type": "spc_t"},
            "extraArgs": ["--resync=60"],
            "podLabels": {"a": "b"},
            "podAnnotations": {"c": "d"},
            "affinity": {"nodeAffinity": {}},
        },
        "rbac": {"aggregate": True},
    },
}
EACH = pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)


@EACH
def test_helm_lint_has_nothing_to_say(values: dict[str, Any]) -> None:
    done = helm("lint", "--strict", str(CHART), "--values=-", stdin=json.dumps(values))
    assert done.returncode == 0, done.stdout + done.stderr


@EACH
def test_every_object_is_valid_by_the_api_servers_own_schema(values: dict[str, Any]) -> None:
    for rendered in render(values):
        kubernetes_validate.validate(rendered, "1.37", strict=True)


def test_the_oldest_supported_api_server_knows_every_object() -> None:
    for rendered in render():
        kubernetes_validate.validate(rendered, "1.32", strict=True)


@EACH
def test_every_object_has_the_standard_labels(values: dict[str, Any]) -> None:
    for rendered in render(values):
        labels = rendered["metadata"]["labels"]
        where = f"{rendered['kind']} {rendered['metadata']['name']}"
        assert labels["app.kubernetes.io/name"] == "imageprepull", where
        assert labels["app.kubernetes.io/instance"] == "imageprepull", where
        assert labels["app.kubernetes.io/managed-by"] == "Helm", where
        assert {"app.kubernetes.io/version", "app.kubernetes.io/part-of", "helm.sh/chart"} <= set(labels), (
            where
        )
        assert labels.get("team") == values.get("commonLabels", {}).get("team"), where


def test_namespaced_objects_stand_in_the_release_namespace() -> None:
    cluster_wide = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}
    for rendered in render():
        if rendered["kind"] not in cluster_wide and not rendered["kind"].startswith("ValidatingAdmission"):
            assert rendered["metadata"]["namespace"] == NAMESPACE


def test_two_releases_share_no_name_but_the_crds() -> None:
    names = [
        {(rendered["kind"], rendered["metadata"]["name"]) for rendered in render(release=release)}
        for release in ("blue", "green")
    ]
    assert {kind for kind, _ in names[0] & names[1]} == {"CustomResourceDefinition"}


@EACH
def test_no_container_is_privileged_or_may_become_so(values: dict[str, Any]) -> None:
    for kind in ("Deployment", "DaemonSet"):
        pod = pod_of(render(values), kind)
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostPID", "hostIPC"} & set(pod)
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert "privileged" not in context


def test_the_operator_is_no_root_and_touches_nothing_of_its_node() -> None:
    pod = pod_of(render(VARIANTS["everything"]), "Deployment")
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert not pod.get("hostNetwork")
    assert not [volume for volume in pod["volumes"] if "hostPath" in volume]


@EACH
def test_the_agent_has_no_cpu_limit_runs_everywhere_and_is_never_evicted(values: dict[str, Any]) -> None:
    pod = pod_of(render(values), "DaemonSet")
    (container,) = pod["containers"]
    assert "cpu" not in container["resources"].get("limits", {})
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["priorityClassName"] == "system-node-critical"
    assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "Default")


@pytest.mark.parametrize(
    ("variant", "socket_folder", "root"),
    [
        ("defaults", "/run/containerd", "/var/lib/containerd"),
        ("k3s", "/run/k3s/containerd", "/var/lib/rancher/k3s/agent/containerd"),
        ("everything", "/run/other", "/mnt/containerd"),
    ],
)
def test_the_agent_sees_the_runtimes_paths_as_the_host_does(
    variant: str, socket_folder: str, root: str
) -> None:
    pod = pod_of(render(VARIANTS[variant]), "DaemonSet")
    (container,) = pod["containers"]
    host = {volume["name"]: volume["hostPath"] for volume in pod["volumes"] if "hostPath" in volume}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert host["socket"] == {"path": socket_folder, "type": "Directory"}, "the folder: a socket is made anew"
    assert host["root"] == {"path": root, "type": "Directory"}
    for name in ("socket", "root", "hosts"):
        assert mounts[name]["mountPath"] == host[name]["path"], (
            "mounts of the runtime carry paths of the host"
        )
    assert mounts["hosts"]["readOnly"] is True
    assert f"--address=unix://{socket_folder}/containerd.sock" in container["args"]
    (spool,) = [argument for argument in container["args"] if argument.startswith("--spool-dir=")]
    assert spool.startswith(f"--spool-dir={root}/"), "the spool lies on the file system of the snapshots"


@pytest.mark.parametrize("kind", ["Deployment", "DaemonSet"])
def test_probes_ask_the_health_port(kind: str) -> None:
    (container,) = pod_of(render({"operator": {"healthPort": 1234}, "agent": {"healthPort": 1234}}), kind)[
        "containers"
    ]
    (port,) = container["ports"]
    assert port["containerPort"] == 1234
    assert "--health-port=1234" in container["args"]
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": port["name"]}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": port["name"]}


def test_selectors_match_their_pods_and_the_operator_finds_the_agents() -> None:
    objects = render(VARIANTS["everything"])
    for kind in ("Deployment", "DaemonSet"):
        workload = one(objects, kind)
        wanted = workload["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= workload["spec"]["template"]["metadata"]["labels"].items()
    agents = one(objects, "DaemonSet")["spec"]["selector"]["matchLabels"]
    (operator,) = pod_of(objects, "Deployment")["containers"]
    (selector,) = [text for text in operator["args"] if text.startswith("--agent-selector=")]
    assert dict(part.split("=") for part in selector.partition("=")[2].split(",")) == agents


def test_one_operator_is_recreated_and_several_are_rolled() -> None:
    assert one(render(), "Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    assert "strategy" not in one(render(VARIANTS["everything"]), "Deployment")["spec"]


def test_a_digest_wins_over_the_tag() -> None:
    values = {"image": {"repository": "r.example/i", "tag": "v2"}}
    assert pod_of(render(values), "DaemonSet")["containers"][0]["image"] == "r.example/i:v2"
    values["image"]["digest"] = "sha256:" + "1" * 64
    assert pod_of(render(values), "Deployment")["containers"][0]["image"] == "r.example/i@sha256:" + "1" * 64


def test_registry_configuration_becomes_containerds_folders() -> None:
    objects = render(VARIANTS["everything"])
    (volume,) = [v for v in pod_of(objects, "Deployment")["volumes"] if v["name"] == "registry-hosts"]
    paths = {
        (source["configMap"]["name"], item["key"]): item["path"]
        for source in volume["projected"]["sources"]
        for item in source["configMap"]["items"]
    }
    assert paths == {
        ("imageprepull-registry-hosts", "registry.example_5000_.toml"): "registry.example_5000_/hosts.toml",
        ("imageprepull-registry-hosts", "10.0.0.1_5000_.toml"): "10.0.0.1_5000_/hosts.toml",
        ("hosts", "a.toml"): "a.example/hosts.toml",
    }
    made = one(objects, "ConfigMap")["data"]
    assert made["registry.example_5000_.toml"] == 'server = "https://mirror.example"\n'
    assert 'server = "http://10.0.0.1:5000"' in made["10.0.0.1_5000_.toml"]
    assert "--hosts-dir=/etc/imageprepull/certs.d" in pod_of(objects, "Deployment")["containers"][0]["args"]


def test_the_crds_are_the_source_plus_labels_and_the_keep_annotation() -> None:
    for source in sorted((ROOT / "crds").glob("*.yaml")):
        copy = CHART / "files/crds" / source.name
        assert copy.read_bytes() == source.read_bytes(), "run: make crds"
    assert len(list((CHART / "files/crds").iterdir())) == len(list((ROOT / "crds").iterdir()))
    sources = {crd["metadata"]["name"]: crd for crd in crds_of_the_repository()}
    rendered = [found for found in render() if found["kind"] == "CustomResourceDefinition"]
    assert {crd["metadata"]["name"] for crd in rendered} == set(sources)
    for crd in rendered:
        assert crd["spec"] == sources[crd["metadata"]["name"]]["spec"]
        assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_crds_can_be_left_out_or_removed_with_the_release() -> None:
    assert "CustomResourceDefinition" not in {found["kind"] for found in render({"crds": {"enabled": False}})}
    removable = render({"crds": {"keep": False}})
    assert not [f for f in removable if "helm.sh/resource-policy" in f["metadata"].get("annotations", {})]


def test_an_api_server_without_node_names_in_tokens_is_refused() -> None:
    done = helm("template", "x", str(CHART), "--kube-version=1.31.0")
    assert done.returncode != 0
    assert "1.32" in done.stderr


def test_templates_render_the_same_twice() -> None:
    assert template({}).stdout == template({}).stdout


def crds_of_the_repository() -> list[dict[str, Any]]:
    return [yaml.safe_load(file.read_text()) for file in (ROOT / "crds").glob("*.yaml")]
