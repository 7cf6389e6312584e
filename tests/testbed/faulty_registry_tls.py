"""Certificates and a TLS listener for `faulty_registry_quirks`: authorities without key identifiers, odd chains.

Made by the openssl command; elliptic curves, so that a set takes a tenth of a second.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.testbed.faulty_registry_quirks import QuirkyRegistry

_CONFIG = (
    "[req]\ndistinguished_name=dn\nprompt=no\n[dn]\nCN={name}\n[none]\nbasicConstraints=critical,CA:TRUE\n"
)


class Certificates:
    """A folder of keys and certificates. None of them has key identifiers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def authority(self, name: str, signer: str = "") -> Path:
        """A CA, signed by itself or by another."""
        return self._make(name, signer, "basicConstraints=critical,CA:TRUE\n")

    def leaf(self, name: str, signer: str, *, san: str = "IP:127.0.0.1,IP:::1,DNS:localhost") -> Path:
        """A certificate for a server or a client; without `san` it has its common name only."""
        return self._make(name, signer, f"subjectAltName={san}\n" if san else "basicConstraints=CA:FALSE\n")

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def both(self, name: str) -> Path:
        """Certificate and key in one file."""
        path = self.folder / f"{name}.both"
        path.write_bytes((self.folder / f"{name}.crt").read_bytes() + self.key(name).read_bytes())
        return path

    def _make(self, name: str, signer: str, extensions: str) -> Path:
        config, request, out = (self.folder / f"{name}.{end}" for end in ("cnf", "csr", "crt"))
        config.write_text(_CONFIG.format(name=name))
        key = self.key(name)
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
        if not signer:
            _openssl("req", "-x509", "-new", "-days", "30", "-config", config, "-extensions", "none", "-key", key, "-out", out)  # fmt: skip
            return out
        _openssl("req", "-new", "-config", config, "-key", key, "-out", request)
        extra = self.folder / f"{name}.ext"
        extra.write_text(extensions)
        by = ("-CA", self.folder / f"{signer}.crt", "-CAkey", self.key(signer), "-CAcreateserial")
        _openssl("x509", "-req", "-days", "30", "-in", request, *by, "-extfile", extra, "-out", out)
        return out


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@asynccontextmanager
async def tls(
    world: QuirkyRegistry,
    certificate: Path,
    key: Path,
    *,
    chain: tuple[Path, ...] = (),
    address: str = "127.0.0.1",
) -> AsyncIterator[str]:
    """Serve the registry by TLS as well; yields `host:port`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    whole = certificate.with_suffix(".chain")
    whole.write_bytes(b"".join(path.read_bytes() for path in (certificate, *chain)))
    context.load_cert_chain(whole, key)

    async def answer(request: web.Request) -> web.StreamResponse:
        return world.good(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, address, 0, ssl_context=context).start()
    port = runner.addresses[0][1]
    try:
        yield f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    finally:
        await runner.cleanup()


@contextmanager
def mutual_tls(
    world: QuirkyRegistry,
    certificate: Path,
    key: Path,
    *,
    client_ca: Path,
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    rude: bool = False,
) -> Iterator[str]:
    """Serve the manifest to those who show a certificate of `client_ca`; yields `host:port`.

    A blocking server in a thread: asyncio's closes the connection before the alert that says what was wrong is out.
    `rude`: so does this one, which resets it as the request is there already.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(world.body)))
            self.end_headers()
            self.wfile.write(world.body)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base's name
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = newest
    context.load_cert_chain(certificate, key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(client_ca)

    class Server(HTTPServer):
        def get_request(self) -> tuple[socket.socket, Any]:
            raw, address = self.socket.accept()
            wrapped = context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
            try:
                wrapped.do_handshake()
            except ssl.SSLError:
                if not rude:
                    socket.socket.shutdown(wrapped, socket.SHUT_WR)
                    while socket.socket.recv(wrapped, 65536):
                        pass
                wrapped.close()
                raise
            return wrapped, address

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
