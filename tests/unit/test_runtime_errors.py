"""Which fault a status and its text mean; the texts are those that containerd 1.6 and 2.4 send."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageprepull.runtime import errors
from imageprepull.runtime.errors import RuntimeFault, classify, from_rpc

CODE = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "detail", "fault"),
    [
        (CODE.UNAVAILABLE, "ref layer-sha256:ab locked for 1.2s (since now): unavailable", errors.Locked),
        (CODE.UNAVAILABLE, "ref k8s.io/1/layer-sha256:ab locked: unavailable", errors.Locked),
        (CODE.UNAVAILABLE, "failed to connect to all addresses; last error: …", errors.Unavailable),
        (CODE.UNAVAILABLE, "Socket closed", errors.Unavailable),
        (CODE.CANCELLED, "context canceled", errors.Unavailable),
        (CODE.NOT_FOUND, "lease does not exist: not found", errors.LeaseGone),
        (CODE.NOT_FOUND, 'lease "node-a": not found', errors.LeaseGone),
        (CODE.NOT_FOUND, "content sha256:ab: not found", errors.NotFound),
        (CODE.NOT_FOUND, "snapshot release does not exist: not found", errors.NotFound),
        (CODE.UNKNOWN, "write /x/data: no space left on device", errors.DiskFull),
        (CODE.UNKNOWN, "mkdir /x: disk quota exceeded", errors.DiskFull),
        (CODE.FAILED_PRECONDITION, "unexpected commit digest sha256:ab", errors.PreconditionFailed),
        (CODE.UNIMPLEMENTED, "unknown service runtime.v1.ImageService", errors.Unsupported),
        (CODE.DEADLINE_EXCEEDED, "Deadline Exceeded", errors.TimedOut),
        (CODE.ALREADY_EXISTS, "target snapshot: already exists", errors.AlreadyExists),
        (CODE.OUT_OF_RANGE, "offset", errors.OutOfRange),
        (CODE.INVALID_ARGUMENT, "namespace is required", errors.InvalidRequest),
        (CODE.PERMISSION_DENIED, "no", errors.PermissionDenied),
        (
            CODE.UNKNOWN,
            "failed to stat parent: stat /x/98/fs: no such file or directory",
            errors.ParentBroken,
        ),
        (CODE.UNKNOWN, "rename a b: no such file or directory", RuntimeFault),
        (CODE.UNKNOWN, "failed to stat parent: stat /s/7/fs: not a directory", errors.ParentBroken),
        (CODE.UNKNOWN, "failed to stat parent: stat /s/7/fs: input/output error", errors.DiskFailed),
        (CODE.UNKNOWN, "failed to stat parent: stat /s/7/fs: permission denied", RuntimeFault),
    ],
)
def test_status_and_text_decide(code: grpc.StatusCode, detail: str, fault: type[RuntimeFault]) -> None:
    assert classify(code, detail) is fault


@given(st.sampled_from(list(CODE)), st.text(max_size=200))
def test_any_answer_is_some_fault(code: grpc.StatusCode, detail: str) -> None:
    assert issubclass(classify(code, detail), RuntimeFault)


def test_lost_lease_is_no_missing_object() -> None:
    """Who catches NotFound means the object of the call."""
    assert not issubclass(errors.LeaseGone, errors.NotFound)


class Failure:
    """As grpc has it."""

    def __init__(self, code: grpc.StatusCode, details: str | None) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._details


def test_message_names_the_operation_and_what_was_said() -> None:
    fault = from_rpc("look up sha256:ab", Failure(CODE.NOT_FOUND, "content sha256:ab: not found"))
    assert str(fault) == "look up sha256:ab: content sha256:ab: not found"
    assert (fault.operation, fault.reason) == ("look up sha256:ab", "NotFound")


def test_message_of_an_unknown_status_names_it() -> None:
    assert (
        str(from_rpc("list leases", Failure(CODE.INTERNAL, None)))
        == "list leases: INTERNAL: no details given"
    )


def test_reasons_are_distinct_camel_case_words() -> None:
    faults: list[type[RuntimeFault]] = [RuntimeFault, *RuntimeFault.__subclasses__()]
    reasons = [fault.reason for fault in faults]
    assert len(set(reasons)) == len(reasons)
    assert all(reason.isalpha() and reason[0].isupper() for reason in reasons)
