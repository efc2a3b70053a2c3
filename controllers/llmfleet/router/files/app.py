"""The files of a router process: the backends document and the keys it reads, the access log it writes.

In: paths and a router. Out: the router's fleet and keyring, equal to the last good files; lines on a descriptor. A file
that cannot be used changes nothing and is complained of once. It never waits: the log is written beside the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from llmfleet.api.document import DocumentError, parse_document
from llmfleet.router.keys import KeysError, parse_keys
from llmfleet.router.limits import DEFAULT_CLASS
from llmfleet.router.peers.client import Gossip
from llmfleet.router.proxy import Router
from llmfleet.router.usage import Record, line, rfc3339
from llmfleet.settings import UnreadableSettings, parse_yaml

log = logging.getLogger(__name__)

MAX_RECORDS: Final = 100_000  # of the access log that wait while it cannot be written
CLOSE_SECONDS: Final = 5.0  # for the lot that is being written when the router ends


class FileWatch(ABC):
    """Looks at a file and hands over what it holds when it is another one; one `stat` per look."""

    what = ""  # the file is, in log lines

    def __init__(self, path: str, router: Router) -> None:
        self._path, self._router = path, router
        self._seen: tuple[int, int, int] | None = None
        self._complained = ""

    def look(self) -> None:
        """Read the file if it is another one than last time."""
        try:
            stat = os.stat(self._path)
            mark = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if mark == self._seen:
                return
            with open(self._path, "rb") as file:
                data = file.read()
        except OSError as error:
            self._seen = None
            self._complain(f"cannot be read: {error.strerror}", counted=False)
            return
        self._seen = mark
        self._adopt(data)

    @abstractmethod
    def _adopt(self, data: bytes) -> None:
        """Use what the file holds, or complain."""

    def _complain(self, message: str, *, counted: bool) -> None:
        """Say once why the file is not used; what was last good stays."""
        if message != self._complained:
            self._complained = message
            fields = {"path": self._path, "reason": message, "counted": counted}
            log.warning(f"{self.what} not adopted, keeping the last good one", extra={"fields": fields})


class Watch(FileWatch):
    """Keeps the router's fleet equal to the last valid backends file."""

    what = "backends document"

    def __init__(self, path: str, router: Router, wall_clock: Callable[[], float]) -> None:
        super().__init__(path, router)
        self._wall_clock = wall_clock
        self.adopted_at: float | None = None
        self.gossip: Gossip | None = None

    def _adopt(self, data: bytes) -> None:
        router = self._router
        try:
            document = parse_document(data)
        except DocumentError as error:
            router.metrics.document_errors += 1
            self._complain(str(error), counted=True)
            return
        self._complained = ""
        for backend in router.fleet.apply(document):
            while backend.idle:
                backend.idle.pop().transport.abort()
        router.quotas.fraction = 1 / max(1, len(document.peers))
        if self.gossip is not None:
            self.gossip.adopted(document.peers)
        router.adopted()
        router.loaded = True
        router.loaded_at = self._wall_clock()
        self.adopted_at = router.loop.time()
        router.metrics.document_loads += 1
        fields = {"generation": document.generation, "models": len(document.models)}
        log.info("backends document adopted", extra={"fields": fields})


class KeysWatch(FileWatch):
    """Keeps the router's keyring equal to the last valid keys file; without one nobody is let in."""

    what = "keys file"

    def _adopt(self, data: bytes) -> None:
        router = self._router
        settings = router.settings
        try:
            salted = settings.body.cache_salt == "tenant"
            keyring = parse_keys(parse_yaml(data), settings.classes, DEFAULT_CLASS, salted=salted)
        except (KeysError, UnreadableSettings) as error:
            router.metrics.keys_errors += 1
            self._complain(str(error), counted=True)
            return
        self._complained = ""
        router.keyring = keyring
        router.quotas.keep(keyring.tenants)
        router.metrics.keys_loads += 1
        log.info("keys file adopted", extra={"fields": {"tenants": len(keyring.tenants)}})


class AccessLog:
    """Writes what the router recorded, a few times a second and beside the event loop: a slow reader stops nobody."""

    def __init__(self, router: Router, descriptor: int, wall_clock: Callable[[], float]) -> None:
        self._router, self._descriptor, self._wall_clock = router, descriptor, wall_clock
        self._writing: asyncio.Future[None] | None = None

    def flush(self) -> None:
        """Hand over what there is; while the last lot is still being written, records wait, but not without end."""
        router = self._router
        router.wall_offset = self._wall_clock() - router.loop.time()
        if not router.records:
            return
        if self._writing is not None and not self._writing.done():
            surplus = len(router.records) - MAX_RECORDS
            if surplus > 0:
                del router.records[:surplus]
                router.metrics.access_log_dropped += surplus
            return
        records, router.records = router.records, []
        self._writing = router.loop.run_in_executor(None, self._write, records)

    async def close(self) -> None:
        """Write what is left after what is still being written; a reader who takes nothing holds nobody up for long."""
        if self._writing is not None:
            await asyncio.wait({self._writing}, timeout=CLOSE_SECONDS)
        if self._router.records and (self._writing is None or self._writing.done()):
            self._write(self._router.records)
            self._router.records = []

    def _write(self, records: list[Record]) -> None:
        data = memoryview(b"".join(line(record, rfc3339(record.at)) for record in records))
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            self._router.metrics.access_log_dropped += len(records)
            log.warning("access log not written", extra={"fields": {"reason": error.strerror}})
