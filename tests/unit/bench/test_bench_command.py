"""`llmfleet bench` as a user runs it: through a real router to a simulated engine, both processes on loopback."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from llmfleet.cli import main
from sim.engine import Process

from .conftest import HOST, router

SMALL = ("--prompt-tokens", "64", "--output-tokens", "8", "--seed", "1")
LEVELS = ("--users", "1,4", "--requests", "8", *SMALL)


def bench(url: str, *arguments: str, model: str = "tiny") -> Result:
    return CliRunner().invoke(main, ["bench", "--url", url, "--model", model, *arguments])


def object_of(result: Result) -> Any:
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return json.loads(result.stdout)


def shape(found: Any) -> Any:
    """Names and types of an object, without its figures."""
    if isinstance(found, dict):
        return {key: shape(value) for key, value in found.items()}
    if isinstance(found, list):
        return [shape(found[0])] if found else []
    return type(found).__name__


SPREAD = {"mean": "float", "p50": "float", "p95": "float", "p99": "float", "max": "float"}
SHAPE = {
    "asked": {
        "url": "str",
        "model": "str",
        "users": ["int"],
        "seconds": "NoneType",
        "requests": "int",
        "warmup": "int",
        "promptTokens": "int",
        "outputTokens": "int",
        "ignoreEos": "bool",
        "seed": "int",
    },
    "objective": {"ttft": "float", "tpot": "float", "percentile": "float", "users": "NoneType"},
    "levels": [
        {
            "users": "int",
            "seconds": "float",
            "requests": "int",
            "warmups": "int",
            "cut": "int",
            "errors": "int",
            "errorsByKind": [],
            "requestsPerSecond": "float",
            "outputTokensPerSecond": "float",
            "promptTokens": "float",
            "outputTokens": "float",
            "ttft": SPREAD,
            "tpot": SPREAD,
            "e2e": SPREAD,
            "withinObjective": "float",
            "clientCpu": "float",
            "judged": "bool",
            "misses": [],
        }
    ],
    "interrupted": "bool",
    "passed": "bool",
}


def test_the_object_has_its_names_and_what_was_asked_for_was_sent(endpoint: str, engine: Process) -> None:
    before = engine.metric("vllm:request_success_total", finished_reason="length")
    result = bench(endpoint, *LEVELS, "--slo-ttft", "60s", "--slo-tpot", "60s", "--json")
    found = object_of(result)
    assert result.exit_code == 0
    assert shape(found) == SHAPE
    assert [(one["users"], one["requests"], one["errors"]) for one in found["levels"]] == [(1, 8, 0), (4, 8, 0)]
    assert all(one["outputTokens"] == 8 and 55 <= one["promptTokens"] <= 73 for one in found["levels"])
    counted = sum(one["requests"] + one["warmups"] for one in found["levels"]) + 2  # two count the prompt's tokens
    assert engine.metric("vllm:request_success_total", finished_reason="length") - before == counted
    assert found["passed"] is True


@pytest.mark.parametrize("columns", ["40", "300"])
def test_the_table_names_every_level_and_its_verdict(
    columns: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    result = bench(endpoint, *LEVELS)
    assert result.exit_code == 0, result.output
    assert f"tiny at {endpoint}: 64 tokens in, 8 out, 8 requests a level, seed 1\n" in result.stdout
    rows = re.findall(r"^ +(\d+) +(\d+) +(\d+) .* pass *$", result.stdout, re.MULTILINE)
    assert rows == [("1", "8", "0"), ("4", "8", "0")]
    assert result.stderr == "bench: 1 user\nbench: 4 users\n"


def test_a_missed_objective_is_exit_status_one_and_says_which(endpoint: str) -> None:
    result = bench(endpoint, *LEVELS, "--slo-ttft", "1us", "--json")
    assert result.exit_code == 1
    found = object_of(result)
    assert found["passed"] is False
    assert all(re.fullmatch(r"TTFT p99 .* > 0\.001 ms", one["misses"][0]) for one in found["levels"])
    assert [one["withinObjective"] for one in found["levels"]] == [0.0, 0.0]


def test_only_the_level_that_is_to_be_judged_is(engine: Process) -> None:
    url = f"http://{HOST}:{engine.port}"  # without the router, which would ask again
    with_error = (*LEVELS, "--warmup", "0", "--json")
    engine.fault(kind="error_event", token=4)  # of the next answer that long: not the two of one token before
    assert bench(url, *with_error, "--slo-users", "4").exit_code == 0
    engine.fault(kind="error_event", token=4)
    result = bench(url, *with_error, "--slo-users", "1")
    assert result.exit_code == 1
    found = object_of(result)
    assert [one["judged"] for one in found["levels"]] == [True, False]
    assert found["levels"][0]["misses"] == ["1 errors"]


def test_an_error_event_of_an_engine_is_an_error_with_its_words(engine: Process) -> None:
    engine.fault(kind="error_event", token=4)
    result = bench(f"http://{HOST}:{engine.port}", *LEVELS)
    assert result.exit_code == 1
    assert re.search(r"^1 user: 1 x error event InternalServerError: .+", result.stdout, re.MULTILINE), result.stdout
    assert "1 errors" in result.stdout


def test_a_connection_that_an_engine_cuts_is_broken_off(engine: Process) -> None:
    engine.fault(kind="cut", token=4)
    found = object_of(bench(f"http://{HOST}:{engine.port}", *LEVELS, "--json"))
    kinds = [(fault["kind"], fault["count"]) for fault in found["levels"][0]["errorsByKind"]]
    assert kinds == [("broken off", 1)]
    assert found["levels"][1]["errors"] == 0


def test_refusals_of_a_router_are_told_by_status_and_code(tmp_path: Path, engine: Process) -> None:
    flags = keyed(tmp_path, rpm=6)  # two go to the count of the prompt's tokens
    with router(tmp_path, engine, *flags) as url:
        key = str(tmp_path / "key")
        result = bench(url, "--users", "4", "--requests", "8", "--warmup", "0", *SMALL, "--json", "--api-key-file", key)
    assert result.exit_code == 1
    [level] = object_of(result)["levels"]
    assert level["requests"] + level["errors"] == 8
    assert level["errors"] >= 1  # the quota grows again while it is asked
    assert [(fault["kind"], fault["code"]) for fault in level["errorsByKind"]] == [
        ("refused", "429 rate_limit_exceeded")
    ]


def keyed(folder: Path, **bounds: int) -> list[str]:
    """Flags of a router that wants the key in `folder`/key."""
    key = CliRunner().invoke(main, ["keys", "new"]).stdout.strip()
    hashed = CliRunner().invoke(main, ["keys", "hash"], input=key + "\n").stdout.strip()
    (folder / "keys.yaml").write_text(json.dumps({"tenants": {"team": {"keys": [hashed], **bounds}}}))
    (folder / "key").write_text(key + "\n")
    return [f"--keys={folder / 'keys.yaml'}"]


def test_the_picture_is_written_in_both_forms(endpoint: str, tmp_path: Path) -> None:
    for name in ("found.svg", "found.html"):
        result = bench(endpoint, *LEVELS, "--plot", str(tmp_path / name))
        assert result.exit_code == 0, result.output
    root = ElementTree.fromstring((tmp_path / "found.svg").read_text())
    assert sum(one.tag.endswith("circle") for one in root.iter()) == 2 * 3 * 2 + 2
    assert (tmp_path / "found.html").read_text().startswith("<!doctype html>")


def interrupted(command: list[str], at: Callable[[], bool]) -> tuple[int, bytes, bytes]:
    """Start it, interrupt it then, and say how it ended; it does not outlive the test."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 120
        while not at():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
        return process.returncode, stdout, stderr
    finally:
        process.kill()
        process.communicate()


