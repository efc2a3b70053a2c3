"""The load file of docs/recipes/locust/locustfile.py, run by Locust itself against a simulated engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner

from charts.rendering import ROOT
from llmfleet.api.document import Document, Endpoint, Model, render
from llmfleet.cli import main
from sim.engine import Process, start, wait_for

FILE = ROOT / "docs/recipes" / "locust/locustfile.py"
SLOW = ("--max-model-len", "8192", "--sim-load-seconds", "0")
Rows = dict[str, dict[str, int]]
FIGURES = ("requests", "failures", "least")
ROW = re.compile(
    r"^(?P<kind>POST|TTFT|TPOT) +/v1/chat/completions +(?P<requests>\d+) +(?P<failures>\d+)\([\d.]+%\) "
    r"\| +\d+ +(?P<least>\d+) ",
    re.MULTILINE,
)


@pytest.fixture(scope="module")
def locust() -> str:
    """The Python that has Locust."""
    done = subprocess.run([ROOT / "ci/tools/locust/fetch"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with start(tmp_path_factory.mktemp("engine"), *SLOW, "--served-model-name", "tiny", admin=True) as process:
        yield process.until_up()


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key that the router knows."""
    path = tmp_path_factory.mktemp("key") / "key"
    path.write_text(CliRunner().invoke(main, ["keys", "new"]).stdout)
    return path


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory, engine: Process, key: Path) -> Iterator[tuple[str, str]]:
    """The addresses of a router before the engine: for clients, who need that key, and for its metrics."""
    folder = tmp_path_factory.mktemp("router")
    endpoint = Endpoint(instance="tiny-0", address=f"127.0.0.1:{engine.port}", pod_uid="u", slots=64)
    (folder / "backends").write_bytes(render(Document(generation=1, models={"tiny": Model(endpoints=(endpoint,))})))
    hashed = CliRunner().invoke(main, ["keys", "hash"], input=key.read_text()).stdout.strip()
    (folder / "keys").write_text(json.dumps({"tenants": {"team": {"keys": [hashed]}}}))
    command = [sys.executable, "-m", "llmfleet", "router", "--host=127.0.0.1", "--port=0", "--admin-port=0"]
    files = [f"--backends={folder / 'backends'}", f"--keys={folder / 'keys'}"]
    with subprocess.Popen([*command, *files], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        try:
            said = next(one for one in map(json.loads, process.stderr) if one["message"] == "listening")
            yield f"http://127.0.0.1:{said['port']}", f"http://127.0.0.1:{said['adminPort']}"
        finally:
            process.kill()


def run(locust: str, host: str, folder: Path, enough: Callable[[], bool], *arguments: str) -> tuple[int, Rows, str]:
    """Load until there was enough: exit status, the rows of Locust's table by their type, and what it printed."""
    usual = ["--headless", "--users=3", "--spawn-rate=3", "--stop-timeout=60", "--only-summary"]
    command = [locust, "-m", "locust", "-f", str(FILE), *usual, f"--host={host}"]
    short = ["--model=tiny", "--prompt-words=40", "--output-tokens=20"]
    with (folder / "said").open("w+") as said:
        process = subprocess.Popen([*command, *short, *arguments], stdout=said, stderr=subprocess.STDOUT)
        try:
            came = wait_for(lambda: enough() or process.poll() is not None, 240)
            process.terminate()
            status = process.wait(120)
        finally:
            process.kill()
            process.wait()
        said.seek(0)
        text = said.read()
    assert came, text
    return status, {row["kind"]: {name: int(row[name]) for name in FIGURES} for row in ROW.finditer(text)}, text


def answers(engine: Process, count: int) -> Callable[[], bool]:
    """Whether the engine has given so many whole answers since now."""

    def given() -> float:
        return engine.metric("vllm:request_success_total", finished_reason="length")

    begin = given()
    return lambda: given() >= begin + count


def refusals(admin: str, count: int) -> Callable[[], bool]:
    """Whether the router has refused so many requests."""

    def said() -> bool:
        lines = requests.get(f"{admin}/metrics", timeout=60).text.splitlines()
        told = [line for line in lines if line.startswith("llmfleet_router_requests_total") and 'code="401"' in line]
        return sum(float(line.rpartition(" ")[2]) for line in told) >= count

    return said


def test_ttft_and_tpot_are_rows_of_their_own(
    locust: str, router: tuple[str, str], engine: Process, key: Path, tmp_path: Path
) -> None:
    objective = ("--slo-ttft-ms=60000", "--slo-tpot-ms=60000")
    status, rows, text = run(locust, router[0], tmp_path, answers(engine, 9), f"--key-file={key}", *objective)
    assert status == 0, text
    counts = {kind: rows[kind]["requests"] for kind in ("POST", "TTFT", "TPOT")}
    assert counts["POST"] == counts["TTFT"] == counts["TPOT"] >= 6
    assert rows["TTFT"]["least"] >= 8, "a step of the simulated engine takes 8.8 ms or more"
    assert "missed" not in text


def test_a_missed_objective_is_exit_status_one(
    locust: str, router: tuple[str, str], engine: Process, key: Path, tmp_path: Path
) -> None:
    objective = ("--slo-ttft-ms=60000", "--slo-tpot-ms=1")
    status, _, text = run(locust, router[0], tmp_path, answers(engine, 9), f"--key-file={key}", *objective)
    assert status == 1
    assert "missed: TPOT; failures: 0" in text


def test_a_refusal_is_a_failure_with_its_words(locust: str, router: tuple[str, str], tmp_path: Path) -> None:
    status, rows, text = run(locust, router[0], tmp_path, refusals(router[1], 9))
    assert status == 1
    assert rows["POST"]["failures"] == rows["POST"]["requests"] > 0
    assert "TTFT" not in rows
    assert "401" in text


@pytest.mark.parametrize(("kind", "words"), [("error_event", "error event"), ("cut", "broken off")])
def test_a_stream_that_breaks_is_a_failure(kind: str, words: str, locust: str, engine: Process, tmp_path: Path) -> None:
    engine.fault(kind=kind, token=5)
    status, rows, text = run(locust, f"http://127.0.0.1:{engine.port}", tmp_path, answers(engine, 9))
    assert (status, rows["POST"]["failures"]) == (1, 1), text
    assert rows["POST"]["requests"] == rows["TTFT"]["requests"] + 1
    assert words in text
