"""`llmfleet top` as a user runs it: against a router's admin port, and against a cluster."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from crds.crd_objects import monolithic
from fakes.apiserver import Apiserver
from llmfleet.cli import main
from llmfleet.top.main import source_of, watch

from .test_live import FLEET, METRICS


class Admin(BaseHTTPRequestHandler):
    """A router's admin port that says what was recorded, with more requests at each look."""

    looks = 0

    def do_GET(self) -> None:
        texts = {"/fleet": FLEET, "/metrics": METRICS}
        if self.path == "/metrics":
            Admin.looks += 1
            texts["/metrics"] = METRICS.replace(
                'llmfleet_router_requests_total{code="200",model="llama",outcome="complete"} ',
                f'llmfleet_router_requests_total{{code="200",model="llama",outcome="complete"}} {Admin.looks}',
            )
        body = texts.get(self.path, "").encode()
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed between a test's own lines."""


@pytest.fixture
def admin() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Admin)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["top", *arguments])


def test_one_table_of_a_router_by_its_address(admin: str) -> None:
    found = run("--url", admin, "--once", "--interval", "0.2")
    assert found.exit_code == 0, found.output
    lines = found.output.splitlines()
    assert lines[0] == "1 routers answered, 12 client connections"
    assert lines[2].split()[:3] == ["model", "ready", "in"]
    assert lines[3].split()[:2] == ["llama", "2/2"]


def test_one_object_of_it(admin: str) -> None:
    found = json.loads(run("--url", f"http://{admin}", "--once", "--json", "--interval", "0.2").output)
    assert [one["model"] for one in found["models"]] == ["llama", "qwen"]
    assert found["models"][0]["requestsPerSecond"] > 0
    assert found["models"][1]["requestsPerSecond"] == 0
    assert found["routers"][0]["problem"] == ""


def test_nobody_at_the_address_ends_with_one_and_says_so() -> None:
    found = run("--url", "127.0.0.1:9", "--once", "--interval", "0.2")
    assert found.exit_code == 1
    assert "! router http://127.0.0.1:9: " in found.output


def test_another_server_at_the_address_is_no_router(admin: str) -> None:
    found = run("--url", f"{admin}/elsewhere", "--once", "--interval", "0.2")
    assert found.exit_code == 1
    assert "404" in found.output


def test_json_is_of_one_moment_only() -> None:
    found = run("--json", "--url", "x")
    assert found.exit_code == 2
    assert "--json needs --once" in found.output


@pytest.mark.apiserver
def test_a_cluster_whose_routers_are_away_still_shows_its_fleets(server: Apiserver, namespace: str) -> None:
    scaler = monolithic()
    scaler["metadata"]["namespace"] = namespace
    base = f"/apis/serving.ai/v1alpha1/namespaces/{namespace}/llmclusterautoscalers"
    assert server.call("POST", base, scaler).status == 201
    status = {
        "status": {"currentInstances": 2, "desiredInstances": 3, "decision": {"reason": "AtMinimum", "message": "m"}}
    }
    assert (
        server.call("PATCH", f"{base}/llama/status", status, content_type="application/merge-patch+json").status == 200
    )
    found = run("-n", namespace, "--once", "--interval", "0.2", "--kubeconfig", str(server.kubeconfig))
    assert found.exit_code == 0, found.output
    assert f"{namespace}/llama" in found.output
    assert "AtMinimum: m" in found.output


@pytest.mark.apiserver
def test_an_empty_namespace_ends_with_one(server: Apiserver, namespace: str) -> None:
    found = run("-n", namespace, "--once", "--interval", "0.2", "--kubeconfig", str(server.kubeconfig))
    assert found.exit_code == 1
    assert "0 routers answered" in found.output


def test_the_live_table_is_drawn_until_somebody_leaves(admin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("llmfleet.top.main.time.sleep", wait)
    screen = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        watch(source_of((admin,), "", None), 5.0, Console(file=screen, force_terminal=True, width=140, height=30))
    assert waits == [5.0, 5.0, 5.0]
    assert screen.getvalue().count("every 5 s, Ctrl-C leaves") == 3


def test_a_live_table_without_a_terminal_is_refused(admin: str) -> None:
    found = run("--url", admin)
    assert found.exit_code == 2
    assert "pass --once" in found.output
