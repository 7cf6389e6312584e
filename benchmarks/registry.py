"""Who serves the images: our static server, or Debian's docker-registry over the same blobs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accounting import Group
from benchmarks.images import Image, Store
from tests.testbed.daemon import DaemonFailedError, spawn

KINDS = ("static", "docker")
DOCKER_REGISTRY = Path("/usr/bin/docker-registry")
CHECKOUT = Path(__file__).parents[1]
PATIENCE = 20.0
TAG = "1"


@dataclass(frozen=True, slots=True)
class Registry:
    """A running registry on loopback, plain http. `host` is what references start with."""

    host: str
    kind: str
    group: Group

    def reference(self, image: Image, host: str = "") -> str:
        """How to pull an image of the store; `host` when a proxy stands before the registry."""
        return f"{host or self.host}/{image.repository}:{TAG}"

    def stats(self) -> dict[str, int]:
        """How it was asked since the last question; docker's registry does not tell."""
        if self.kind != "static":
            return {}
        with urllib.request.urlopen(f"http://{self.host}/stats", timeout=10) as answer:
            return dict(json.load(answer))

    def measure(self, image: Image, connections: int = 4) -> float:
        """Bytes per second of all layers over some connections, read and thrown away."""

        def read(digest: str) -> int:
            url = f"http://{self.host}/v2/{image.repository}/blobs/{digest}"
            size = 0
            with urllib.request.urlopen(url, timeout=60) as answer:
                while piece := answer.read(1 << 20):
                    size += len(piece)
            return size

        started = time.monotonic()
        with ThreadPoolExecutor(connections) as threads:
            size = sum(threads.map(read, image.layers))
        return size / (time.monotonic() - started)


def free_port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def wait_for(url: str, log: Path) -> None:
    """Until a server answers; DaemonFailedError with its log when it does not."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - http
                return
        except OSError:
            time.sleep(0.05)  # it tells nobody when it listens
    raise DaemonFailedError(f"{url} does not answer:\n{log.read_text(errors='replace')[-3000:]}")


@contextmanager
def registry(kind: str, store: Store, folder: Path, group: Group) -> Iterator[Registry]:
    """A registry over the store; `folder` is for its log and, on the store's file system, for links to blobs."""
    folder.mkdir(parents=True, exist_ok=True)
    port, log = free_port(), folder / "registry.log"
    if kind == "static":
        command = [sys.executable, "-m", "benchmarks.static_registry", f"--port={port}"]
        command += [f"--folder={store.folder}"]
    else:
        lay_out(store, folder / "registry")
        config = folder / "registry.json"
        config.write_text(
            json.dumps(
                {
                    "version": "0.1",
                    "log": {"level": "error", "accesslog": {"disabled": True}},
                    "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
                    "http": {"addr": f"127.0.0.1:{port}"},
                }
            )
        )
        command = [str(DOCKER_REGISTRY), "serve", str(config)]
    process = spawn(group.entering(["env", f"PYTHONPATH={CHECKOUT}", *command]), log)
    try:
        wait_for(f"http://127.0.0.1:{port}/v2/", log)
        yield Registry(f"127.0.0.1:{port}", kind, group)
    finally:
        process.kill()
        process.wait(10)


def lay_out(store: Store, root: Path) -> None:
    """Links to the store's blobs in the layout of docker's registry (distribution `registry/storage/paths.go`)."""
    shutil.rmtree(root, ignore_errors=True)
    top = root / "docker/registry/v2"

    def link(path: Path, digest: str) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / "link").write_text(digest)

    for image in store.images().values():
        for digest in image.digests:
            hexadecimal = digest.removeprefix("sha256:")
            data = top / "blobs/sha256" / hexadecimal[:2] / hexadecimal
            data.mkdir(parents=True, exist_ok=True)
            if not (data / "data").exists():
                os.link(store.blob(digest), data / "data")
            link(top / "repositories" / image.repository / "_layers/sha256" / hexadecimal, digest)
        manifest = image.manifest.removeprefix("sha256:")
        manifests = top / "repositories" / image.repository / "_manifests"
        link(manifests / "revisions/sha256" / manifest, image.manifest)
        link(manifests / "tags" / TAG / "current", image.manifest)
        link(manifests / "tags" / TAG / "index/sha256" / manifest, image.manifest)
