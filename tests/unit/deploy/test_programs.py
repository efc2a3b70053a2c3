"""The programs inside engine pods, run as real processes: the start gate, the probes, the preStop hook."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fakes.ports import free_port
from llmfleet.deploy import programs

PATIENCE = 60.0


def wait_for(reached: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@dataclass(slots=True)
class Group:
    """Start gates of one group on loopback; every rank has its own notes folder, as every pod has."""

    folder: Path
    size: int = 3
    port: int = field(default_factory=free_port)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(
        self, rank: int, *, revision: str = "r1", pod: str = "", address: str = "10.0.0.1"
    ) -> subprocess.Popen[str]:
        run = self.folder / (pod or f"rank-{rank}")
        run.mkdir(exist_ok=True)
        env = {
            "PATH": "/usr/bin:/bin",
            "LLMFLEET_RUN": str(run),
            "LLMFLEET_RANK": str(rank),
            "LLMFLEET_GROUP_SIZE": str(self.size),
            "LLMFLEET_LEADER": "127.0.0.1",
            "LLMFLEET_GATE_PORT": str(self.port),
            "LLMFLEET_REVISION": revision,
            "VLLM_HOST_IP": address,
        }
        engine = ["/bin/sh", "-c", 'echo "engine: $*"; exec sleep 60', "engine"]
        process = subprocess.Popen(
            [*programs.gate(), *engine], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.started.append(process)
        return process

    def passed(self, rank: int, pod: str = "") -> bool:
        return (self.folder / (pod or f"rank-{rank}") / "released").exists()

    def end(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    group = Group(tmp_path)
    try:
        yield group
    finally:
        group.end()


def line(process: subprocess.Popen[str], start: str) -> str:
    assert process.stdout is not None
    for text in process.stdout:
        if text.startswith(start):
            return text.strip()
    raise AssertionError(f"the process ended without saying {start!r}")


def test_nobody_passes_before_everybody_is_here(group: Group) -> None:
    leader, first = group.start(0), group.start(1)
    time.sleep(1.0)
    assert not group.passed(0)
    assert not group.passed(1)
    second = group.start(2)
    wait_for(lambda: all(group.passed(rank) for rank in range(3)), "all ranks pass")
    assert line(leader, "engine:") == "engine: --host 0.0.0.0"
    assert line(first, "engine:") == "engine: --host 0.0.0.0 --headless"
    assert line(second, "engine:") == "engine: --host 0.0.0.0 --headless"


def test_a_group_with_ipv6_addresses_listens_on_them(group: Group) -> None:
    group.size = 2
    leader, follower = group.start(0, address="fd00::1"), group.start(1, address="fd00::2")
    assert line(leader, "engine:") == "engine: --host ::"
    assert line(follower, "engine:") == "engine: --host :: --headless"


@pytest.mark.parametrize(("address", "host"), [("10.0.0.1", "0.0.0.0"), ("fd00::1", "::")])
def test_a_single_pod_listens_on_its_own_family_and_keeps_its_arguments(
    address: str, host: str, tmp_path: Path
) -> None:
    arguments = ["/usr/bin/printf", "%s|", "serve", "a model", "--port", "8000"]
    done = run([*programs.start(), *arguments], tmp_path, VLLM_HOST_IP=address)
    assert done.stdout == f"serve|a model|--port|8000|--host|{host}|"


def test_followers_may_come_before_their_leader(group: Group) -> None:
    for rank in (2, 1):
        group.start(rank)
    time.sleep(0.5)
    group.start(0)
    wait_for(lambda: all(group.passed(rank) for rank in range(3)), "all ranks pass")


def test_a_follower_that_left_before_the_start_is_waited_for_again(group: Group) -> None:
    group.start(0)
    gone = group.start(1)
    line(gone, "llmfleet gate")
    time.sleep(0.5)
    gone.send_signal(signal.SIGTERM)
    assert gone.wait(PATIENCE) == 143
    group.start(2)
    time.sleep(0.7)
    assert not group.passed(0)
    group.start(1, pod="rank-1-again")
    wait_for(lambda: group.passed(0) and group.passed(1, "rank-1-again"), "the new rank 1 is taken")


def test_a_rank_of_another_revision_is_refused(group: Group) -> None:
    group.size = 2
    leader = group.start(0)
    group.start(1, revision="r2")
    assert "refused" in line(leader, "llmfleet gate: rank 0 of 2: refused")
    assert not group.passed(1)


def test_a_started_leader_lets_nobody_in(group: Group) -> None:
    group.size = 2
    group.start(0)
    group.start(1)
    wait_for(lambda: group.passed(0) and group.passed(1), "the group starts")
    group.start(1, pod="rank-1-again")
    time.sleep(1.0)
    assert not group.passed(1, "rank-1-again")


def test_a_container_restarted_in_place_waits_for_its_pod_to_be_deleted(group: Group) -> None:
    group.size = 2
    first, _ = group.start(0), group.start(1)
    wait_for(lambda: group.passed(0) and group.passed(1), "the group starts")
    first.kill()
    first.wait(PATIENCE)
    again = group.start(0)
    assert "restarted in place" in line(again, "llmfleet gate: rank 0 of 2: restarted")
    assert (group.folder / "rank-0/restarted").exists()
    again.send_signal(signal.SIGTERM)
    assert again.wait(PATIENCE) == 143


def test_a_leader_that_is_being_stopped_starts_no_group(group: Group) -> None:
    group.size = 2
    group.start(0)
    (group.folder / "rank-0/stopping").touch()
    group.start(1)
    time.sleep(1.5)
    assert not group.passed(0)
    assert not group.passed(1)


class Engine:
    """Answers /health and /metrics as an engine does."""

    def __init__(self) -> None:
        self.running, self.waiting, self.steps, self.healthy = 0, 0, 1, True
        self.slow = 0.0
        """Seconds until it says how it is."""
        self.hangs = threading.Event()
        """Set: completions are taken and never answered, and no figure tells of them."""
        self.over = threading.Event()
        self.asked: list[tuple[dict[str, Any], str]] = []
        """Completions: the body, and what it was authorized with."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                time.sleep(outer.slow)
                pages = {"/metrics": outer.page(), "/v1/models": '{"data": [{"id": "m"}, {"id": "adapter"}]}'}
                body = pages.get(self.path, "").encode()
                self.send_response(200 if outer.healthy or body else 503)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((body, self.headers.get("Authorization", "")))
                if outer.hangs.is_set():
                    outer.over.wait(60)
                    return
                outer.steps += 1
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def page(self) -> str:
        return (
            f'vllm:num_requests_running{{engine="0"}} {self.running}.0\n'
            f'vllm:num_requests_waiting{{engine="0"}} {self.waiting}.0\n'
            f'vllm:num_requests_waiting_by_reason{{reason="capacity"}} 9.0\n'
            f'vllm:iteration_tokens_total_count{{engine="0"}} {self.steps}.0\n'
        )


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.over.set()
    engine.server.shutdown()
    engine.server.server_close()


