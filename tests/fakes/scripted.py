"""An apiserver that fails on command: a loopback HTTP server for watch and transport faults.

In: objects, events to emit, and a script of misbehaviours. Out: what a client of the Kubernetes API sees. It stores
nothing of what it is sent and validates nothing; semantics are tested against the real one (`fakes.apiserver`).
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asked."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    at: float

    @property
    def watching(self) -> bool:
        return self.query.get("watch") == "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Answer with an error or any other status."""

    code: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """Answer with these bytes, then close."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Hang:
    """Accept the request and never answer; the connection stays open, as with a half-open peer."""


@dataclass(frozen=True, slots=True)
class Silent:
    """Send a watch's head and then nothing, for ever."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Break the connection with a RST."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A watch that sends these events, and then ends (or resets)."""

    events: tuple[Any, ...] = ()
    reset: bool = False
    cut: bytes = b""


Fault = Status | Raw | Hang | Silent | Reset | Stream
Rule = Callable[[Request], Fault | None]


class ScriptedApiserver:
    """Lists `objects`, streams what `emit` is given, and does first whatever a rule says."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.version = 100
        self.rules: list[Rule] = []
        self._watches: list[socket.socket] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    # What a test does.

    def once(self, fault: Fault, *, watch: bool | None = None) -> None:
        """Misbehave on the next request (of a watch, of anything else, or of either)."""
        self.times(1, fault, watch=watch)

    def times(self, count: int, fault: Fault, *, watch: bool | None = None) -> None:
        left = [count]

        def rule(request: Request) -> Fault | None:
            if left[0] <= 0 or (watch is not None and request.watching is not watch):
                return None
            left[0] -= 1
            return fault

        self.rules.append(rule)

    def always(self, fault: Fault, *, watch: bool | None = None) -> Callable[[], None]:
        """Misbehave until the returned function is called."""

        def rule(request: Request) -> Fault | None:
            return fault if watch is None or request.watching is watch else None

        self.rules.append(rule)
        return lambda: self.rules.remove(rule)

    def put(self, name: str, *, silent: bool = False, namespace: str = "ns", **fields: Any) -> dict[str, Any]:
        """Create or change an object; `silent` keeps it from open watches."""
        with self._lock:
            self.version += 1
            known = (namespace, name) in self.objects
            metadata = {
                "name": name,
                "namespace": namespace,
                "uid": f"uid-{name}",
                "resourceVersion": str(self.version),
            }
            obj = {"metadata": {**metadata, **fields.pop("metadata", {})}, **fields}
            self.objects[namespace, name] = obj
            if not silent:
                self.emit("MODIFIED" if known else "ADDED", obj)
            return obj

    def drop(self, name: str, *, silent: bool = False, namespace: str = "ns") -> None:
        with self._lock:
            self.version += 1
            obj = self.objects.pop((namespace, name))
            obj["metadata"]["resourceVersion"] = str(self.version)
            if not silent:
                self.emit("DELETED", obj)

    def emit(self, kind: str, obj: Any) -> None:
        """Send one event to every open watch."""
        self.send_raw(json.dumps({"type": kind, "object": obj}).encode() + b"\n")

    def send_raw(self, data: bytes) -> None:
        with self._lock:
            for watch in list(self._watches):
                with contextlib.suppress(OSError):
                    watch.sendall(chunk(data))

    def end_watches(self, *, reset: bool = False) -> None:
        """End every open watch, in order or by a RST."""
        with self._lock:
            watches, self._watches = self._watches, []
        for watch in watches:
            if not reset:
                with contextlib.suppress(OSError):
                    watch.sendall(b"0\r\n\r\n")
            close(watch, reset=reset)

    @property
    def open_watches(self) -> int:
        with self._lock:
            return len(self._watches)

    def asked(self, *, watch: bool) -> list[Request]:
        return [request for request in list(self.requests) if request.watching is watch]

    def stop(self) -> None:
        """Refuse connections from now on and break those that are open."""
        self._closed.set()
        # A thread blocked in accept() keeps the port: wake it first.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in list(self._open):
                close(connection, reset=True)

    # What it does.

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            reader = connection.makefile("rb")
            while (request := read_request(reader)) is not None:
                self.requests.append(request)
                if not self._answer(connection, request):
                    return
        with self._lock:
            self._open.discard(connection)
        connection.close()

    def _answer(self, connection: socket.socket, request: Request) -> bool:
        """Returns whether the connection goes on to serve."""
        for rule in list(self.rules):
            fault = rule(request)
            if fault is not None:
                return self._misbehave(connection, fault)
        if request.watching:
            return self._watch(connection, request)
        send(connection, *self._read(request))
        return True

    def _misbehave(self, connection: socket.socket, fault: Fault) -> bool:
        match fault:
            case Status():
                send(
                    connection, fault.code, fault.body if fault.body is not None else status(fault.code), fault.headers
                )
                return True
            case Raw():
                connection.sendall(fault.data)
                close(connection)
            case Reset():
                close(connection, reset=True)
            case Silent():
                connection.sendall(HEAD)
            case Stream():
                connection.sendall(HEAD + b"".join(chunk(json.dumps(event).encode() + b"\n") for event in fault.events))
                if fault.cut:
                    connection.sendall(chunk(fault.cut))
                if not fault.reset:
                    connection.sendall(b"0\r\n\r\n")
                close(connection, reset=fault.reset)
            case Hang():
                pass
        return False

    def _watch(self, connection: socket.socket, request: Request) -> bool:
        since = int(request.query.get("resourceVersion") or 0)
        with self._lock:
            missed = [o for o in self.objects.values() if int(o["metadata"]["resourceVersion"]) > since]
            missed.sort(key=lambda o: int(o["metadata"]["resourceVersion"]))
            connection.sendall(HEAD)
            for obj in missed:
                connection.sendall(chunk(json.dumps({"type": "MODIFIED", "object": obj}).encode() + b"\n"))
            self._watches.append(connection)
        return False

    def _read(self, request: Request) -> tuple[int, Any]:
        with self._lock:
            items = [json.loads(json.dumps(self.objects[key])) for key in sorted(self.objects)]
            limit = int(request.query.get("limit") or 0) or len(items) or 1
            start = int(request.query.get("continue") or 0)
            metadata = {"resourceVersion": str(self.version)}
            if start + limit < len(items):
                metadata["continue"] = str(start + limit)
            return 200, {"kind": "List", "metadata": metadata, "items": items[start : start + limit]}


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


def read_request(reader: Any) -> Request | None:
    """One request of a kept-alive connection; None at its end."""
    line = reader.readline().decode()
    if not line:
        return None
    method, target, _ = line.split(" ", 2)
    headers: dict[str, str] = {}
    while header := reader.readline().decode().strip():
        name, _, value = header.partition(":")
        headers[name.strip().lower()] = value.strip()
    parts = urlsplit(target)
    return Request(
        method=method,
        path=parts.path,
        query=dict(parse_qsl(parts.query)),
        headers=headers,
        body=reader.read(int(headers.get("content-length") or 0)),
        at=time.monotonic(),
    )


def send(connection: socket.socket, code: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {code} X", "Content-Type: application/json", f"Content-Length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + data)


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def status(code: int, message: str = "as scripted", reason: str = "Scripted") -> dict[str, Any]:
    """A Status object as the apiserver sends it."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "code": code,
        "message": message,
        "reason": reason,
    }


def close(connection: socket.socket, *, reset: bool = False) -> None:
    with contextlib.suppress(OSError):
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            connection.shutdown(socket.SHUT_RDWR)
    # makefile() holds the descriptor too: only shutdown or a detached close ends the connection now.
    with contextlib.suppress(OSError):
        if reset:
            import os

            os.close(connection.detach())
        else:
            connection.close()


@contextlib.contextmanager
def scripted_apiserver() -> Iterator[ScriptedApiserver]:
    """One for the length of a test."""
    server = ScriptedApiserver()
    try:
        yield server
    finally:
        server.stop()


def eventually(check: Callable[[], Any], *, seconds: float = 60.0) -> Any:
    """Wait until `check` is true; a test that waits in vain fails here."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {check}")
        time.sleep(0.01)
    return found
