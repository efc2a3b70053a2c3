"""A real router process shows its page and its live figures on the admin port, and on no other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner

from llmfleet.api.document import Document, Endpoint, Model, render
from llmfleet.cli import main
from llmfleet.top.page import HEADERS, PAGE

HOST = "127.0.0.1"


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Client and admin port of a router whose one engine is away."""
    endpoint = Endpoint(instance="llama-0", address="127.0.0.1:9", pod_uid="u", slots=8)
    document = Document(generation=7, models={"<b>llama</b>": Model(endpoints=(endpoint,))})
    (tmp_path / "backends.json").write_bytes(render(document))
    command = [sys.executable, "-m", "llmfleet", "router", "--host", HOST, "--port=0", "--admin-port=0"]
    process = subprocess.Popen(
        [*command, f"--backends={tmp_path / 'backends.json'}"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        assert process.stderr is not None
        lines = (json.loads(line) for line in process.stderr)
        said = next(line for line in lines if line["message"] == "listening")
        yield said["port"], said["adminPort"]
    finally:
        process.kill()
        process.wait()


def test_the_page_and_its_figures_are_on_the_admin_port_only(ports: tuple[int, int]) -> None:
    client, admin = (f"http://{HOST}:{port}" for port in ports)
    page = requests.get(f"{admin}/", timeout=10)
    assert (page.status_code, page.text) == (200, PAGE)
    assert {name: page.headers[name] for name in HEADERS} == HEADERS
    live = requests.get(f"{admin}/live", timeout=10).json()
    assert live["generation"] == 7
    [model] = live["models"]
    assert (model["name"], model["slots"], model["inFlight"], model["requests"]) == ("<b>llama</b>", 8, 0, 0)
    assert model["engines"][0]["name"] == "llama-0"
    assert requests.get(f"{client}/", timeout=10).status_code == 404
    assert requests.get(f"{client}/live", timeout=10).status_code == 404


def test_top_reads_a_real_router(ports: tuple[int, int]) -> None:
    arguments = ["top", "--url", f"{HOST}:{ports[1]}", "--once", "--json", "--interval", "0.2"]
    found = json.loads(CliRunner().invoke(main, arguments).output)
    assert [one["model"] for one in found["models"]] == ["<b>llama</b>"]
    assert found["routers"][0]["generation"] == 7
    assert found["models"][0]["requestsPerSecond"] == 0.0
