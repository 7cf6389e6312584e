"""A failed exchange as a RegistryError: what aiohttp, OpenSSL and the socket say, in the words of a status."""

from __future__ import annotations

import ssl

import aiohttp

from imageprepull.registry.errors import ErrorKind, RegistryError

PROTOCOL_ERROR = "ProtocolError"
"""An answer that our HTTP client refuses as invalid; others may take it."""
_NOT_TLS = ("WRONG_VERSION", "WRONG VERSION", "RECORD LAYER", "HTTP_REQUEST")
# What a server's alert says when it wants a client certificate, and when it does not take the one it got.
_NO_CLIENT_CERTIFICATE = ("CERTIFICATE_REQUIRED", "CERTIFICATE REQUIRED")
_CLIENT_CERTIFICATE = (
    "ALERT_BAD_CERTIFICATE",
    "ALERT_UNKNOWN_CA",
    "ALERT_CERTIFICATE_",
    "ALERT_HANDSHAKE_FAILURE",
    "ALERT_ACCESS_DENIED",
)


def fault(error: BaseException, host: str, request: str, *, before_answer: bool = False) -> RegistryError:
    """What to tell of an error.

    Args:
        error: what aiohttp raised.
        host: whom it was about.
        request: like `GET /v2/…`.
        before_answer: not even the head of an answer had come. Only then it says something about the host
            and not about one body (`RegistryError.unanswered`).
    """
    reason, kind, message = _describe(error)
    found = RegistryError(message, reason=reason, kind=kind, host=host, request=request)
    found.unanswered = before_answer and kind is ErrorKind.TEMPORARY
    return found


def _describe(error: BaseException) -> tuple[str, ErrorKind, str]:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return _proxy_answer(error)
    temporary, permanent = ErrorKind.TEMPORARY, ErrorKind.PERMANENT
    text = str(getattr(error, "strerror", None) or error or type(error).__name__)
    if tls := _tls(error, text):
        return tls
    table: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str, ErrorKind, str], ...] = (
        (aiohttp.ConnectionTimeoutError, "RegistryUnreachable", temporary, "no connection in time"),
        (TimeoutError, "Stalled", temporary, "no byte came in time"),
        (
            aiohttp.ClientProxyConnectionError,
            "ProxyUnreachable",
            temporary,
            f"the proxy cannot be reached: {text}",
        ),
        (
            aiohttp.ClientConnectorDNSError,
            "RegistryUnreachable",
            temporary,
            "its name cannot be resolved",
        ),
        (aiohttp.ClientConnectorError, "RegistryUnreachable", temporary, text),
        (
            (aiohttp.InvalidURL, ValueError),
            "InvalidAddress",
            permanent,
            f"not a usable address: {text}",
        ),
        (aiohttp.ClientResponseError, PROTOCOL_ERROR, permanent, f"not valid HTTP: {text}"),
    )
    for kinds, reason, kind, message in table:
        if isinstance(error, kinds):
            return reason, kind, message
    return "ConnectionLost", temporary, f"connection lost: {text}"


def _tls(error: BaseException, text: str) -> tuple[str, ErrorKind, str] | None:
    """What is wrong between two sides that want or do not want TLS, or the certificates of it."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        message = f"its certificate is not trusted: {text}; add its CA to hosts.toml"
        return "CertificateNotTrusted", ErrorKind.PERMANENT, message
    cause = f"{error} {error.__cause__ or ''}".upper()
    if not isinstance(error, aiohttp.ClientOSError | ssl.SSLError) or "SSL" not in cause:
        return None
    if any(word in cause for word in _NO_CLIENT_CERTIFICATE):
        message = (
            "it wants a client certificate and got none; name one by 'client' in hosts.toml "
            "(at its root for the server itself)"
        )
        return "ClientCertificateWanted", ErrorKind.CREDENTIALS, message
    if any(word in cause for word in _CLIENT_CERTIFICATE):
        message = f"it broke off TLS ({text}); it may want a client certificate: check 'client' in hosts.toml"
        return "ClientCertificateWanted", ErrorKind.CREDENTIALS, message
    if any(word in cause for word in _NOT_TLS):
        message = "it does not speak TLS; for plain http write the scheme http into hosts.toml"
        return "NotTLS", ErrorKind.PERMANENT, message
    return None


def _proxy_answer(error: aiohttp.ClientHttpProxyError) -> tuple[str, ErrorKind, str]:
    message = f"the proxy answered {error.status} {error.message}"
    if error.status == 407:  # noqa: PLR2004 - Proxy Authentication Required
        return (
            "ProxyRefused",
            ErrorKind.CREDENTIALS,
            f"{message}; give user and password in the proxy's address",
        )
    if error.status >= 500:  # noqa: PLR2004
        return "ProxyUnreachable", ErrorKind.TEMPORARY, message
    return "ProxyRefused", ErrorKind.PERMANENT, f"{message}; allow the host there or add it to NO_PROXY"
