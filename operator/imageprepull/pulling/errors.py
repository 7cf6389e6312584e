"""What ends a pull: one error type that says why, and whether trying again can help.

Below it lie the errors of registry, runtime, manifests and files; `as_pull_error` is the only place that judges them.
"""

from __future__ import annotations

import errno

from imageprepull.oci.digests import InvalidDigest
from imageprepull.oci.manifest import InvalidManifest
from imageprepull.oci.platform import NoMatchingPlatform
from imageprepull.registry.errors import ErrorKind, RegistryError
from imageprepull.runtime.errors import PermissionDenied, RuntimeFault, Unavailable

LAYER_LOST = "RuntimeLostLayers"


class PullError(Exception):
    """Why an image could not be pulled, in one line a user can act on.

    Attributes:
        reason: CamelCase, for a status.
        message: what failed, on which object, what to do.
        permanent: trying again without a change elsewhere cannot help.
        retry_after: seconds the registry asked us to wait, or None.
    """

    def __init__(
        self, reason: str, message: str, *, permanent: bool = False, retry_after: float | None = None
    ) -> None:
        """Make the message one line: it goes to terminals and conditions."""
        self.reason = reason
        self.message = " ".join(message.split())
        self.permanent = permanent
        self.retry_after = retry_after
        super().__init__(self.message)


def as_pull_error(error: BaseException, doing: str = "") -> PullError:
    """Judge any error that a pull can meet.

    Raises:
        BaseException: `error` itself, when it is no failure of the pull but a defect of ours or a cancellation.
    """
    prefix = f"{doing}: " if doing else ""
    match error:
        case PullError():
            return error
        case BaseExceptionGroup():
            return as_pull_error(first_error(error), doing)
        case RegistryError():
            permanent = error.kind in (ErrorKind.PERMANENT, ErrorKind.CREDENTIALS)
            return PullError(
                error.reason, f"{prefix}{error}", permanent=permanent, retry_after=error.retry_after
            )
        case Unavailable():
            return PullError("RuntimeUnavailable", f"{prefix}{error}")
        case PermissionDenied():
            return PullError(error.reason, f"{prefix}{error}", permanent=True)
        case RuntimeFault():
            return PullError(error.reason, f"{prefix}{error}")
        case InvalidManifest():
            return PullError(error.reason, f"{prefix}{error}", permanent=True)
        case InvalidDigest():
            return PullError("InvalidDigest", f"{prefix}{error}", permanent=True)
        case NoMatchingPlatform():
            return PullError("NoMatchingPlatform", f"{prefix}{error}", permanent=True)
        case TimeoutError():
            return PullError("Timeout", f"{prefix}{error or 'no answer in time'}")
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return PullError("NoSpace", f"{prefix}{error}; free disk space on the node")
        case OSError():
            return PullError("LocalFileError", f"{prefix}{error}")
        case _:
            raise error


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
        if not isinstance(error, (PullError, RegistryError, RuntimeFault, InvalidManifest, OSError)):
            return error  # a defect must not hide behind a registry's failure.
    for error in flat:
        if isinstance(error, PullError) and error.permanent:
            return error
    return flat[0]
