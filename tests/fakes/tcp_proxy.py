"""A TCP proxy on loopback that cuts, stalls or refuses, between a process under test and a real server.

In: the server's port, and `mode` at any time. Out: a port to connect to. Bytes pass unchanged, so TLS works through it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from enum import StrEnum


class Mode(StrEnum):
    PASS = "pass"
    STALL = "stall"
    """Connections are accepted and stay open, and no byte goes through: a partition without a reset."""
    REFUSE = "refuse"
    """Every connection is reset: nobody listens."""


class TcpProxy:
    """Forwards connections while the mode says so."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._mode = Mode.PASS
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, mode: Mode) -> None:
        """Change what happens to open and to new connections, from now on."""
        self._mode = mode
        if mode is Mode.REFUSE:
            self.cut()

    def cut(self) -> None:
        """Reset every open connection."""
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            reset(connection)

    def close(self) -> None:
        self._mode = Mode.REFUSE
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self._mode is Mode.REFUSE:
                reset(client)
                continue
            server = socket.create_connection(("127.0.0.1", self._target))
            with self._lock:
                self._open |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                while self._mode is Mode.STALL:
                    time.sleep(0.01)
                sink.sendall(data)
        for connection in (source, sink):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def reset(connection: socket.socket) -> None:
    """End a connection so that its peer sees an error and not an end; a thread blocked on it wakes."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextlib.contextmanager
def tcp_proxy(target: int) -> Iterator[TcpProxy]:
    """One for the length of a test."""
    proxy = TcpProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
