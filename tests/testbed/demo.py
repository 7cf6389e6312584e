"""`make demo`: the main job, shown on a real throw-away cluster on this machine, step by step.

Everything it runs is what a user would run; the commands are printed as they are run.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from tests.testbed import binaries, build, demo_image, images, product_image
from tests.testbed.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "imageprepull-system"
REPOSITORY, TAG = "demo/toolbox", "1.0"
DEFAULT_RATE = 25_000_000
STARTED = time.monotonic()


def step(text: str) -> None:
    print(f"\n\033[1m[{time.monotonic() - STARTED:5.0f} s] {text}\033[0m", flush=True)


class Shell:
    """Runs the user's commands against the demo's cluster, printing them first."""

    def __init__(self, cluster: Cluster) -> None:
        self.environment = {
            **os.environ,
            "KUBECONFIG": str(cluster.kubeconfig),
            # kubectl finds its plug-in beside the interpreter that runs this.
            "PATH": f"{Path(sys.executable).parent}:{binaries.path('kubectl').parent}"
            f":{binaries.path('helm').parent}:{os.environ['PATH']}",
        }

    def run(self, *command: str, check: bool = True, **options: str) -> int:
        print(f"$ {shlex.join(command)}", flush=True)
        # The status table redraws in place on a terminal, so the child must see ours.
        done = subprocess.run(command, env=self.environment, cwd=ROOT, text=True, check=False, **options)  # type: ignore[call-overload]
        if check and done.returncode:
            sys.exit(f"demo: the command above ended with {done.returncode}")
        return int(done.returncode)


def pods(nodes: list[str], image: str) -> str:
    """One pod per node that may not pull: it can only start because the image is there already."""
    documents = [
        f"""\
apiVersion: v1
kind: Pod
metadata: {{name: toolbox-{node}, labels: {{app: toolbox}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: toolbox, image: "{image}", imagePullPolicy: Never}}
"""
        for node in nodes
    ]
    return "---\n".join(documents)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--name", default="demo", help="the cluster's name")
    parser.add_argument("--rate", type=int, default=DEFAULT_RATE, help="bytes/s of the registry per node")
    arguments = parser.parse_args()

    step("Building what is not in the cache: Kubernetes, containerd, etcd, crictl, helm")
    build.build_all()
    cluster = Cluster(arguments.name)
    step("Starting the cluster: three nodes, containerd 1.6 on a, 2.4 on b and c")
    cluster.up()
    shell = Shell(cluster)
    shell.run("kubectl", "get", "nodes", "-L", "topology.kubernetes.io/zone", "-o", "wide")

    step("Building the product's image and pushing it to the cluster's registry")
    product = product_image.push(cluster.registry_push_url, "imageprepull", "demo")
    print(f"  {cluster.registry_name}/imageprepull@{product}")

    step("Building a demo image from Debian packages and pushing it")
    built = demo_image.build(binaries.cache_root())
    images.push(built, cluster.registry_push_url, REPOSITORY, TAG)
    image = f"{cluster.registry_name}/{REPOSITORY}:{TAG}"
    print(
        f"  {image}  {len(built.layers)} layers  {sum(each.blob.size for each in built.layers) / 1e6:.0f} MB"
    )

    step("Installing ImagePrepull with Helm")
    values = product_image.values(cluster.registry_name, "imageprepull", product)
    shell.run(
        "helm", "upgrade", "--install", "imageprepull", "charts/imageprepull",
        "--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", "3m",
        *[argument for value in values for argument in ("--set-string", value)],
    )  # fmt: skip

    step(
        f"Applying examples/imageprepull.yaml for {image}; the registry gives each node {arguments.rate / 1e6:g} MB/s"
    )
    cluster.proxy.set_rate(arguments.rate)
    example = (ROOT / "examples/imageprepull.yaml").read_text()
    manifest = product_image.example_with_image(example, image)
    shell.run("kubectl", "apply", "-f", "-", input=manifest)
    name = product_image.example_name(example)
    applied = time.monotonic()
    shell.run("kubectl", "image-prepull", "status", name, "-w")
    shell.run("kubectl", "wait", "--for=condition=Ready", f"imageprepull/{name}", "--timeout=10m")
    print(f"  Ready on all nodes {time.monotonic() - applied:.0f} s after kubectl apply")

    step("Starting one pod per node that may not pull (imagePullPolicy: Never)")
    shell.run("kubectl", "apply", "-f", "-", input=pods(cluster.node_names(), image))
    shell.run("kubectl", "wait", "--for=condition=Ready", "pod", "-l", "app=toolbox", "--timeout=1m")
    shell.run("kubectl", "get", "pods", "-l", "app=toolbox", "-o", "wide")
    shell.run("kubectl", "get", "events", "--field-selector", "reason=Pulled")

    step("What the object says")
    shell.run("kubectl", "get", "imageprepull")
    shell.run("kubectl", "get", "imageprepull", name, "-o", "yaml")
    shell.run("kubectl", "get", "nodeprepulls")

    step("Done. Look around:")
    print(f"""\
  eval "$({Path(sys.executable).name} -m tests.testbed --name {arguments.name} env)"   # KUBECONFIG and PATH for this cluster
  kubectl get imageprepull,nodeprepull
  kubectl image-prepull status {name} --layers
  kubectl -n {NAMESPACE} logs deploy/imageprepull-operator

  make demo-down          # stop it; leaves nothing behind
""")


if __name__ == "__main__":
    main()
