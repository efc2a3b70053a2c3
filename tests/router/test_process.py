"""The commands as an operating system sees them: options, exit codes, signals, one running process."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile

import pytest
from bed import STREAM, Raw, scenario
from click.testing import CliRunner
from engine import DONE, Engine, chat_events, ok

from llmfleet.api.document import parse_document
from llmfleet.cli import main

COMMAND = [sys.executable, "-m", "llmfleet"]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, timeout=120)


class Process:
    """A router process of its own in front of one engine."""

    def __init__(self, engine: Engine, settings: str = "") -> None:
        self.engine, self._settings = engine, settings

    async def __aenter__(self) -> "Process":
        await self.engine.start()
        self._directory = tempfile.TemporaryDirectory()
        backends = os.path.join(self._directory.name, "with space.json")
        made = CliRunner().invoke(main, ["backends", "--model", f"m=http://{self.engine.address}", "--slots", "8"])
        with open(backends, "w") as file:
            file.write(made.stdout)
        settings = os.path.join(self._directory.name, "settings.yaml")
        with open(settings, "w") as file:
            file.write(self._settings)
        options = ["--host", "127.0.0.1", "--port", "0", "--admin-port", "0"]
        self.process = await asyncio.create_subprocess_exec(
            *COMMAND, "router", "--settings", settings, "--backends", backends, *options, stderr=subprocess.PIPE
        )
        self.port, self.admin_port = await self._ports()
        return self

    async def _ports(self) -> tuple[int, int]:
        while line := await self.process.stderr.readline():
            said = json.loads(line)
            if said["message"] == "listening":
                return said["port"], said["adminPort"]
        raise AssertionError("the router did not start")

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()
        await self.engine.stop()
        self._directory.cleanup()

    async def client(self) -> Raw:
        return Raw(*await asyncio.open_connection("127.0.0.1", self.port))

    async def status(self, path: str) -> int:
        client = await self.client()
        await client.send(method="GET", path=path)
        return (await client.answer()).status


DRAIN = "drain: {settleSeconds: 2, timeoutSeconds: 60}\n"


@scenario
async def test_sigterm_drains_unready_first_then_no_new_connections_then_exit_zero():
    async with Process(Engine(behave=ok(3, gap=1.5)), DRAIN) as router:
        assert await router.status("/readyz") == 200
        idle, open_stream = await router.client(), await router.client()
        await idle.send(method="GET", path="/healthz")
        await idle.answer()
        await open_stream.send(STREAM)
        await open_stream.head()
        router.process.send_signal(signal.SIGTERM)
        while await router.status("/readyz") == 200:
            await asyncio.sleep(0.02)
        late = await router.client()
        await late.send()
        answer = await late.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close"), "still served while the word spreads"
        assert await idle.closed()
        events = []
        while chunk := await open_stream.chunk():
            events.append(chunk)
        assert b"".join(events) == b"".join([*chat_events(3), DONE])
        with pytest.raises(OSError):
            await router.client()
        assert await router.process.wait() == 0


@scenario
async def test_a_drain_that_takes_too_long_ends_at_its_deadline():
    async with Process(Engine(behave=ok(1000, gap=0.1)), "drain: {settleSeconds: 0, timeoutSeconds: 0.5}\n") as router:
        client = await router.client()
        await client.send(STREAM)
        await client.head()
        router.process.send_signal(signal.SIGTERM)
        assert await router.process.wait() == 0
        body = await client.reader.read()
        assert not body.endswith(b"0\r\n\r\n"), "a cut answer never looks whole"
        assert b'"code":"not_ready"' in body[-300:], "and says why"


@scenario
async def test_a_second_sigterm_ends_the_process_now():
    async with Process(Engine(behave=ok(1000, gap=0.1)), "drain: {settleSeconds: 60}\n") as router:
        client = await router.client()
        await client.send(STREAM)
        await client.head()
        router.process.send_signal(signal.SIGTERM)
        while await router.status("/readyz") == 200:
            await asyncio.sleep(0.02)
        router.process.send_signal(signal.SIGTERM)
        assert await router.process.wait() == 0


@scenario
async def test_drain_by_the_admin_port_turns_unready_and_goes_on_serving():
    async with Process(Engine(behave=ok())) as router:
        admin = Raw(*await asyncio.open_connection("127.0.0.1", router.admin_port))
        await admin.send(b"", path="/drain", headers={"Origin": "http://elsewhere.example"})
        assert (await admin.answer()).status == 403, "a page in the browser of somebody with a tunnel"
        assert await router.status("/readyz") == 200
        await admin.send(b"", path="/drain")
        assert (await admin.answer()).json["draining"] is True
        assert await router.status("/readyz") == 503
        client = await router.client()
        await client.send()
        assert (await client.answer()).status == 200
        await admin.send(method="GET", path="/fleet")
        assert (await admin.answer()).json["draining"] is True


def test_backends_prints_a_document_for_engines_given_by_url():
    made = run("backends", "--model", "a/b=http://h:8000,http://[::1]:9", "--model", "c=10.0.0.1", "--slots", "4")
    document = parse_document(made.stdout.encode())
    assert {n: [e.address for e in m.endpoints] for n, m in document.models.items()} == {
        "a/b": ["h:8000", "[::1]:9"],
        "c": ["10.0.0.1:8000"],
    }
    assert [e.instance for e in document.models["a/b"].endpoints] == ["h-8000", "1-9"]
    assert {e.slots for m in document.models.values() for e in m.endpoints} == {4}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["backends"], "--model"),
        (["backends", "--model", "m"], "write NAME=URL"),
        (["backends", "--model", "m="], "write NAME=URL"),
        (["backends", "--model", "m=https://a"], "write http://HOST:PORT"),
        (["backends", "--model", "m=http://a:99999"], "write http://HOST:PORT"),
        (["backends", "--model", "m=http://a,http://a"], "appears twice"),
        (["backends", "--model", "m=http://a", "--slots", "0"], "--slots"),
        (["router"], "--backends"),
        (["router", "--backends", "x", "--port", "70000"], "--port"),
        (["router", "--backends", "x", "--settings", "/does/not/exist.yaml"], "No such file"),
        (["router", "--backends", "x", "--settings", "SETTINGS"], "timeouts.stallSecond: unknown setting"),
    ],
)
def test_wrong_input_is_one_clear_line_and_exit_code_2(args, says, tmp_path):
    (tmp_path / "s.yaml").write_text("timeouts: {stallSecond: 3}\n")
    done = CliRunner().invoke(main, [str(tmp_path / "s.yaml") if a == "SETTINGS" else a for a in args])
    assert done.exit_code == 2
    assert says in re.sub(r"\s+", " ", done.stderr)


def test_a_port_in_use_is_said_plainly():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("router", "--backends", "x", "--host", "127.0.0.1", "--port", port, "--admin-port", "0")
    assert done.returncode == 1 and "cannot listen" in done.stderr and "Traceback" not in done.stderr


def test_help_names_units_and_defaults():
    text = CliRunner().invoke(main, ["router", "--help"]).stdout
    assert "8080" in text and "9090" in text and "SIGTERM" in text


@scenario
async def test_who_was_let_in_before_it_stopped_listening_is_answered():
    async with Process(Engine(behave=ok()), "drain: {settleSeconds: 0, timeoutSeconds: 20}\n") as router:
        # A process that gets no time: connections and requests wait in the kernel when it is told to leave.
        router.process.send_signal(signal.SIGSTOP)
        clients = [await router.client() for _ in range(50)]
        for client in clients:
            await client.send()
        router.process.send_signal(signal.SIGTERM)
        router.process.send_signal(signal.SIGCONT)
        assert [(await client.answer()).status for client in clients] == [200] * 50
        assert await router.process.wait() == 0
