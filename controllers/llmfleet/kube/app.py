"""Small HTTP servers for probes and metrics, on threads of their own.

In: a function per path. Out: 200 or 503 with the text it returned. It never answers anything else and never blocks the
process: a slow client holds one daemon thread.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest

Probe = Callable[[], tuple[bool, str]]
"""Whether all is well, and one line that says why or why not."""
Page = Callable[[], tuple[int, str, bytes]]
EXPOSITION: Final = "text/plain; version=0.0.4; charset=utf-8"
CLIENT_SECONDS: Final = 10.0


class Server(ThreadingHTTPServer):
    """IPv6 and IPv4 on one socket where the kernel has both."""

    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    daemon_threads = True
    allow_reuse_address = True

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def serve(port: int, pages: Mapping[str, Page]) -> Server:
    """Serve until the process ends, or until `shutdown`; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        timeout = CLIENT_SECONDS

        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            code, kind, body = page() if page else (404, "text/plain", b"not found\n")
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Probes come every few seconds: no lines for them."""

    server = Server(("", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True, name=f"http-{port}").start()
    return server


def probe_page(probe: Probe) -> Page:
    """A page for the kubelet."""

    def page() -> tuple[int, str, bytes]:
        well, text = probe()
        return 200 if well else 503, "text/plain; charset=utf-8", f"{text}\n".encode()

    return page


def metrics_page(registry: CollectorRegistry) -> Page:
    """A page for Prometheus."""
    return lambda: (200, EXPOSITION, generate_latest(registry))
