"""Times are judged by the clock of the apiserver, not by that of who looks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llmfleet.doctor.client import ClockTransport, take_snapshot
from llmfleet.doctor.examine import examine
from llmfleet.doctor.snapshot import Snapshot
from llmfleet.kube.client import Api
from llmfleet.kube.transport.client import Anonymous

from .world import NOW, healthy

PLURALS = {
    "customresourcedefinitions": "CustomResourceDefinition",
    "llmclusters": "LLMCluster",
    "llmclusterautoscalers": "LLMClusterAutoscaler",
    "deployments": "Deployment",
    "leases": "Lease",
    "configmaps": "ConfigMap",
}
LAPTOP = NOW + timedelta(minutes=3)


class Handler(BaseHTTPRequestHandler):
    """A healthy install without pods, and the time it has."""

    date = format_datetime(NOW, usegmt=True)

    def do_GET(self) -> None:
        kind = PLURALS.get(self.path.partition("?")[0].rpartition("/")[2], "")
        body = json.dumps({"items": healthy().get(kind, [])}).encode()
        self.send_response_only(200)
        if self.date:
            self.send_header("Date", self.date)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Silent(Handler):
    """One that does not say the time."""

    date = ""


def look(handler: type[Handler]) -> Iterator[Snapshot]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        transport = ClockTransport(Anonymous(f"http://127.0.0.1:{server.server_port}"), user_agent="test")
        yield take_snapshot(Api(transport, manager="test"), transport, "", LAPTOP)
    finally:
        server.shutdown()
        server.server_close()


def test_a_laptop_that_is_ahead_takes_no_lease_for_abandoned() -> None:
    [world] = look(Handler)
    assert world.now == NOW
    assert [one for one in examine(world) if "renewed" in one.problem] == []


@pytest.mark.parametrize("handler", [Silent, type("Odd", (Handler,), {"date": "noon"})])
def test_an_apiserver_that_does_not_say_the_time_is_judged_by_the_laptop(handler: type[Handler]) -> None:
    [world] = look(handler)
    assert world.now == LAPTOP
    assert [one.problem for one in examine(world) if "renewed" in one.problem] == [
        "was not renewed for 183 s: no autoscaler leads",
        "was not renewed for 183 s: no operator leads",
    ]
