"""A collector of spans: a real HTTP server in a thread, which keeps what it was sent and answers as it is told.

In: `answers`, one (status, body, fields) per request in order, then 200. Out: requests as they came, and their spans by
name with plain attributes.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Said = tuple[int, bytes, dict[str, str]]


class Collector:
    def __init__(self, *answers: Said) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.held = threading.Event()  # no answer is given before it is set
        self.held.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                outer.held.wait(60)
                status, text, fields = outer.answers.pop(0) if outer.answers else (200, b"{}", {})
                self.send_response(status)
                for name, value in fields.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.held.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, _, body in self.requests]

    @property
    def spans(self) -> list[dict[str, Any]]:
        """Every span that came, in order."""
        return [
            span
            for document in self.documents
            for resource in document["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]

    def named(self, name: str) -> list[dict[str, Any]]:
        return [span for span in self.spans if span["name"] == name]

    def one(self, name: str) -> dict[str, Any]:
        [span] = self.named(name)
        return span


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    """Plain values of a span's attributes; each key once."""
    found: dict[str, Any] = {}
    for entry in span["attributes"]:
        assert set(entry) == {"key", "value"} and entry["key"] not in found
        [(kind, value)] = entry["value"].items()
        assert kind in ("stringValue", "intValue", "doubleValue", "boolValue")
        assert isinstance(value, {"stringValue": str, "intValue": str, "doubleValue": float, "boolValue": bool}[kind])
        found[entry["key"]] = int(value) if kind == "intValue" else value
    return found