def test_an_interrupt_prints_what_was_measured_so_far(endpoint: str, engine: Process, tmp_path: Path) -> None:
    def answered() -> float:
        return engine.metric("vllm:request_success_total", finished_reason="length")

    begin, picture = answered(), tmp_path / "found.svg"
    arguments = ["--users", "2,4", "--seconds", "600", *SMALL, "--json", "--plot", str(picture)]
    command = [sys.executable, "-m", "llmfleet", "bench", "--url", endpoint, "--model", "tiny", *arguments]
    code, stdout, stderr = interrupted(command, lambda: answered() >= begin + 60)
    assert (code, stderr) == (130, b"bench: 2 users\n")
    found = json.loads(stdout)
    assert (found["interrupted"], found["passed"]) == (True, False)
    [level] = found["levels"]
    assert (level["users"], level["errors"]) == (2, 0)
    assert level["requests"] > 0
    ElementTree.fromstring(picture.read_text())


def test_an_interrupt_before_anything_was_measured_is_no_verdict(engine: Process) -> None:
    engine.fault(kind="hang", seconds=600)
    url = f"http://{HOST}:{engine.port}"
    command = [sys.executable, "-m", "llmfleet", "bench", "--url", url, "--model", "tiny", *SMALL]
    try:
        code, stdout, stderr = interrupted(command, lambda: bool(engine.metric("vllm:num_requests_running")))
    finally:
        engine.fault(kind="clear")
    assert code == 130, stderr
    assert b"stopped by you" in stdout


