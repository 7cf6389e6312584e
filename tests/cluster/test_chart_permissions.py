"""Least privilege: exactly these permissions, and the admission policies on top of them. Needs helm and no cluster."""

from __future__ import annotations

from typing import Any

import kubernetes_validate

from tests.cluster.chart_render import NAMESPACE, one, render

Permission = tuple[str, str, str, str]


def permissions(rules: list[dict[str, Any]]) -> set[Permission]:
    """(group, resource, name or "*", verb)"""
    return {
        (group, resource, name, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", ["*"])
        for verb in rule["verbs"]
    }


def granted(component: str) -> set[Permission]:
    """All that the component's ServiceAccount may do, after checking who is bound to what."""
    objects = render()
    name = f"imageprepull-{component}"
    found: set[Permission] = set()
    for kind in ("ClusterRole", "Role"):
        binding = one(objects, f"{kind}Binding", name)
        assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}]
        found |= permissions(one(objects, kind, name)["rules"])
    assert one(objects, "ServiceAccount", name)
    return found


def each(group: str, resource: str, verbs: str, name: str = "*") -> set[Permission]:
    return {(group, resource, name, verb) for verb in verbs.split()}


def test_an_agent_reads_nodeprepulls_its_pace_and_the_operators_lease_and_writes_only_a_status() -> None:
    assert granted("agent") == (
        each("imageprepull.io", "nodeprepulls", "get list watch")
        | each("imageprepull.io", "nodeprepulls/status", "patch")
        | each("", "configmaps", "get list watch", "imageprepull-pace")
        | each("coordination.k8s.io", "leases", "get", "imageprepull-operator")
    )


def test_the_operator_has_exactly_what_it_uses() -> None:
    ours = ("imageprepulls.imageprepull.io", "nodeprepulls.imageprepull.io")
    assert granted("operator") == (
        each("imageprepull.io", "imageprepulls", "get list watch")
        | each("imageprepull.io", "imageprepulls/status", "patch")
        | each("imageprepull.io", "nodeprepulls", "get list watch create patch delete")
        | each("", "nodes", "get list watch")
        | each("events.k8s.io", "events", "create")
        | {("apiextensions.k8s.io", "customresourcedefinitions", name, "get") for name in ours}
        | each("", "pods", "list watch")
        | each("coordination.k8s.io", "leases", "create")
        | each("coordination.k8s.io", "leases", "get patch update", "imageprepull-operator")
        | each("", "configmaps", "create")
        | each("", "configmaps", "get patch", "imageprepull-pace")
    )


def test_an_uninstall_may_stop_the_operator_and_order_in_its_place_and_only_while_it_lasts() -> None:
    assert granted("uninstall") == (
        each("imageprepull.io", "nodeprepulls", "list patch")
        | each("apps", "deployments/scale", "patch", "imageprepull-operator")
        | each("coordination.k8s.io", "leases", "get", "imageprepull-operator")
        | each("batch", "jobs", "get", "imageprepull-uninstall")
    )
    hooks = [found for found in render() if found["metadata"]["name"] == "imageprepull-uninstall"]
    assert len(hooks) == 6
    for hook in hooks:
        marks = hook["metadata"]["annotations"]
        assert marks["helm.sh/hook"] == "pre-delete"
        weight = 0 if hook["kind"] == "Job" else -5
        assert int(marks["helm.sh/hook-weight"]) == weight
        assert ("hook-succeeded" in marks["helm.sh/hook-delete-policy"]) == (hook["kind"] != "Job")
    assert not [
        found
        for found in render({"uninstall": {"unpin": False}})
        if found["metadata"]["name"].endswith("uninstall")
    ]


