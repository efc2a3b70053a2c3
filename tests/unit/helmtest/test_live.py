"""`llmfleet helm-test` against a real router, simulated engines and a real Redis: green, and red for what is broken.

Each process is one of its own, started as in a pod; each test breaks one part.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from llmfleet.helmtest.main import command
from router.jobs.redis_server import RedisServer
from router.jobs.redis_server import command as redis_command
from sim.engine import Process, free_port, start

KEY = "sk-" + "k" * 40
SLOW_TOKENS = ("--served-model-name", "tiny", "--sim-step-a", "2")


@dataclass(slots=True, kw_only=True)
class Router:
    """A router process and where it listens."""

    process: subprocess.Popen[bytes]
    port: int
    admin_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def page(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}/metrics"


@contextmanager
def router(folder: Path, engines: Sequence[str], settings: Any = None, tenants: Any = None) -> Iterator[Router]:
    """Start a router before engines, as the chart does."""
    backends, rules, keys = folder / "backends.json", folder / "settings.yaml", folder / "keys.yaml"
    words = [sys.executable, "-m", "llmfleet"]
    model = f"tiny={','.join(engines)}"
    backends.write_bytes(subprocess.check_output([*words, "backends", "--model", model, "--slots", "8"]))
    rules.write_text(yaml.safe_dump(settings or {}))
    arguments = ["--settings", str(rules), "--backends", str(backends), "--host", "127.0.0.1"]
    if tenants is not None:
        keys.write_text(yaml.safe_dump({"tenants": tenants}))
        arguments += ["--keys", str(keys)]
    with open(folder / "access.log", "wb") as log:
        process = subprocess.Popen(
            [*words, "router", *arguments, "--port", "0", "--admin-port", "0"], stdout=log, stderr=subprocess.PIPE
        )
        try:
            yield listening(process)
        finally:
            process.kill()
            process.communicate()


def listening(process: subprocess.Popen[bytes]) -> Router:
    """Read the log until the router says where it listens."""
    assert process.stderr
    for line in process.stderr:
        said = json.loads(line)
        if said["message"] == "listening":
            return Router(process=process, port=said["port"], admin_port=said["adminPort"])
    raise AssertionError("the router did not start")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with start(tmp_path_factory.mktemp("engine"), *SLOW_TOKENS) as process:
        process.until_up()
        yield process


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def check(name: str, at: Router, *more: str) -> Result:
    """One check as its hook runs it."""
    where = ["--page", at.page] if name == "metrics" else ["--admin-port", str(free_port())]
    model = [] if name in ("admin-closed", "keys") else ["--model", "tiny"]
    extra = where if name in ("metrics", "admin-closed") else []
    return run(name, "--url", at.url, *model, *extra, *more)


def address(engine: Process) -> str:
    return f"http://127.0.0.1:{engine.port}"


@pytest.mark.parametrize("name", ["models", "chat", "stream", "metrics", "admin-closed"])
def test_a_whole_path_passes(name: str, engine: Process, tmp_path: Path) -> None:
    with router(tmp_path, [address(engine)]) as at:
        result = check(name, at)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", ["models", "chat", "stream", "metrics"])
def test_an_engine_without_a_router_passes(name: str, engine: Process) -> None:
    extra = ["--page", f"{address(engine)}/metrics", "--source=engine"] if name == "metrics" else []
    result = run(name, "--url", address(engine), "--model", "tiny", *extra)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", ["models", "chat", "stream", "metrics", "admin-closed"])
def test_a_router_that_is_gone_is_red(name: str, engine: Process, tmp_path: Path) -> None:
    with router(tmp_path, [address(engine)]) as at:
        pass
    result = check(name, at)
    assert (result.exit_code, "FAIL" in result.output) == (1, True), result.output


@pytest.mark.parametrize("name", ["chat", "stream", "metrics"])
def test_an_engine_that_is_gone_is_red(name: str, tmp_path: Path) -> None:
    # Whether the router knows it before the request is a matter of time: then a stream waits, and breaks with an error.
    settings = {"queue": {"ttlSeconds": 0.5, "wakeTimeoutSeconds": 0.5}}
    with router(tmp_path, [f"http://127.0.0.1:{free_port()}"], settings=settings) as at:
        result = check(name, at)
    assert result.exit_code == 1, result.output
    assert "FAIL  status 50" in result.output or "FAIL  the stream carried an error" in result.output, result.output


def test_a_model_nobody_serves_is_red(engine: Process, tmp_path: Path) -> None:
    with router(tmp_path, [address(engine)]) as at:
        result = run("models", "--url", at.url, "--model", "tiny", "--model", "other")
    assert (result.exit_code, "'other' is not among the models listed: tiny" in result.output) == (1, True)


def test_the_admin_port_behind_the_client_name_is_red(engine: Process, tmp_path: Path) -> None:
    with router(tmp_path, [address(engine)]) as at:
        result = run("admin-closed", "--url", at.url, "--admin-port", str(at.admin_port))
    assert (result.exit_code, "anybody could drain the router" in result.output) == (1, True), result.output


def test_metrics_of_another_pod_than_the_one_that_answers_are_red(engine: Process, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with router(tmp_path / "one", [address(engine)]) as asked, router(tmp_path / "two", [address(engine)]) as other:
        result = run("metrics", "--url", asked.url, "--model", "tiny", "--page", other.page, "--settle", "0.5")
    assert result.exit_code == 1
    assert "llmfleet_router_requests_total stayed at 0 although a request was answered" in result.output


TENANTS = {"helm-test": {"keys": [hashlib.sha256(KEY.encode()).hexdigest()], "models": ["tiny"]}}


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    return str(path)


@pytest.mark.parametrize("name", ["models", "chat", "stream", "metrics"])
def test_a_router_that_asks_for_keys_takes_the_one_of_the_checks(
    name: str, engine: Process, tmp_path: Path, key_file: str
) -> None:
    with router(tmp_path, [address(engine)], tenants=TENANTS) as at:
        result = check(name, at, "--key-file", key_file)
        refused = check(name, at)
    assert result.exit_code == 0, result.output
    assert KEY not in result.output
    assert (refused.exit_code, "status 401" in refused.output) == (1, True), "and without it the check is red"


def test_a_key_that_was_taken_away_is_red(engine: Process, tmp_path: Path, key_file: str) -> None:
    other = {"helm-test": {"keys": [hashlib.sha256(b"sk-another" * 4).hexdigest()]}}
    with router(tmp_path, [address(engine)], tenants=other) as at:
        result = check("chat", at, "--key-file", key_file)
    assert (result.exit_code, "FAIL  status 401" in result.output) == (1, True), result.output


def test_a_router_that_lets_in_who_has_no_key_is_red(engine: Process, tmp_path: Path) -> None:
    with router(tmp_path, [address(engine)], tenants=TENANTS) as at:
        assert check("keys", at).exit_code == 0
    with router(tmp_path, [address(engine)]) as at:
        result = check("keys", at)
    assert (result.exit_code, "this router lets in who has no key" in result.output) == (1, True), result.output


def test_a_job_is_run_to_its_answer_and_is_red_when_its_redis_is_gone(engine: Process, tmp_path: Path) -> None:
    server = RedisServer(redis_command(), tmp_path / "redis")
    with ExitStack() as stack:
        server.start()
        stack.callback(server.stop)
        at = stack.enter_context(router(tmp_path, [address(engine)], settings={"redis": {"url": server.url}}))
        result = check("jobs", at, "--patience", "30")
        assert result.exit_code == 0, result.output
        server.kill()
        gone = check("jobs", at)
    assert (gone.exit_code, "status 503" in gone.output) == (1, True), gone.output
