"""The admin port: POST /fault sets one fault, GET /fault shows them. It has no authentication.

In: exchanges of web/app.py. Out: changed faults, a dead process. It listens on loopback unless told
otherwise, and not at all without --sim-admin-port.
"""

import asyncio
import json
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import asdict

from llmfleet_sim.errors import dump
from llmfleet_sim.faults import Faults, apply
from llmfleet_sim.web.app import Connection, Exchange

log = logging.getLogger("llmfleet_sim")


def kill_process() -> None:
    """End this process the way a crash does: at once, with nothing said."""
    os.kill(os.getpid(), signal.SIGKILL)


class Admin:
    """Takes fault commands."""

    def __init__(self, faults: Faults, *, kill_engine: Callable[[str], None] | None) -> None:
        self.faults = faults
        self._kill_engine = kill_engine
        self._connections: set[Connection] = set()

    async def listen(self, host: str, port: int) -> asyncio.Server:
        """Open the port."""
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: Connection(self.handle, 5, self._connections), host, port)

    def handle(self, exchange: Exchange) -> None:
        """Answer one request."""
        if exchange.path != "/fault" or exchange.method not in ("GET", "POST"):
            exchange.respond(404, dump({"error": "only GET and POST /fault"}))
        elif exchange.method == "GET":
            exchange.respond(200, dump(asdict(self.faults)))
        else:
            self._set(exchange)

    def _set(self, exchange: Exchange) -> None:
        try:
            command = json.loads(exchange.body)
            if not isinstance(command, dict):
                raise ValueError("the body must be a JSON object")
            kind = apply(self.faults, command, asyncio.get_running_loop().time())
        except ValueError as error:
            exchange.respond(400, dump({"error": str(error)}))
            return
        log.warning("fault on command: %s", kind)
        exchange.respond(200, dump(asdict(self.faults)))
        if kind == "die":
            self._die(str(command.get("what", "process")))

    def _die(self, what: str) -> None:
        if what == "engine" and self._kill_engine is not None:
            self._kill_engine("fault on command")
        else:
            asyncio.get_running_loop().call_later(0.01, kill_process)
