"""ImagePrepull installed by Helm on a throw-away cluster, and the questions that the tests ask of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.testbed import binaries, product_image
from tests.testbed.cluster import Cluster
from tests.testbed.errors import ClusterError
from tests.testbed.images import BuiltImage, LayerSpec, build_image, executable, push
from tests.testbed.node import Node

NAMESPACE = "imageprepull-system"
RELEASE = "imageprepull"
CHART = Path(__file__).parents[2] / "charts" / "imageprepull"
BUSYBOX = Path("/bin/busybox")
SHORT_DELAYS = {
    "operator": ("--status-interval=0.3", "--resync=15", "--confirm-interval=2"),
    "agent": (
        "--report-interval=0.3",
        "--resync=15",
        "--backoff-base=0.5",
        "--failed-retry-interval=600",
        "--operator-lease-poll=0.5",
        "--order-retry-interval=5",
    ),
}
"""Every delay of the product is a flag; these make a test of minutes one of seconds.

But for the time after which agents try again by themselves what has failed for good: tests order it before that.
"""


def layer(number: int, *, size: int = 200_000, marker: str = "") -> LayerSpec:
    """A layer that no other test has: one file of `size` bytes that do not compress."""
    seed = f"{marker}{number}{time.time_ns()}".encode()
    data = b"".join(seed + index.to_bytes(4, "big") for index in range(size // (len(seed) + 4) + 1))
    return LayerSpec({f"layer-{number}": data[:size]}, compression="plain")


def base_layer() -> LayerSpec:
    """Debian's static busybox, in a layer that no other test has: one that exists is neither pulled nor applied."""
    return LayerSpec(
        {
            "bin/busybox": executable(BUSYBOX.read_bytes()),
            "etc/passwd": b"root:x:0:0::/:/bin/sh\n",
            "etc/unique": str(time.time_ns()).encode(),
        }
    )


def runnable(*layers: LayerSpec, base: LayerSpec | None = None) -> BuiltImage:
    """An image whose program sleeps, of a base and these layers, with a config of its own."""
    program = ["/bin/busybox", "sh", "-c", "trap 'exit 0' TERM; busybox sleep 2147483647 & wait"]
    return build_image([base or base_layer(), *layers], config_extra={"config": {"Cmd": program}})