def run(
    command: Sequence[str], folder: Path, *, rank: int = 0, port: int = 1, seconds: float = 60, **env: str
) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": "/usr/bin:/bin",
        "LLMFLEET_RUN": str(folder),
        "LLMFLEET_RANK": str(rank),
        "LLMFLEET_PORT": str(port),
        "LLMFLEET_LEADER": "127.0.0.1",
        "LLMFLEET_STALL_SECONDS": "1",
        "LLMFLEET_DRAIN_SECONDS": "30",
        **env,
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)


def test_rank_zero_is_ready_when_health_answers(engine: Engine, tmp_path: Path) -> None:
    assert run(programs.ready(), tmp_path, port=engine.port).returncode == 0


def test_rank_zero_is_not_ready_while_nothing_listens(tmp_path: Path) -> None:
    done = run(programs.ready(), tmp_path, port=free_port())
    assert (done.returncode, done.stderr.strip()) == (1, "the engine does not answer /health yet")


def test_rank_zero_is_not_ready_when_health_says_no(engine: Engine, tmp_path: Path) -> None:
    engine.healthy = False
    assert run(programs.ready(), tmp_path, port=engine.port).returncode == 1


def test_a_follower_is_ready_past_the_gate_and_not_after_a_restart_in_place(tmp_path: Path) -> None:
    assert run(programs.ready(), tmp_path, rank=1).returncode == 1
    (tmp_path / "released").touch()
    assert run(programs.ready(), tmp_path, rank=1).returncode == 0
    assert run(programs.started(), tmp_path, rank=1).returncode == 0
    (tmp_path / "restarted").touch()
    assert run(programs.ready(), tmp_path, rank=1).returncode == 1


