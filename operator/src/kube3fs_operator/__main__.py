"""`python -m kube3fs_operator`: wait for the lease, then reconcile until told to stop."""

import asyncio
import logging
import signal
import sys

from pydantic import ValidationError

from kube3fs_operator.faults import Faults
from kube3fs_operator.leader import LeaseLostError, lead
from kube3fs_operator.queue import WorkQueue
from kube3fs_operator.reconcile import Key
from kube3fs_operator.server import serve
from kube3fs_operator.session import api_session
from kube3fs_operator.settings import Settings, from_environment
from kube3fs_operator.workers import operate

log = logging.getLogger("kube3fs_operator")


async def run(settings: Settings) -> None:
    """Everything, until SIGTERM or SIGINT, or until the lease is lost."""
    queue: WorkQueue[Key] = WorkQueue()
    faults = Faults(settings.exit_at)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hook_signals() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)

    async with api_session() as api_client, serve(settings.address, settings.port, queue.oldest_age):
        hook_signals()
        leading = asyncio.create_task(
            lead(
                api_client,
                settings.namespace,
                settings.identity,
                lambda: operate(api_client, settings, faults, queue),
            )
        )
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({leading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if leading.done():
            leading.result()
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)


def main() -> int:
    """Returns the exit status."""
    try:
        settings = from_environment()
        Faults(settings.exit_at)
    except (ValidationError, ValueError) as error:
        print(f"kube3fs_operator: {error}", file=sys.stderr)  # noqa: T201 - before logging is set up
        return 2
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("kopf").setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))
    try:
        asyncio.run(run(settings))
    except LeaseLostError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
