"""A registry that costs next to nothing: files of the cache by sendfile, with byte ranges.

`python -m benchmarks.static_registry --port N`. A registry in the cluster takes no CPU of the node that pulls; this
one shares the machine with the contenders, so what it takes has to be small. GET /stats tells how it was asked.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from aiohttp import web

from benchmarks.images import Store


class StaticRegistry:
    """The read side of the distribution API over a `Store`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._manifests = {image.repository: image for image in store.images().values()}
        self._flying = 0
        self.stats = {"blobRequests": 0, "ranges": 0, "atOnce": 0}

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application()
        app.router.add_get("/v2/", self.version)
        app.router.add_get("/v2/{repository:.+}/manifests/{name}", self.manifest)
        app.router.add_get("/v2/{repository:.+}/blobs/{digest}", self.blob)
        app.router.add_get("/stats", self.tell)
        return app

    async def version(self, _: web.Request) -> web.StreamResponse:
        """It is a registry."""
        return web.json_response({})

    async def tell(self, _: web.Request) -> web.StreamResponse:
        """What was asked since the last time."""
        answer = web.json_response(self.stats)
        self.stats = dict.fromkeys(self.stats, 0)
        return answer

    async def manifest(self, request: web.Request) -> web.StreamResponse:
        """Any tag is the one manifest of the repository."""
        image = self._manifests.get(request.match_info["repository"])
        name = request.match_info["name"]
        if image is None or (name.startswith("sha256:") and name != image.manifest):
            raise web.HTTPNotFound
        return web.Response(
            body=self._store.blob(image.manifest).read_bytes(),
            headers={"Docker-Content-Digest": image.manifest, "Content-Type": image.manifest_type},
        )

    async def blob(self, request: web.Request) -> web.StreamResponse:
        """The file, whole or a range of it."""
        digest = request.match_info["digest"]
        path = self._store.blob(digest)
        if "/" in path.name or not path.exists():
            raise web.HTTPNotFound
        self.stats["blobRequests"] += 1
        self.stats["ranges"] += "Range" in request.headers
        self._flying += 1
        self.stats["atOnce"] = max(self.stats["atOnce"], self._flying)
        response = web.FileResponse(
            path, headers={"Docker-Content-Digest": digest, "Content-Type": "application/octet-stream"}
        )
        try:
            await response.prepare(request)
            await response.write_eof()
        finally:
            self._flying -= 1
        return response


async def serve(store: Store, port: int) -> None:
    """Until cancelled."""
    runner = web.AppRunner(StaticRegistry(store).application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


def main() -> None:
    """Entry of `python -m benchmarks.static_registry`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.static_registry", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, default=None, help="images (default: the cache's)")
    arguments = parser.parse_args()
    asyncio.run(serve(Store(arguments.folder), arguments.port))


if __name__ == "__main__":
    main()
