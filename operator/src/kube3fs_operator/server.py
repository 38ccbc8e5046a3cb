"""/healthz for the kubelet and /metrics for Prometheus."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from kube3fs_operator import metrics

STUCK_AFTER = 600.0
"""A key that has waited this long in the line means that no worker moves any more."""


@asynccontextmanager
async def serve(address: str, port: int, queue_age: Callable[[], float]) -> AsyncIterator[int]:
    """Serve until the block ends. Yields the port, which is chosen by the system when 0 was asked."""
    metrics.QUEUE_AGE.set_function(queue_age)

    async def healthz(_: web.Request) -> web.Response:
        age = queue_age()
        if age > STUCK_AFTER:
            return web.Response(status=503, text=f"the work queue has not moved for {age:.0f} s\n")
        return web.Response(text="ok\n")

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(metrics.REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/metrics", show_metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, address, port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
