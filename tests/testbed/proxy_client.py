"""Orders to a running proxy, and its accounts, for tests and the command line."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from tests.testbed.errors import ClusterError


@dataclass(frozen=True, slots=True)
class ProxyClient:
    """The control interface at `url`. A node is its name; "" means all together, "*" each by itself."""

    url: str

    def state(self) -> dict[str, Any]:
        """Paces, holds, requests and blobs, as the proxy has them now."""
        return self._call("GET", "/state")

    def pace(self, node: str = "", *, rate: float | None = None, delay: float | None = None) -> None:
        """Bytes per second (0: no limit) and seconds per request; what is None stays."""
        self._call("POST", "/pace", {"node": node, "rate": rate, "delay": delay})

    def set_rate(self, rate: float) -> None:
        """Bytes per second for each node by itself; 0: no limit."""
        self.pace("*", rate=rate)

    def hold(self, digest: str, *, after: int = 0, node: str = "") -> None:
        """Withhold the bytes of a blob from offset `after` on, until `release`."""
        self._call("POST", "/hold", {"digest": digest, "after": after, "node": node})

    def release(self, digest: str = "", *, node: str = "") -> int:
        """Let go what is held of a blob (of all, by default); how many holds that were."""
        return int(self._call("POST", "/release", {"digest": digest, "node": node})["released"])

    def forget(self) -> None:
        """Start counting anew."""
        self._call("POST", "/forget")

    def reset(self) -> None:
        """No limits, no holds, nothing counted."""
        for node in self.state()["paces"]:
            self.pace(node, rate=0, delay=0)
        self.release()
        self.forget()

    def waiting(self, digest: str) -> int:
        """How many responses stand at a held byte of this blob."""
        return sum(hold["waiting"] for hold in self.state()["holds"] if hold["digest"] == digest)

    def fetched_twice(self) -> dict[tuple[str, str], int]:
        """Bytes that a node got more than once: (node, digest) → bytes. Empty is what a good puller leaves."""
        return {
            (node, digest): one["bytes"] - one["distinct"]
            for node, blobs in self.state()["blobs"].items()
            for digest, one in blobs.items()
            if one["bytes"] > one["distinct"]
        }

    def bytes_of(self, node: str, digest: str) -> int:
        """Bytes of a blob that a node was sent."""
        return int(self.state()["blobs"].get(node, {}).get(digest, {}).get("bytes", 0))

    def requests(self, node: str = "", path: str = "") -> list[dict[str, Any]]:
        """Requests in the order they ended: of one node or all, whose path contains `path`."""
        return [
            request
            for request in self.state()["requests"]
            if node in ("", request["node"]) and path in request["path"]
        ]

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data or (b"{}" if method == "POST" else None), method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                result: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise ClusterError("registry-proxy", f"{path}: {error.read().decode()}") from None
        except OSError as error:
            raise ClusterError(
                "registry-proxy", f"{self.url} does not answer: {error}; `up` starts it"
            ) from None
        return result
