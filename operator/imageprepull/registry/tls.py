"""TLS contexts by what hosts.toml says of a host, made anew when one of their files has changed.

`transport.py` asks for one per request: CAs and client certificates are rotated while the agent runs.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable
from pathlib import Path

from imageprepull.registry.bounded import Bounded
from imageprepull.registry.errors import RegistryError
from imageprepull.registry.host import RegistryHost

CONTEXTS = 200
"""Sets of TLS settings that are kept; each holds the system's CAs, about a megabyte."""

_Key = tuple[tuple[Path, ...], tuple[tuple[Path, Path | None], ...], bool]


class TlsContexts:
    """The contexts of one process."""

    def __init__(self) -> None:
        self._known: Bounded[_Key, tuple[object, ssl.SSLContext]] = Bounded(CONTEXTS)

    def get(self, host: RegistryHost) -> ssl.SSLContext:
        """The context for a host.

        Raises:
            RegistryError: InvalidHostsFile, naming the file that cannot be used.
        """
        key = (host.ca, host.client, host.skip_verify)
        state = [_state(path) for path in _files(host)]
        known = self._known.touch(key)
        if known is not None and known[0] == state:
            return known[1]
        context = tls_context(host)
        self._known[key] = state, context
        return context


def tls_context(host: RegistryHost) -> ssl.SSLContext:
    """The system's CAs and the host's; any certificate of `ca` is an anchor, as in Go, and needs no key identifiers.

    Raises:
        RegistryError: InvalidHostsFile, naming the file that cannot be used.
    """
    context = ssl.create_default_context()
    # On by default from Python 3.13; private CAs without key identifiers are common and Go takes them.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # HTTP/2 is not spoken here: without this a server that insists on ALPN could choose it.
    context.set_alpn_protocols(["http/1.1"])
    for path in host.ca:
        try:
            context.load_verify_locations(cafile=path)
        except (OSError, ssl.SSLError) as error:
            raise _unusable("CA file", path, error, host) from error
    # OpenSSL keeps one pair per kind of key, the last; Go asks its list from the front.
    for certificate, key in reversed(host.client):
        try:
            context.load_cert_chain(certificate, key, password="")
        except (OSError, ssl.SSLError, ValueError) as error:
            raise _unusable("client certificate", certificate, error, host) from error
    if host.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _unusable(what: str, path: Path, error: Exception, host: RegistryHost) -> RegistryError:
    text = getattr(error, "strerror", None) or error
    return RegistryError(
        f"cannot use the {what} {path}: {text}; check the folder of certs.d",
        reason="InvalidHostsFile",
        host=host.name,
    )


def _files(host: RegistryHost) -> Iterable[Path | str]:
    yield from host.ca
    for certificate, key in host.client:
        yield certificate
        if key is not None:
            yield key
    if not host.skip_verify:
        paths = ssl.get_default_verify_paths()
        yield from (path for path in (paths.cafile, paths.capath) if path)


def _state(path: Path | str) -> tuple[int, ...]:
    try:
        found = os.stat(path)  # noqa: PTH116 - asked for each request: the cheaper call.
    except OSError as error:
        return (error.errno or 0,)
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
