"""What Helm makes of the chart; needs the helm binary and no cluster."""

from __future__ import annotations

import json
import re

import kubernetes_validate
import pytest
import yaml
from yarl import URL

from imageprepull.agent.kubelet import DEFAULT
from imageprepull.registry.proxies import Proxies
from imageprepull.unpacking.capabilities import NEEDED
from tests.cluster.chart_render import CHART, NAMESPACE, Manifest, helm, one, render, template

RELEASE = "imageprepull"
KUBERNETES = "1.37.0"
NOT_BUILT_IN = {"CustomResourceDefinition"}
"""kubernetes-validate has no schema for a CRD's own schema; the API server takes the CRDs in every cluster test."""
VARIANTS: dict[str, Manifest] = {
    "defaults": {},
    "k3s": {"runtime": {"preset": "k3s"}},
    "everything": {
        "image": {"digest": f"sha256:{'0' * 64}", "pullSecrets": ["mine"]},
        "commonLabels": {"team": "platform"},
        "crds": {"keep": False},
        "runtime": {"socket": "/run/other/containerd.sock", "root": "/data/containerd", "hostsDir": "/etc/hosts.d"},
        "registry": {
            "hosts": {"registry.example": 'server = "https://registry.example"'},
            "plainHTTP": ["registry.example:5000"],
            "hostsConfigMap": {"name": "mine", "items": [{"key": "a.toml", "registry": "other.example:443"}]},
            "caConfigMap": "ca",
        },
        "proxy": {"http": "http://proxy.example:3128", "https": "user:p$(x)@proxy.example:3128", "noProxy": "10.0.0.0/8"},
        "operator": {
            "replicas": 2,
            "extraArgs": ["--resync=60"],
            "tolerations": [{"operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "podAnnotations": {"a": "b"},
            "podLabels": {"c": "d"},
        },
        "agent": {
            "keepBlobs": "never",
            "sync": "before",
            "extraction": "portable",
            "seLinuxOptions": {"type": "spc_t", "level": "s0"},
            "podAnnotations": {"a": "b"},
            "podLabels": {"c": "d"},
        },
        "rbac": {"aggregate": True},
    },
}  # fmt: skip


def pod_of(documents: list[Manifest], kind: str) -> Manifest:
    pod: Manifest = one(documents, kind)["spec"]["template"]["spec"]
    return pod


def mounts(values: Manifest) -> dict[str, str]:
    """Host path by mount path of the agent."""
    pod = pod_of(render(values), "DaemonSet")
    volumes = {one["name"]: one["hostPath"]["path"] for one in pod["volumes"] if "hostPath" in one}
    return {
        mount["mountPath"]: volumes[mount["name"]]
        for mount in pod["containers"][0]["volumeMounts"]
        if mount["name"] in volumes
    }


def test_helm_lint_has_nothing_to_say() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_every_object_is_one_that_kubernetes_knows_to_the_last_field(values: Manifest) -> None:
    documents = render(values)
    names = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in documents]
    assert len(set(names)) == len(names) > 10
    for document in documents:
        if document["kind"] not in NOT_BUILT_IN:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_every_object_has_its_labels_and_namespaced_ones_the_release_namespace(values: Manifest) -> None:
    for document in render(values):
        labels = document["metadata"]["labels"]
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert values.get("commonLabels", {}).items() <= labels.items()
        namespaced = {"ServiceAccount", "Role", "RoleBinding", "Deployment", "DaemonSet", "ConfigMap", "Job"}
        expected = NAMESPACE if document["kind"] in namespaced else None
        assert document["metadata"].get("namespace") == expected


@pytest.mark.parametrize(
    "values",
    [
        {"unknown": 1},
        {"agent": {"unknown": 1}},
        {"image": {"repository": ""}},
        {"image": {"digest": "latest"}},
        {"image": {"pullPolicy": "Sometimes"}},
        {"runtime": {"preset": "docker"}},
        {"runtime": {"socket": "unix:///run/containerd/containerd.sock"}},
        {"runtime": {"root": "var/lib/containerd"}},
        {"registry": {"plainHTTP": ["http://registry.example"]}},
        {"registry": {"hosts": {"https://registry.example": "x"}}},
        {"registry": {"hostsConfigMap": {"name": "a", "items": [{"key": "b"}]}}},
        {"proxy": {"https": "http://proxy.example:3128/path"}},
        {"proxy": {"noProxy": "10.0.0.0/8;.example.com"}},
        {"operator": {"replicas": -1}},
        {"operator": {"healthPort": 0}},
        {"agent": {"healthPort": 65536}},
        {"agent": {"keepBlobs": "sometimes"}},
        {"agent": {"sync": "never"}},
        {"agent": {"extraction": "quick"}},
        {"crds": {"keep": "yes"}},
    ],
    ids=json.dumps,
)
def test_the_schema_of_values_refuses_and_names_the_value(values: Manifest) -> None:
    done = template(values)
    assert done.returncode != 0
    field = next(iter(values))
    inner = values[field]
    assert (next(iter(inner)) if isinstance(inner, dict) else field) in done.stderr


def test_a_kubernetes_that_is_too_old_is_refused_and_a_pre_release_is_taken() -> None:
    old = helm("template", RELEASE, str(CHART), "--kube-version=1.31.9")
    assert old.returncode != 0
    assert "kubeVersion" in old.stderr
    assert helm("template", RELEASE, str(CHART), "--kube-version=1.32.1-eks-abcdef").returncode == 0


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_nothing_is_privileged(values: Manifest) -> None:
    documents = render(values)
    for kind in ("Deployment", "DaemonSet"):
        pod = pod_of(documents, kind)
        assert "hostPID" not in pod
        assert "hostIPC" not in pod
        (container,) = pod["containers"]
        context = container["securityContext"]
        assert context["capabilities"]["drop"] == ["ALL"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert "privileged" not in context
    operator = pod_of(documents, "Deployment")
    assert operator["securityContext"]["runAsNonRoot"] is True
    assert "hostNetwork" not in operator
    assert not [one for one in operator["volumes"] if "hostPath" in one]


def test_only_an_agent_that_unpacks_has_capabilities() -> None:
    operator = pod_of(render(), "Deployment")
    portable = pod_of(render({"agent": {"extraction": "portable"}}), "DaemonSet")
    for pod in (operator, portable):
        assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "appArmorProfile" not in pod["securityContext"]
    for path in ("auto", "fast"):
        agent = pod_of(render({"agent": {"extraction": path}}), "DaemonSet")
        (container,) = agent["containers"]
        assert f"--extraction={path}" in container["args"]
        added = {f"CAP_{name}" for name in container["securityContext"]["capabilities"]["add"]}
        # SETPCAP takes SYS_CHROOT, and whatever else there may be, from the workers.
        assert added == {*NEEDED, "CAP_SYS_CHROOT", "CAP_SETPCAP"}


def test_the_agent_sees_the_network_as_the_node_and_runs_everywhere() -> None:
    pod = pod_of(render(), "DaemonSet")
    assert pod["hostNetwork"] is True
    assert pod["dnsPolicy"] == "Default"
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["priorityClassName"] == "system-node-critical"
    resources = pod["containers"][0]["resources"]
    assert "cpu" not in resources["limits"]
    for volume in pod["volumes"]:
        assert not volume.get("hostPath", {}).get("path", "").endswith(".sock"), "a folder, not a socket file"


@pytest.mark.parametrize(
    ("values", "socket_folder", "root", "hosts"),
    [
        ({}, "/run/containerd", "/var/lib/containerd", "/etc/containerd/certs.d"),
        (
            {"runtime": {"preset": "k3s"}},
            "/run/k3s/containerd",
            "/var/lib/rancher/k3s/agent/containerd",
            "/var/lib/rancher/k3s/agent/etc/containerd/certs.d",
        ),
        (
            {"runtime": {"preset": "k3s", "root": "/data/k3s"}},
            "/run/k3s/containerd",
            "/data/k3s",
            "/var/lib/rancher/k3s/agent/etc/containerd/certs.d",
        ),
    ],
    ids=["containerd", "k3s", "k3s with a root of its own"],
)
def test_presets_say_where_the_runtime_has_its_things(
    values: Manifest, socket_folder: str, root: str, hosts: str
) -> None:
    found = mounts(values)
    for folder in (socket_folder, root, hosts):
        assert found[folder] == folder, "at the same path: the runtime's mounts carry paths of the host"
    arguments = pod_of(render(values), "DaemonSet")["containers"][0]["args"]
    assert f"--address=unix://{socket_folder}/containerd.sock" in arguments
    assert f"--spool-dir={root}/imageprepull" in arguments
    assert f"--hosts-dir={hosts}" in arguments


def test_agents_are_told_the_kubelets_thresholds() -> None:
    def told(**kubelet: object) -> list[str]:
        arguments = pod_of(render({"kubelet": kubelet}), "DaemonSet")["containers"][0]["args"]
        return [one for one in arguments if one.startswith("--kubelet-")]

    assert told() == [f"--kubelet-eviction-hard={DEFAULT}", "--kubelet-image-gc-high=85"]
    assert told(evictionHard="", imageGCHighThresholdPercent=75) == [
        "--kubelet-eviction-hard=",
        "--kubelet-image-gc-high=75",
    ]


@pytest.mark.parametrize("kind", ["DaemonSet", "Deployment"])
def test_registries_are_reached_through_the_proxy_and_the_api_server_is_not(kind: str) -> None:
    def environment(**proxy: str) -> dict[str, str]:
        (container,) = pod_of(render({"proxy": proxy}), kind)["containers"]
        service = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}
        return {
            one["name"]: as_the_kubelet_expands(one["value"], service)
            for one in container["env"]
            if "value" in one
        }

    assert environment() == {}
    assert environment(noProxy="registry.example") == {}
    assert environment(http="one:1").keys() == {"HTTP_PROXY", "NO_PROXY"}
    found = environment(https="http://me:p$(NODE_NAME)$@proxy:3128", noProxy=".corp, 192.168.0.0/16")
    assert found["HTTPS_PROXY"] == "http://me:p$(NODE_NAME)$@proxy:3128"
    proxies = Proxies.from_environment(found)
    for direct in ("10.96.0.1", "imageprepull.imageprepull-system.svc", "a.corp", "192.168.3.4"):
        assert proxies.choose(URL(f"https://{direct}/v2/")) is None, direct
    through = proxies.choose(URL("https://registry.example/v2/"))
    assert through is not None
    assert str(through.url) == "http://proxy:3128"


def as_the_kubelet_expands(text: str, known: dict[str, str]) -> str:
    """`$(NAME)` of what is known, and `$$` as one `$`."""
    return re.sub(r"\$\$|\$\((\w+)\)", lambda found: known.get(found[1], found[0]) if found[1] else "$", text)


def test_roles_for_people_can_be_left_out() -> None:
    names = [one["metadata"]["name"] for one in render({"rbac": {"userRoles": False}})]
    assert not [name for name in names if name.endswith(("-viewer", "-editor"))]


@pytest.mark.parametrize("keep", [True, False])
def test_crds_are_kept_unless_told_otherwise(keep: bool) -> None:
    crds = [one for one in render({"crds": {"keep": keep}}) if one["kind"] == "CustomResourceDefinition"]
    assert len(crds) == 2
    for crd in crds:
        annotations = crd["metadata"].get("annotations", {})
        assert (annotations.get("helm.sh/resource-policy") == "keep") is keep


def test_rendered_crds_have_the_spec_of_the_source() -> None:
    for crd in (found for found in render() if found["kind"] == "CustomResourceDefinition"):
        source = CHART.parents[1] / "crds" / f"{crd['spec']['names']['plural']}.yaml"
        assert crd["spec"] == yaml.safe_load(source.read_text())["spec"]


def test_crds_can_be_left_out() -> None:
    assert "CustomResourceDefinition" not in [one["kind"] for one in render({"crds": {"enabled": False}})]


def test_hosts_toml_of_the_operator_lies_where_containerd_would_look() -> None:
    documents = render(VARIANTS["everything"])
    (volume,) = [one for one in pod_of(documents, "Deployment")["volumes"] if one["name"] == "registry-hosts"]
    paths = {
        item["path"]: (source["configMap"]["name"], item["key"])
        for source in volume["projected"]["sources"]
        for item in source["configMap"]["items"]
    }
    ours = one(documents, "ConfigMap")
    assert paths == {
        "registry.example/hosts.toml": (ours["metadata"]["name"], "registry.example.toml"),
        "registry.example_5000_/hosts.toml": (ours["metadata"]["name"], "registry.example_5000_.toml"),
        "other.example_443_/hosts.toml": ("mine", "a.toml"),
    }
    assert set(ours["data"]) == {"registry.example.toml", "registry.example_5000_.toml"}
    assert 'server = "http://registry.example:5000"' in ours["data"]["registry.example_5000_.toml"]


def test_the_selector_of_agents_that_the_operator_gets_is_the_one_of_the_daemonset() -> None:
    documents = render()
    labels = one(documents, "DaemonSet")["spec"]["selector"]["matchLabels"]
    arguments = pod_of(documents, "Deployment")["containers"][0]["args"]
    (selector,) = [one.partition("=")[2] for one in arguments if one.startswith("--agent-selector=")]
    assert dict(pair.split("=") for pair in selector.split(",")) == labels


def test_notes_show_an_object_that_can_be_applied_as_it_stands() -> None:
    done = helm(
        "install", RELEASE, str(CHART), f"--namespace={NAMESPACE}", "--dry-run=client", "--hide-notes=false"
    )
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "kubectl wait --for=condition=Ready" in notes
    assert NAMESPACE in notes


def test_the_uninstall_runs_where_agents_do_and_never_waits_on_a_node_that_is_dead() -> None:
    objects = render(
        {
            "agent": {"nodeSelector": {"pool": "gpu"}},
            "operator": {"tolerations": [{"key": "infra", "operator": "Exists"}]},
        }
    )
    job = one(objects, "Job")["spec"]
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "gpu", "kubernetes.io/os": "linux"}
    borne = {(one.get("key"), one.get("effect")): one.get("tolerationSeconds") for one in pod["tolerations"]}
    assert borne[("infra", None)] is None
    assert ("node.kubernetes.io/unschedulable", "NoSchedule") in borne
    for taint in ("not-ready", "unreachable"):
        assert (f"node.kubernetes.io/{taint}", "NoSchedule") not in borne
        assert borne[(f"node.kubernetes.io/{taint}", "NoExecute")] == 5
    assert None not in {key for key, _ in borne}
    (container,) = pod["containers"]
    assert container["imagePullPolicy"] == "IfNotPresent"
    assert "--timeout=100" in container["args"]
    assert "--job=imageprepull-uninstall" in container["args"]
    assert job["activeDeadlineSeconds"] == 110