def test_agents_and_uninstall_name_what_the_release_made() -> None:
    objects = render(release="blue")
    (container,) = one(objects, "Job")["spec"]["template"]["spec"]["containers"]
    operator = one(objects, "Deployment")
    assert f"--deployment={operator['metadata']['name']}" in container["args"]
    (lease,) = [
        argument
        for argument in operator["spec"]["template"]["spec"]["containers"][0]["args"]
        if argument.startswith("--lease-name=")
    ]
    assert lease in container["args"]
    (agent,) = one(objects, "DaemonSet")["spec"]["template"]["spec"]["containers"]
    name = lease.removeprefix("--lease-name=")
    assert f"--operator-lease={name}" in agent["args"]
    assert each("coordination.k8s.io", "leases", "get", name) <= permissions(
        one(objects, "Role", "blue-imageprepull-agent")["rules"]
    )


def test_pods_leases_and_configmaps_are_seen_in_the_release_namespace_only() -> None:
    for component in ("operator", "agent"):
        wide = permissions(one(render(), "ClusterRole", f"imageprepull-{component}")["rules"])
        assert not {resource for _, resource, _, _ in wide} & {"pods", "leases", "configmaps"}


def test_nobody_reads_secrets_writes_nodes_or_holds_a_wildcard() -> None:
    for rendered in render():
        if rendered["kind"] in ("Role", "ClusterRole"):
            for group, resource, _, verb in permissions(rendered["rules"]):
                assert "*" not in (group, resource, verb)
                assert resource != "secrets"
                assert resource != "nodes" or verb in ("get", "list", "watch")


def test_people_get_roles_that_are_not_added_to_the_built_in_ones() -> None:
    objects = render()
    viewer, editor = (one(objects, "ClusterRole", f"imageprepull-{role}") for role in ("viewer", "editor"))
    assert permissions(viewer["rules"]) == each("imageprepull.io", "imageprepulls", "get list watch")
    assert permissions(editor["rules"]) == permissions(viewer["rules"]) | each(
        "imageprepull.io", "imageprepulls", "create update patch delete"
    )
    for role in (viewer, editor):
        assert not [label for label in role["metadata"]["labels"] if "aggregate-to" in label]


def test_aggregation_is_asked_for() -> None:
    editor = one(render({"rbac": {"aggregate": True}}), "ClusterRole", "imageprepull-editor")
    assert editor["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    assert not [
        f for f in render({"rbac": {"userRoles": False}}) if f["metadata"]["name"].endswith("-editor")
    ]


def test_policies_deny_by_default_and_name_the_releases_own_agent() -> None:
    objects = render(release="blue")
    agent = f"system:serviceaccount:{NAMESPACE}:blue-imageprepull-agent"
    status = one(objects, "ValidatingAdmissionPolicy", "blue-imageprepull-nodeprepull-status")["spec"]
    delete = one(objects, "ValidatingAdmissionPolicy", "blue-imageprepull-nodeprepull-delete")["spec"]
    assert status["variables"][0]["expression"] == f"request.userInfo.username == '{agent}'"
    assert "matchConditions" not in status, "whoever is not that node's agent is refused, not passed over"
    assert status["matchConstraints"]["resourceRules"][0]["resources"] == ["nodeprepulls/status"]
    assert agent in delete["validations"][0]["expression"]
    for policy in (status, delete):
        assert policy["failurePolicy"] == "Fail"
    for binding in (found for found in objects if found["kind"] == "ValidatingAdmissionPolicyBinding"):
        assert binding["spec"]["validationActions"] == ["Deny"]
        assert one(objects, "ValidatingAdmissionPolicy", binding["spec"]["policyName"])


def test_two_releases_share_no_name_but_the_crds() -> None:
    names = [
        {(found["kind"], found["metadata"]["name"]) for found in render(release=release)}
        for release in ("blue", "green")
    ]
    assert {kind for kind, _ in names[0] & names[1]} == {"CustomResourceDefinition"}


def test_the_oldest_supported_api_server_knows_every_object() -> None:
    for rendered in render():
        kubernetes_validate.validate(rendered, "1.32", strict=True)
