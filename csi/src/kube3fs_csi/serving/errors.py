"""What a call may answer instead of success.

    CsiError                INTERNAL: a defect of ours or of the machine
    ├── InvalidArgument     INVALID_ARGUMENT: the request can never succeed
    ├── NotFound            NOT_FOUND
    ├── AlreadyExists       ALREADY_EXISTS: there is one, but not as asked
    ├── Busy                ABORTED: another call works on the same thing
    ├── Precondition        FAILED_PRECONDITION: something must be done first
    ├── OutOfRange          OUT_OF_RANGE: a size that cannot be
    ├── Exhausted           RESOURCE_EXHAUSTED: no room
    ├── Unavailable         UNAVAILABLE: the same call may succeed later
    └── DeadlineNear        DEADLINE_EXCEEDED: still at work, call again

The text is a sentence or two that a user reads in an event on the pod or claim: it says what to change.
"""

import grpc


class CsiError(Exception):
    """Base of all errors that a caller is told as they are."""

    code = grpc.StatusCode.INTERNAL


class InvalidArgument(CsiError):
    """The request is wrong in itself."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(CsiError):
    """What the request names does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(CsiError):
    """It exists, and is not what the request asks for."""

    code = grpc.StatusCode.ALREADY_EXISTS


class Busy(CsiError):
    """Another call works on the same volume."""

    code = grpc.StatusCode.ABORTED

    def __init__(self, what: str) -> None:
        super().__init__(f"another call is still working on {what}; retry")


class Precondition(CsiError):
    """The state of the system does not allow the call."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class OutOfRange(CsiError):
    """A size outside of what is possible."""

    code = grpc.StatusCode.OUT_OF_RANGE


class Exhausted(CsiError):
    """There is no room for it."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(CsiError):
    """A component that the call needs does not answer now."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineNear(CsiError):
    """The work goes on; the same call later finds its result."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


BY_CODE: dict[str, type[CsiError]] = {
    kind.code.name: kind
    for kind in (
        CsiError,
        InvalidArgument,
        NotFound,
        AlreadyExists,
        Precondition,
        OutOfRange,
        Exhausted,
        Unavailable,
        DeadlineNear,
    )
}
"""The error for the name of a gRPC code, as the status of a StorageVolume has it."""