def test_the_started_probe_finds_the_release_while_it_waits(tmp_path: Path) -> None:
    threading.Timer(0.7, (tmp_path / "released").touch).start()
    assert run(programs.started(), tmp_path).returncode == 0


def test_an_engine_without_a_step_while_requests_run_is_dead_in_the_end(engine: Engine, tmp_path: Path) -> None:
    engine.running = 1
    assert run(programs.live(), tmp_path, port=engine.port).returncode == 0
    time.sleep(1.2)
    done = run(programs.live(), tmp_path, port=engine.port)
    assert done.returncode == 1
    assert "no engine step" in done.stderr
    engine.steps += 1
    assert run(programs.live(), tmp_path, port=engine.port).returncode == 0


def test_an_idle_engine_needs_no_steps(engine: Engine, tmp_path: Path) -> None:
    for _ in range(2):
        assert run(programs.live(), tmp_path, port=engine.port).returncode == 0
        time.sleep(1.2)


def lives(engine: Engine, folder: Path, looks: int, longer: Mapping[str, str] | None = None, **env: str) -> list[int]:
    """The answers of the liveness program, half a second after one another; `longer` replaces limits in its text."""
    *command, text = programs.live()
    for limit, instead in (longer or {}).items():
        assert text.count(limit) == 1
        text = text.replace(limit, instead)
    codes = []
    for _ in range(looks):
        codes.append(run([*command, text], folder, port=engine.port, **env).returncode)
        time.sleep(0.5)
    return codes


def test_an_idle_group_with_a_rank_that_hangs_is_dead_once_somebody_waits(engine: Engine, tmp_path: Path) -> None:
    """Its figures stay those of its last step: nothing runs, nothing waits."""
    engine.hangs.set()
    assert lives(engine, tmp_path, 4) == [0, 0, 0, 0]
    assert engine.asked == []
    with socket.create_connection(("127.0.0.1", engine.port)) as somebody:
        somebody.sendall(b'POST /v1/completions HTTP/1.1\r\nContent-Length: 15\r\n\r\n{"prompt": "x"}')
        codes = lives(engine, tmp_path, 5)
    assert (codes[0], codes[-1]) == (0, 1)


def test_a_connection_on_which_nothing_is_asked_kills_no_engine(engine: Engine, tmp_path: Path) -> None:
    """The engine answers for itself: it is asked for one token, with the key that it knows."""
    with socket.create_connection(("127.0.0.1", engine.port)) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\n")
        limits = {"+ 7, 2 ": "+ 70, 20 "}  # a busy machine is no engine that hangs
        assert lives(engine, tmp_path, 6, limits, VLLM_API_KEY="secret") == [0] * 6
    assert engine.asked[0] == ({"model": "m", "prompt": "1", "max_tokens": 1}, "Bearer secret")


def test_an_engine_too_slow_to_be_asked_in_time_is_asked_at_another_look(engine: Engine, tmp_path: Path) -> None:
    """The probe's time would end before the answer, and a slow look is no proof that nothing moves."""
    engine.hangs.set()
    with socket.create_connection(("127.0.0.1", engine.port)) as somebody:
        somebody.sendall(b'POST /v1/completions HTTP/1.1\r\nContent-Length: 15\r\n\r\n{"prompt": "x"}')
        lives(engine, tmp_path, 2)
        asked = len(engine.asked)
        engine.slow = 3.5
        assert lives(engine, tmp_path, 2, {'"/metrics", 5)': '"/metrics", 60)'}) == [0, 0]
        assert len(engine.asked) == asked
        engine.slow = 0.0
        assert 1 in lives(engine, tmp_path, 5)


