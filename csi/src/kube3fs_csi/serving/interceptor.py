"""The one place where calls are timed and logged, and where exceptions become gRPC codes."""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message
from prometheus_client import Histogram

from kube3fs_csi.serving import machine
from kube3fs_csi.serving.errors import CsiError

log = logging.getLogger(__name__)

CALLS = Histogram(
    "kube3fs_csi_call_seconds",
    "Duration of gRPC calls.",
    ["method", "code"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30),
)

_MOST_CHARACTERS = 1500
"""Of a sentence. gRPC sends it in a header, whose 8 KiB hold so many characters of any kind, each escaped."""

_POD = ("csi.storage.k8s.io/pod.namespace", "csi.storage.k8s.io/pod.name")
_QUIET = frozenset(
    {"Probe", "NodeGetCapabilities", "NodeGetVolumeStats", "NodeGetVolumeHealth", "GetPluginInfo"}
)
"""Methods that the kubelet calls all the time: logged only when they fail."""

Call = Callable[[Any, Any], Awaitable[Any]]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every unary call: log, metric, error to code. Streams pass as they are."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        method = handler_call_details.method.rpartition("/")[2]
        return grpc.unary_unary_rpc_method_handler(
            self._wrap(method, handler.unary_unary),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _wrap(self, method: str, call: Call) -> Call:
        async def wrapped(request: Message, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            about = {"request": next(self._ids)} | facts_of(request)
            start = time.monotonic()
            code, sentence = grpc.StatusCode.OK, ""
            try:
                return await call(request, context)
            except CsiError as error:
                code, sentence = error.code, str(error)
                if code is grpc.StatusCode.INTERNAL:  # a program's or a daemon's own words
                    sentence = f"{_what(method, about)} failed: {sentence}"
            except NotImplementedError:
                code, sentence = grpc.StatusCode.UNIMPLEMENTED, f"{method} is not offered by this driver"
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED
                raise
            except OSError as error:
                refused = machine.refusal(_what(method, about), error)
                code, sentence = refused.code, str(refused)
                log.log(
                    logging.ERROR if code is grpc.StatusCode.INTERNAL else logging.WARNING,
                    "%s failed",
                    method,
                    exc_info=True,
                    extra={"facts": about},
                )
            except Exception:
                log.exception("%s failed", method, extra={"facts": about})
                code = grpc.StatusCode.INTERNAL
                sentence = (
                    f"{_what(method, about)} met a defect of the driver; see request {about['request']} in "
                    "its log, and report it"
                )
            finally:
                seconds = time.monotonic() - start
                CALLS.labels(method, code.name).observe(seconds)
                failed = code is not grpc.StatusCode.OK
                level = logging.WARNING if failed else logging.DEBUG if method in _QUIET else logging.INFO
                told = f"{code.name}: {sentence}" if failed else code.name
                facts = about | {"ms": round(seconds * 1000, 1)}
                log.log(level, "%s: %s", method, told, extra={"facts": facts})
            return await context.abort(code, sentence[:_MOST_CHARACTERS])

        return wrapped


def _what(method: str, about: dict[str, Any]) -> str:
    """The call by what it is about: a user looks for the name of the volume."""
    for field, word in (("volume_id", "volume"), ("snapshot_id", "snapshot"), ("name", "")):
        if field in about:
            return f"{method} of {word} {about[field]}".replace("  ", " ")
    return method


def facts_of(request: Message) -> dict[str, Any]:
    """What a log line may say of `request`: ids, paths and the pod; never secrets, and no other field."""
    found = {}
    for field in ("volume_id", "snapshot_id", "source_volume_id", "name", "target_path"):
        value = getattr(request, field, "")
        if isinstance(value, str) and value:
            found[field] = value[:256]
    context = getattr(request, "volume_context", None) or {}
    pod = "/".join(context[key] for key in _POD if key in context)
    return found | ({"pod": pod[:256]} if pod else {})
