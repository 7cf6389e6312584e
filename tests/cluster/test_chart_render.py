"""What Helm makes of the chart; needs the helm binary and no cluster."""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.cluster.product import CHART, NAMESPACE, RELEASE
from tests.testbed import binaries

Document = dict[str, Any]
KUBERNETES = "1.37.0"
NOT_BUILT_IN = {"CustomResourceDefinition"}
"""kubernetes-validate has no schema for a CRD's own schema; the API server takes the CRDs in every cluster test."""
VARIANTS: dict[str, Document] = {
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
            "seLinuxOptions": {"type": "spc_t", "level": "s0"},
            "podAnnotations": {"a": "b"},
            "podLabels": {"c": "d"},
        },
        "rbac": {"aggregate": True},
    },
}  # fmt: skip


def helm(*arguments: str | Path, values: Document | None = None) -> subprocess.CompletedProcess[str]:
    command = [binaries.path("helm"), *arguments]
    if values is not None:
        command += ["--values", "-"]
    return subprocess.run(
        command, input=json.dumps(values or {}), capture_output=True, text=True, check=False, timeout=60
    )


def template(values: Document | None = None, *arguments: str) -> subprocess.CompletedProcess[str]:
    return helm("template", RELEASE, CHART, "--namespace", NAMESPACE, *arguments, values=values or {})


def rendered(values: Document | None = None) -> list[Document]:
    return [document for document in yaml.safe_load_all(_rendered(json.dumps(values or {}))) if document]


@functools.cache
def _rendered(values: str) -> str:
    done = template(json.loads(values))
    assert done.returncode == 0, done.stderr
    return done.stdout


def only(documents: list[Document], kind: str, name: str = "") -> Document:
    (found,) = [one for one in documents if one["kind"] == kind and one["metadata"]["name"].endswith(name)]
    return found


def pod_of(documents: list[Document], kind: str) -> Document:
    pod: Document = only(documents, kind)["spec"]["template"]["spec"]
    return pod


def rules(documents: list[Document], component: str) -> set[tuple[str, str, str]]:
    """(kind of role, group/resource, verb) of every rule of a component."""
    return {
        (role["kind"], f"{group}/{resource}", verb)
        for role in documents
        if role["kind"] in ("Role", "ClusterRole") and role["metadata"]["name"] == f"{RELEASE}-{component}"
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def mounts(values: Document) -> dict[str, str]:
    """Host path by mount path of the agent."""
    pod = pod_of(rendered(values), "DaemonSet")
    volumes = {one["name"]: one["hostPath"]["path"] for one in pod["volumes"] if "hostPath" in one}
    return {
        mount["mountPath"]: volumes[mount["name"]]
        for mount in pod["containers"][0]["volumeMounts"]
        if mount["name"] in volumes
    }


def test_helm_lint_has_nothing_to_say() -> None:
    done = helm("lint", "--strict", CHART)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_every_object_is_one_that_kubernetes_knows_to_the_last_field(values: Document) -> None:
    documents = rendered(values)
    names = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in documents]
    assert len(set(names)) == len(names) > 10
    for document in documents:
        if document["kind"] not in NOT_BUILT_IN:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_every_object_has_its_labels_and_namespaced_ones_the_release_namespace(values: Document) -> None:
    for document in rendered(values):
        labels = document["metadata"]["labels"]
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert values.get("commonLabels", {}).items() <= labels.items()
        namespaced = {"ServiceAccount", "Role", "RoleBinding", "Deployment", "DaemonSet", "ConfigMap"}
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
        {"operator": {"replicas": -1}},
        {"operator": {"healthPort": 0}},
        {"agent": {"healthPort": 65536}},
        {"agent": {"keepBlobs": "sometimes"}},
        {"agent": {"sync": "never"}},
        {"crds": {"keep": "yes"}},
    ],
    ids=json.dumps,
)
def test_the_schema_of_values_refuses_and_names_the_value(values: Document) -> None:
    done = template(values)
    assert done.returncode != 0
    field = next(iter(values))
    inner = values[field]
    assert (next(iter(inner)) if isinstance(inner, dict) else field) in done.stderr


def test_a_kubernetes_that_is_too_old_is_refused_and_a_pre_release_is_taken() -> None:
    old = template({}, "--kube-version", "1.31.9")
    assert old.returncode != 0
    assert "kubeVersion" in old.stderr
    assert template({}, "--kube-version", "1.32.1-eks-abcdef").returncode == 0


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_nothing_is_privileged_and_no_capability_is_added(values: Document) -> None:
    documents = rendered(values)
    for kind in ("Deployment", "DaemonSet"):
        pod = pod_of(documents, kind)
        assert "hostPID" not in pod
        assert "hostIPC" not in pod
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        context = container["securityContext"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert "privileged" not in context
    operator = pod_of(documents, "Deployment")
    assert operator["securityContext"]["runAsNonRoot"] is True
    assert "hostNetwork" not in operator
    assert not [one for one in operator["volumes"] if "hostPath" in one]


def test_the_agent_sees_the_network_as_the_node_and_runs_everywhere() -> None:
    pod = pod_of(rendered(), "DaemonSet")
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
    values: Document, socket_folder: str, root: str, hosts: str
) -> None:
    found = mounts(values)
    for folder in (socket_folder, root, hosts):
        assert found[folder] == folder, "at the same path: the runtime's mounts carry paths of the host"
    arguments = pod_of(rendered(values), "DaemonSet")["containers"][0]["args"]
    assert f"--address=unix://{socket_folder}/containerd.sock" in arguments
    assert f"--spool-dir={root}/imageprepull" in arguments
    assert f"--hosts-dir={hosts}" in arguments