# ---- keys ----


def test_a_router_that_wants_a_key_says_which_option_and_takes_the_key(tmp_path: Path, engine: Process) -> None:
    (tmp_path / "wrong").write_text("sk-nobody\n")
    with router(tmp_path, engine, *keyed(tmp_path)) as url:
        without = bench(url, *LEVELS)
        wrong = bench(url, *LEVELS, "--api-key-file", str(tmp_path / "wrong"))
        right = bench(url, *LEVELS, "--api-key-file", str(tmp_path / "key"))
    assert (without.exit_code, wrong.exit_code, right.exit_code) == (2, 2, 0), right.output
    assert "answers 401: it wants an API key; give --api-key-file FILE" in without.stderr
    assert "give another key in the file of --api-key-file" in wrong.stderr
    assert (tmp_path / "key").read_text().strip() not in right.output


# ---- wrong use ----


def test_an_unknown_model_lists_those_that_there_are(endpoint: str) -> None:
    result = bench(endpoint, *LEVELS, model="other")
    assert result.exit_code == 2
    assert f"{endpoint} has no model 'other'; it has tiny" in result.stderr


def test_nobody_there_is_said_with_the_address() -> None:
    result = bench("http://127.0.0.1:9", *LEVELS)
    assert result.exit_code == 2
    assert re.search(r"cannot connect to http://127\.0\.0\.1:9: .+; is --url right", result.stderr)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--users", "1,x"], "'1,x': write numbers of users from 1 to 99999, such as 1,5,10,25,50"),
        (["--users", "0"], "write numbers of users from 1"),
        (["--users", "5,5"], "names a number twice"),
        (["--slo-ttft", "2"], "'2' is no time above zero: write it with its unit, such as 2s or 50ms"),
        (["--slo-tpot", "0ms"], "is no time above zero"),
        (["--slo-percentile", "101"], "1<=x<=100"),
        (["--slo-users", "7"], "--slo-users 7: not among --users"),
        (["--seconds", "5", "--requests", "5"], "give --seconds or --requests, not both"),
        (["--users", "1,9", "--requests", "5"], "--requests 5 is below 9 users"),
        (["--plot", "found.png"], "write FILE.svg or FILE.html"),
        (["--plot", "nowhere/found.svg"], "there is no folder 'nowhere'"),
        (["--url", "localhost:8080"], "'localhost:8080' is no address: write it as http://HOST:PORT"),
    ],
)
def test_wrong_use_is_one_line_that_says_what_to_write(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(main, ["bench", "--url", "http://127.0.0.1:9", "--model", "m", *arguments])
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_more_users_than_open_files_is_said_before_anything_is_sent() -> None:
    bench = [sys.executable, "-m", "llmfleet", "bench", "--url", "http://127.0.0.1:9", "--model", "m", "--users", "500"]
    limited = ["sh", "-c", 'ulimit -n 200; exec "$@"', "sh", *bench]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--users 500 needs 564 open files and 200 are allowed: raise ulimit -n" in " ".join(done.stderr.split())


@pytest.mark.parametrize("text", ["", "two words", "\u00e9"])
def test_a_file_without_a_key_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(text)
    result = bench("http://127.0.0.1:9", "--api-key-file", str(tmp_path / "key"))
    assert result.exit_code == 2
    assert "holds no API key: write one line without spaces" in " ".join(result.stderr.split())
