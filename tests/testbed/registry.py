"""The registry (Debian's docker-registry) and the proxy that stands between it and the nodes."""

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tests.testbed.commands import wait_until
from tests.testbed.layout import REGISTRY_PORT, Layout
from tests.testbed.processes import Process
from tests.testbed.sandbox import Sandbox

PROGRAM = Path("/usr/bin/docker-registry")
CHECKOUT = Path(__file__).parents[2]


class Registry:
    """Of one cluster: on 127.0.0.1 of the host for pushes, on the bridge through the proxy for nodes."""

    def __init__(self, layout: Layout, sandbox: Sandbox) -> None:
        self.layout = layout
        self.sandbox = sandbox

    @property
    def push_url(self) -> str:
        return f"http://127.0.0.1:{self.layout.registry_port}"

    @property
    def process(self) -> Process:
        return self.sandbox.process("docker-registry")

    @property
    def proxy(self) -> Process:
        return self.sandbox.process("registry-proxy", {"PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1"})

    def start(self) -> None:
        """Start both unless they run."""
        storage = self.layout.folder / "registry"
        storage.mkdir(parents=True, exist_ok=True)
        config = self.layout.folder / "registry.json"
        config.write_text(
            json.dumps(
                {
                    "version": "0.1",
                    "log": {"level": "warn", "accesslog": {"disabled": True}},
                    "storage": {"filesystem": {"rootdirectory": str(storage)}, "delete": {"enabled": True}},
                    "http": {"addr": f"127.0.0.1:{self.layout.registry_port}"},
                }
            )
        )
        self.process.start([PROGRAM, "serve", config], join=self.sandbox.pid())
        flags = [
            f"--listen={self.layout.host_ip}:{REGISTRY_PORT}",
            f"--control=127.0.0.1:{self.layout.proxy_port}",
            f"--upstream=127.0.0.1:{self.layout.registry_port}",
            f"--nodes={self.layout.folder / 'cluster.json'}",
        ]
        self.proxy.start([sys.executable, "-m", "tests.testbed.proxy", *flags], join=self.sandbox.pid())

    def wait(self) -> None:
        """Until both answer."""
        proxied = f"http://{self.layout.registry_name}"
        for process, url in ((self.process, self.push_url), (self.proxy, proxied)):

            def answers(process: Process = process, url: str = url) -> bool:
                process.check_alive()
                try:
                    with urllib.request.urlopen(f"{url}/v2/", timeout=3) as answer:
                        return bool(answer.status == 200)
                except (urllib.error.URLError, OSError):
                    return False

            wait_until(process.name, f"answers at {url}", answers, timeout=30, log=process.log)