def test_an_agent_may_read_nodeprepulls_and_write_their_status_and_no_more() -> None:
    assert rules(rendered(), "agent") == {
        *(("ClusterRole", "imageprepull.io/nodeprepulls", verb) for verb in ("get", "list", "watch")),
        ("ClusterRole", "imageprepull.io/nodeprepulls/status", "patch"),
        *(("Role", "/configmaps", verb) for verb in ("get", "list", "watch")),
    }


def test_the_operator_reads_no_secrets_and_changes_neither_nodes_nor_specs_of_users() -> None:
    granted = rules(rendered(), "operator")
    assert not [resource for _, resource, _ in granted if "secrets" in resource or "*" in resource]
    assert not [
        verb for _, _, verb in granted if verb in ("*", "escalate", "bind", "impersonate", "deletecollection")
    ]
    assert {verb for _, resource, verb in granted if resource == "/nodes"} == {"get", "list", "watch"}
    assert {verb for _, resource, verb in granted if resource == "imageprepull.io/imageprepulls"} == {
        "get",
        "list",
        "watch",
    }  # fmt: skip


@pytest.mark.parametrize("aggregate", [False, True])
def test_roles_for_people_are_aggregated_only_when_asked(aggregate: bool) -> None:
    documents = rendered({"rbac": {"aggregate": aggregate}})
    for name in ("viewer", "editor"):
        role = only(documents, "ClusterRole", f"-{name}")
        found = [label for label in role["metadata"]["labels"] if "aggregate-to" in label]
        assert bool(found) is aggregate
        assert {resource for rule in role["rules"] for resource in rule["resources"]} == {"imageprepulls"}


def test_roles_for_people_can_be_left_out() -> None:
    names = [one["metadata"]["name"] for one in rendered({"rbac": {"userRoles": False}})]
    assert not [name for name in names if name.endswith(("-viewer", "-editor"))]


@pytest.mark.parametrize("keep", [True, False])
def test_crds_are_kept_unless_told_otherwise(keep: bool) -> None:
    crds = [one for one in rendered({"crds": {"keep": keep}}) if one["kind"] == "CustomResourceDefinition"]
    assert len(crds) == 2
    for crd in crds:
        annotations = crd["metadata"].get("annotations", {})
        assert (annotations.get("helm.sh/resource-policy") == "keep") is keep


def test_rendered_crds_have_the_spec_of_the_source() -> None:
    for crd in (one for one in rendered() if one["kind"] == "CustomResourceDefinition"):
        source = CHART.parents[1] / "crds" / f"{crd['spec']['names']['plural']}.yaml"
        assert crd["spec"] == yaml.safe_load(source.read_text())["spec"]


def test_crds_can_be_left_out() -> None:
    assert "CustomResourceDefinition" not in [one["kind"] for one in rendered({"crds": {"enabled": False}})]


def test_admission_policies_deny_by_default_and_name_the_agents_account() -> None:
    documents = rendered()
    account = f"system:serviceaccount:{NAMESPACE}:{only(documents, 'DaemonSet')['spec']['template']['spec']['serviceAccountName']}"
    for name in ("nodeprepull-status", "nodeprepull-delete"):
        policy = only(documents, "ValidatingAdmissionPolicy", name)
        assert policy["spec"]["failurePolicy"] == "Fail"
        assert account in json.dumps(policy["spec"])
        binding = only(documents, "ValidatingAdmissionPolicyBinding", name)
        assert binding["spec"] == {"policyName": policy["metadata"]["name"], "validationActions": ["Deny"]}


def test_hosts_toml_of_the_operator_lies_where_containerd_would_look() -> None:
    documents = rendered(VARIANTS["everything"])
    (volume,) = [one for one in pod_of(documents, "Deployment")["volumes"] if one["name"] == "registry-hosts"]
    paths = {
        item["path"]: (source["configMap"]["name"], item["key"])
        for source in volume["projected"]["sources"]
        for item in source["configMap"]["items"]
    }
    ours = only(documents, "ConfigMap")
    assert paths == {
        "registry.example/hosts.toml": (ours["metadata"]["name"], "registry.example.toml"),
        "registry.example_5000_/hosts.toml": (ours["metadata"]["name"], "registry.example_5000_.toml"),
        "other.example_443_/hosts.toml": ("mine", "a.toml"),
    }
    assert set(ours["data"]) == {"registry.example.toml", "registry.example_5000_.toml"}
    assert 'server = "http://registry.example:5000"' in ours["data"]["registry.example_5000_.toml"]


def test_the_selector_of_agents_that_the_operator_gets_is_the_one_of_the_daemonset() -> None:
    documents = rendered()
    labels = only(documents, "DaemonSet")["spec"]["selector"]["matchLabels"]
    arguments = pod_of(documents, "Deployment")["containers"][0]["args"]
    (selector,) = [one.partition("=")[2] for one in arguments if one.startswith("--agent-selector=")]
    assert dict(pair.split("=") for pair in selector.split(",")) == labels


def test_notes_show_an_object_that_can_be_applied_as_it_stands() -> None:
    done = helm("install", RELEASE, CHART, "--namespace", NAMESPACE, "--dry-run=client", "--hide-notes=false")
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "kubectl wait --for=condition=Ready" in notes
    assert NAMESPACE in notes