def test_connections_that_come_and_go_are_no_reason_to_ask(engine: Engine, tmp_path: Path) -> None:
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", engine.port)):
            assert lives(engine, tmp_path, 1) == [0]
    assert engine.asked == []


def test_an_engine_that_never_answered_is_loading_and_alive(tmp_path: Path) -> None:
    for _ in range(2):
        assert run(programs.live(), tmp_path, port=free_port()).returncode == 0
        time.sleep(1.2)


def test_an_engine_that_served_and_stopped_answering_is_dead(engine: Engine, tmp_path: Path) -> None:
    assert run(programs.live(), tmp_path, port=engine.port).returncode == 0
    time.sleep(1.2)
    assert run(programs.live(), tmp_path, port=free_port()).returncode == 1


def test_what_an_earlier_container_left_behind_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "steps").write_text("1 7 0.5\n", encoding="utf-8")
    assert run(programs.live(), tmp_path, port=free_port()).returncode == 0


def test_a_follower_is_alive_without_an_engine_loop(tmp_path: Path) -> None:
    assert run(programs.live(), tmp_path, rank=1, port=free_port()).returncode == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_pre_stop_waits_until_the_leader_is_idle(engine: Engine, tmp_path: Path, rank: int) -> None:
    engine.running = 1
    threading.Timer(4.0, setattr, (engine, "running", 0)).start()
    began = time.monotonic()
    assert run(programs.stop(), tmp_path, rank=rank, port=engine.port).returncode == 0
    assert time.monotonic() - began >= 4.0
    assert (tmp_path / "stopping").exists()


def test_pre_stop_gives_up_at_the_deadline(engine: Engine, tmp_path: Path) -> None:
    engine.waiting = 1
    done = run(programs.stop(), tmp_path, port=engine.port, LLMFLEET_DRAIN_SECONDS="2")
    assert done.returncode == 0


RESOLVER = """
import socket
asked = iter([%r] * %d)
real = socket.getaddrinfo
def getaddrinfo(*args, **kwargs):
    for code in asked:
        raise socket.gaierror(code, "no answer")
    return real(*args, **kwargs)
socket.getaddrinfo = getaddrinfo
"""


def stop_with_resolver(code: int, times: int) -> list[str]:
    """The program before a resolver that fails so often: no resolver of this machine can be made to."""
    *command, text = programs.stop()
    return [*command, RESOLVER % (code, times) + text]


def test_pre_stop_does_not_take_a_silent_resolver_for_a_leader_that_does_not_serve(
    engine: Engine, tmp_path: Path
) -> None:
    engine.running = 1
    threading.Timer(8.0, setattr, (engine, "running", 0)).start()
    began = time.monotonic()
    assert run(stop_with_resolver(socket.EAI_AGAIN, 2), tmp_path, rank=1, port=engine.port).returncode == 0
    assert time.monotonic() - began >= 8.0


@pytest.mark.parametrize(("code", "times"), [(socket.EAI_AGAIN, 1000), (socket.EAI_NONAME, 1)])
def test_pre_stop_ends_when_the_leaders_name_is_gone_or_nobody_resolves_it(
    engine: Engine, tmp_path: Path, code: int, times: int
) -> None:
    engine.running = 1
    assert run(stop_with_resolver(code, times), tmp_path, rank=1, port=engine.port, seconds=50).returncode == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_pre_stop_returns_at_once_when_the_leader_does_not_serve(tmp_path: Path, rank: int) -> None:
    assert run(programs.stop(), tmp_path, rank=rank, port=free_port(), seconds=25).returncode == 0


def test_no_program_holds_what_the_kubelet_would_expand() -> None:
    for command in (
        programs.gate(),
        programs.stop(),
        programs.ready(),
        programs.live(),
        programs.start(),
        programs.started(),
    ):
        assert not [part for part in command if "$(" in part or "$$" in part]