@dataclass(frozen=True)
class Product:
    """The installed product."""

    cluster: Cluster

    def install(self, *values: str) -> None:
        """`helm upgrade --install --wait` with the chart of this checkout and short delays."""
        digest = product_image.push(self.cluster.registry_push_url, "imageprepull", "test")
        settings = [*product_image.values(self.cluster.registry_name, "imageprepull", digest), *values]
        settings += [
            f"{component}.extraArgs[{index}]={argument}"
            for component, arguments in SHORT_DELAYS.items()
            for index, argument in enumerate(arguments)
        ]
        self.cluster.helm(
            "upgrade", "--install", RELEASE, CHART, "--namespace", NAMESPACE, "--create-namespace", "--wait",
            "--timeout", "3m", *[word for setting in settings for word in ("--set-string", setting)],
        )  # fmt: skip

    def push(self, image: BuiltImage, repository: str, tag: str = "1") -> str:
        """Push and return the reference as the nodes use it."""
        push(image, self.cluster.registry_push_url, repository, tag)
        return f"{self.cluster.registry_name}/{repository}:{tag}"

    def apply(self, name: str, *images: str, **spec: Any) -> None:
        """Create or change an ImagePrepull in the default namespace."""
        document = {
            "apiVersion": "imageprepull.io/v1alpha1",
            "kind": "ImagePrepull",
            "metadata": {"name": name},
            "spec": {"images": [{"image": image} for image in images], **spec},
        }
        self.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(document))

    def delete(self, name: str) -> None:
        self.cluster.kubectl("delete", "imageprepull", name, "--ignore-not-found", "--wait")

    def delete_pods(self, *names: str) -> None:
        """Delete them, and what a kubelet leaves of them.

        It removes the containers of a deleted pod within a second, or, when it has looked too early, with its own
        collection, once a minute.
        """
        self.cluster.kubectl("delete", "pod", *names, "--ignore-not-found", "--wait")
        for node in self.cluster.nodes():
            for name in names:
                label = f"io.kubernetes.pod.name={name}"
                for container in node.crictl("ps", "--all", "--quiet", "--label", label).split():
                    node.exec([binaries.path("crictl"), "rm", "--force", container], check=False)

    def get(self, name: str) -> dict[str, Any]:
        document: dict[str, Any] = self.cluster.get("imageprepull", name)
        return document

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        """A condition of the present generation; empty while the operator has not got there."""
        document = self.get(name)
        for condition in document.get("status", {}).get("conditions", []):
            current = condition.get("observedGeneration") == document["metadata"]["generation"]
            if condition["type"] == kind and current:
                found: dict[str, Any] = condition
                return found
        return {}

    def until(self, what: str, check: Callable[[], Any], timeout: float = 60) -> Any:
        """Ask the API again until `check` answers truly; its answer. Fails with all that is known otherwise.

        A question that the API refuses (a server that has just started does not know every kind yet) and a field that
        is not there yet are no answer.
        """
        deadline = time.monotonic() + timeout
        while True:
            problem = ""
            try:
                if answer := check():
                    return answer
            except (ClusterError, LookupError) as error:
                problem = f" ({type(error).__name__}: {error})"
            if time.monotonic() > deadline:
                said = f"not within {timeout:.0f} s: {what}{problem}"
                raise AssertionError(f"{said}\n{self.story()}\n{said}")
            time.sleep(0.2)  # between two questions to the API, nothing is timed by it

    def until_ready(self, name: str, timeout: float = 90) -> dict[str, Any]:
        """Wait for Ready of the present generation; the object."""
        self.until(f"{name} Ready", lambda: self.condition(name, "Ready").get("status") == "True", timeout)
        return self.get(name)

    def layer_states(self, name: str, node: str, image: str) -> list[str]:
        """The states of an image's layers on a node as the object shows them, in the manifest's order."""
        for detail in self.get(name).get("status", {}).get("nodeDetails", []):
            if detail["node"] == node:
                for one in detail.get("images", []):
                    if one["image"] == image:
                        return [layer["state"] for layer in one.get("layers", [])]
        return []

    def images_named(self, node: str, image: str) -> list[dict[str, Any]]:
        """What the node's CRI shows under this name."""
        shown: list[Any] = self.cluster.node(node).images()
        return [one for one in shown if image in (one.get("repoTags") or [])]

    def until_unpinned(self, node: str, image: str) -> None:
        """Wait until the node's CRI shows no pin of the image: it follows the records by events."""
        self.until(
            f"{image} is not pinned on {node}",
            lambda: not any(shown.get("pinned") for shown in self.images_named(node, image)),
        )

    def until_kept(self, node: str, image: BuiltImage) -> None:
        """Wait until the node has the layers' blobs: they follow when the image is Ready."""
        wanted = {layer.blob.digest for layer in image.layers}
        self.until(
            f"the blobs are kept on {node}",
            lambda: wanted <= set(self.cluster.node(node).ctr("content", "ls", "-q").split()),
        )

    def until_asked_only(self, *images: str) -> None:
        """Wait until every node is asked for these and for nothing else: orders of earlier objects are carried out."""

        def asked() -> bool:
            plans = self.cluster.get("nodeprepull")["items"]
            return all(
                sorted(entry["reference"] for entry in plan["spec"].get("images", [])) == sorted(images)
                for plan in plans
            )

        self.until(f"nothing but {images} is asked of any node", asked)

    def story(self) -> str:
        """What a person would look at first; the likeliest to explain it at the end, where a long output is not cut."""
        looks: tuple[Callable[[], str], ...] = (
            lambda: self._objects("imageprepull", "-A"),
            lambda: self._objects("nodeprepull"),
            lambda: self.cluster.kubectl("get", "pods", "-A", "-o", "wide"),
            lambda: self.cluster.kubectl(
                "-n", NAMESPACE, "logs", "-l", "app.kubernetes.io/name=imageprepull", "--tail=15", "--prefix"
            ),
        )
        parts = []
        for look in looks:
            try:
                parts.append(look())
            except ClusterError as error:
                parts.append(str(error))
        return "\n".join(parts)[-20000:]

    def _objects(self, *which: str) -> str:
        return "\n".join(json.dumps(summed_up(item)) for item in self.cluster.get(*which)["items"])


def summed_up(value: Any) -> Any:
    """An object as people read it first: of an image's layers how many are in which state."""
    if isinstance(value, list):
        return [summed_up(one) for one in value]
    if not isinstance(value, dict):
        return value
    shown = {key: summed_up(one) for key, one in value.items() if key != "managedFields"}
    if "layers" in value:
        shown["layers"] = states = Counter[str]()
        for layer in value["layers"]:
            # Those of a manifest say how many nodes have them in which state.
            states.update(layer.get("nodes", {}) if "state" not in layer else [layer["state"]])
    return shown


def kubectl_plugin(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `kubectl image-prepull …`, through kubectl itself, as it finds plug-ins on the PATH."""
    folder = Path(sys.executable).parent
    environment = {"KUBECONFIG": str(cluster.kubeconfig), "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(
        [binaries.path("kubectl"), "image-prepull", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@contextmanager
def kubelet_with(product: Product, node: Node, changes: dict[str, Any]) -> Iterator[None]:
    """Start the node's kubelet with other settings; afterwards it is as before."""
    path = node.folder / "etc" / "node" / "kubelet.json"
    before = path.read_text()

    def restart(text: str) -> None:
        node.stop_kubelet()
        path.write_text(text)
        node.start_kubelet()

    restart(json.dumps(json.loads(before) | changes))
    try:
        yield
    finally:
        restart(before)
        product.cluster.wait_ready([node.name])
