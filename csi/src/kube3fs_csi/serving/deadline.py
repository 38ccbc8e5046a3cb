"""How long a call may take."""

from typing import Any

import grpc

_MOST_SECONDS = 60.0
_FOR_THE_ANSWER_SECONDS = 0.5


def seconds_left(context: "grpc.aio.ServicerContext[Any, Any]") -> float:
    """Seconds to wait for others, so that the caller still gets our own words when they do not make it."""
    left = context.time_remaining()
    if left is None:
        return _MOST_SECONDS
    return max(0.1, min(_MOST_SECONDS, left - _FOR_THE_ANSWER_SECONDS))
