"""The kinds that agent and operator talk about, and where the API server serves them."""

from __future__ import annotations

from dataclasses import dataclass

from imageprepull.resources import GROUP, VERSION


@dataclass(frozen=True, slots=True)
class Kind:
    """A resource of the API. `group` is empty for the core group; `kind` is the name inside documents."""

    group: str
    version: str
    plural: str
    namespaced: bool
    kind: str = ""

    @property
    def api_version(self) -> str:
        """As documents name it: `v1`, `imageprepull.io/v1alpha1`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL path of a collection (no name), an object, or an object's subresource.

        Raises:
            ValueError: a namespace for a cluster-scoped kind, an object of a namespaced kind without one,
                or a subresource without a name. Each would silently address something else.
        """
        if namespace and not self.namespaced:
            raise ValueError(f"{self.plural} are cluster-scoped, but namespace {namespace!r} was given")
        if name and self.namespaced and not namespace:
            raise ValueError(f"{self.plural} {name!r} needs a namespace")
        if subresource and not name:
            raise ValueError(f"subresource {subresource!r} of {self.plural} needs a name")
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root]
        if namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part]
        return "/".join(parts)


IMAGEPREPULLS = Kind(GROUP, VERSION, "imageprepulls", True, "ImagePrepull")
NODEPREPULLS = Kind(GROUP, VERSION, "nodeprepulls", False, "NodePrepull")
NODES = Kind("", "v1", "nodes", False, "Node")
NAMESPACES = Kind("", "v1", "namespaces", False, "Namespace")
PODS = Kind("", "v1", "pods", True, "Pod")
CONFIGMAPS = Kind("", "v1", "configmaps", True, "ConfigMap")
EVENTS = Kind("events.k8s.io", "v1", "events", True, "Event")
LEASES = Kind("coordination.k8s.io", "v1", "leases", True, "Lease")
DEPLOYMENTS = Kind("apps", "v1", "deployments", True, "Deployment")
JOBS = Kind("batch", "v1", "jobs", True, "Job")
CRDS = Kind("apiextensions.k8s.io", "v1", "customresourcedefinitions", False, "CustomResourceDefinition")
