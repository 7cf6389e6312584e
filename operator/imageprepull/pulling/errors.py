"""What ends a pull: one error type that says why, and whether trying again can help.

Below it lie the errors of registry, runtime, manifests and files; `as_pull_error` is the only place that judges them.
"""

from __future__ import annotations

import errno

from imageprepull.oci.digests import InvalidDigest
from imageprepull.oci.manifest import InvalidManifest
from imageprepull.oci.platform import NoMatchingPlatform
from imageprepull.registry.errors import ErrorKind, RegistryError
from imageprepull.runtime.errors import (
    DiskFailed,
    DiskFull,
    InvalidRequest,
    NotContainerd,
    PermissionDenied,
    RuntimeFault,
    Unsupported,
)


class PullError(Exception):
    """Why an image could not be pulled, in one line a user can act on.

    Attributes:
        reason: CamelCase, for a status.
        message: what failed, on which object, what to do.
        permanent: trying again without a change elsewhere cannot help.
        retry_after: seconds the registry asked us to wait, or None.
        resumable: it lay with a registry, a network, credentials or a runtime that was away; what was fetched until
            then is as good as it was.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        permanent: bool = False,
        retry_after: float | None = None,
        resumable: bool = False,
    ) -> None:
        """Make the message one line: it goes to terminals and conditions."""
        self.reason = reason
        self.message = " ".join(message.split())
        self.permanent = permanent
        self.retry_after = retry_after
        self.resumable = resumable
        super().__init__(self.message)


def as_pull_error(error: BaseException, doing: str = "") -> PullError:
    """Judge any error that a pull can meet.

    Raises:
        BaseException: `error` itself, when it is no failure of the pull but a defect of ours or a cancellation.
    """
    if isinstance(error, BaseExceptionGroup):
        return as_pull_error(first_error(error), doing)
    if isinstance(error, PullError):
        return error
    message = f"{doing}: {error}" if doing else str(error)
    if isinstance(error, RegistryError):
        permanent = error.kind in (ErrorKind.PERMANENT, ErrorKind.CREDENTIALS)
        return PullError(
            error.reason,
            message,
            permanent=permanent,
            retry_after=error.retry_after,
            # Credentials that end in the middle of a large image are renewed, and it is the same image.
            resumable=error.retryable or error.kind is ErrorKind.CREDENTIALS,
        )
    if isinstance(error, RuntimeFault):
        final = isinstance(error, _FINAL_FAULTS)
        resumable = error.temporary and not isinstance(error, DiskFull | DiskFailed)
        return PullError(error.reason, message, permanent=final, resumable=resumable)
    if isinstance(error, OSError):
        return PullError(*_os_error(error, message), resumable=isinstance(error, TimeoutError))
    for kind, reason in _INVALID.items():
        if isinstance(error, kind):
            return PullError(getattr(error, "reason", reason), message, permanent=True)
    raise error


_INVALID: dict[type[Exception], str] = {
    InvalidManifest: "MalformedDocument",
    InvalidDigest: "InvalidDigest",
    NoMatchingPlatform: "NoMatchingPlatform",
}
# Other faults may be over at the next attempt, even a refused tar: disks and daemons recover.
_FINAL_FAULTS = (PermissionDenied, NotContainerd, Unsupported, InvalidRequest)


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
DISK_ERROR = "DiskError"
DISK_ERRNOS = _FULL | {errno.EIO, errno.EROFS}
"""What another way to write the same bytes would meet too."""


def _os_error(error: OSError, message: str) -> tuple[str, str]:
    if isinstance(error, TimeoutError):
        return "Timeout", message or "no answer in time"
    if error.errno in _FULL:
        return "DiskFull", f"{message}; free disk space on the node"
    if error.errno in DISK_ERRNOS:
        return DISK_ERROR, f"{message}; look into the kernel's log of the node"
    return "LocalFileError", message


_NAMED = (PullError, RegistryError, RuntimeFault, OSError, *_INVALID)


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of errors that came at once the one to report: a permanent one, else the first that we can name."""
    flat: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending[:0] = list(error.exceptions)
        else:
            flat.append(error)
    for error in flat:
        if not isinstance(error, _NAMED):
            return error  # a defect must not hide behind a registry's failure.
    for error in flat:
        if isinstance(error, PullError) and error.permanent:
            return error
    return flat[0]
