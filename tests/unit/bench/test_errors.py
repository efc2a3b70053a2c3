"""The client against engines that misbehave on a real connection: each error is told as what it is, none is hidden."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import uvloop

from llmfleet.bench.app import NothingMeasuredError, Run, counted, measured, prepared
from llmfleet.bench.client import Link, User
from llmfleet.bench.figures import Level
from llmfleet.bench.request import Prompting, chat_request, models_request, parse_target
from llmfleet.bench.stream import Kind
from router import engine as scripted

Behaviour = scripted.Behaviour
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":20,"completion_tokens":3}}\n\n'
WHOLE = [*scripted.chat_events(3), USAGE, scripted.DONE]


class Quiet:
    """Somebody who is told and says nothing."""

    def level(self, users: int) -> None:
        pass

    def look(self, share: float, answers: int, errors: int) -> None:
        pass


def scenario(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(120):
                await test(*args, **kwargs)

        uvloop.run(bounded())

    return run


def run_of(engine: scripted.Engine, **changes: Any) -> Run:
    prompting = Prompting(model="m", words=16, output_tokens=3, ignore_eos=True, seed=1)
    usual: dict[str, Any] = {
        "target": parse_target(f"http://{engine.address}"),
        "prompting": prompting,
        "users": (1,),
        "prompt_tokens": 16,
        "seconds": 1.0,
        "requests": 1,
        "warmup": 0,
        "timeout": 60.0,
    }
    return Run(**usual | changes)


async def levels_of(run: Run, stop: asyncio.Event | None = None) -> list[Level]:
    return [level async for level in measured(run, stop or asyncio.Event(), Quiet())]


def with_engine(behave: Behaviour) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Callable[..., None]]:
    def wrap(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
        @wraps(test)
        async def run() -> None:
            engine = scripted.Engine(behave=behave)
            await engine.start()
            try:
                await test(engine)
            finally:
                await engine.stop()

        del run.__wrapped__  # type: ignore[attr-defined]
        return scenario(run)

    return wrap


BREAKS: dict[str, tuple[Behaviour, Kind, str]] = {
    "a clean end without the end mark": (scripted.events(*WHOLE[:-1]), Kind.NO_DONE, ""),
    "an end of the connection in the middle": (
        scripted.events(*WHOLE[:2], end=False, then="cut"),
        Kind.BROKEN_OFF,
        "closed",
    ),
    "a reset in the middle": (scripted.events(*WHOLE[:2], end=False, then="reset"), Kind.BROKEN_OFF, "reset"),
    "no answer at all": (scripted.drop(), Kind.BROKEN_OFF, "closed"),
    "an error event": (scripted.events(*WHOLE[:2], scripted.error_event(), scripted.DONE), Kind.ERROR_EVENT, "Engine"),
    "a refusal": (scripted.status(503), Kind.REFUSED, "no"),
    "an answer that is no stream": (
        scripted.play(scripted.json_answer(200, scripted.UNARY)),
        Kind.MALFORMED,
        "one piece",
    ),
    "no HTTP": (scripted.play(b"SSH-2.0-OpenSSH_9.2\r\n"), Kind.MALFORMED, "SSH"),
    "an engine that aborts what it holds": (
        scripted.events(*WHOLE[:2], scripted.chat_event(None, finish="abort"), USAGE, scripted.DONE),
        Kind.CUT_SHORT,
        "",
    ),
    "an answer without text": (scripted.events(*scripted.chat_events(0), USAGE, scripted.DONE), Kind.NO_TOKEN, "text"),
    "no usage": (scripted.events(*scripted.chat_events(), scripted.DONE), Kind.NO_USAGE, "include_usage"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_every_way_to_break_is_told_apart(name: str) -> None:
    behave, kind, words = BREAKS[name]

    @with_engine(behave)
    async def check(engine: scripted.Engine) -> None:
        [level] = await levels_of(run_of(engine))
        assert (level.requests, level.errors) == (0, 1)
        assert level.faults[0].kind is kind
        assert words in level.faults[0].said

    check()


@with_engine(scripted.silent())
async def test_an_answer_that_never_ends_is_a_timeout_and_the_engine_is_let_go(engine: scripted.Engine) -> None:
    [level] = await levels_of(run_of(engine, timeout=0.2))
    assert [fault.kind for fault in level.faults] == [Kind.TIMEOUT]
    async with asyncio.timeout(60):
        while engine.active:
            await asyncio.sleep(0.01)


@with_engine(scripted.events(*WHOLE))
async def test_nobody_listens_any_more_is_an_error_and_not_a_crash(engine: scripted.Engine) -> None:
    await engine.stop()
    [level] = await levels_of(run_of(engine))
    assert [fault.kind for fault in level.faults] == [Kind.UNREACHABLE]


async def slowly(connection: scripted.Connection, request: scripted.Request) -> None:
    """The role at once, the first token after 200 ms, two more after 100 ms each."""
    await connection.send(scripted.SSE_HEAD)
    await connection.chunk(WHOLE[0])
    for pause, piece in zip((0.2, 0.1, 0.1, 0, 0, 0), WHOLE[1:], strict=True):
        await asyncio.sleep(pause)
        await connection.chunk(piece)
    await connection.end()


@with_engine(slowly)
async def test_times_are_not_below_those_of_the_engine_and_the_role_is_no_token(engine: scripted.Engine) -> None:
    [level] = await levels_of(run_of(engine, requests=2))
    assert level.requests == 2
    assert level.ttft is not None and level.tpot is not None and level.e2e is not None
    assert level.ttft.values[0] >= 0.19
    assert level.e2e.values[0] >= 0.38
    # How late the client read the first token is missing from its TPOT: no bound from below.
    assert level.ttft.values[0] + 2 * level.tpot.values[0] <= level.e2e.values[-1]
    assert (level.prompt_tokens, level.output_tokens) == (20, 3)


async def a_little_slow(connection: scripted.Connection, request: scripted.Request) -> None:
    await asyncio.sleep(0.02)
    await scripted.events(*WHOLE)(connection, request)


@with_engine(a_little_slow)
async def test_a_level_of_users_has_so_many_requests_in_flight_and_each_user_one_connection(
    engine: scripted.Engine,
) -> None:
    async def together(connection: scripted.Connection, request: scripted.Request) -> None:
        """Answer once all seven users have asked."""
        while engine.max_active < 7:
            await asyncio.sleep(0.005)
        await a_little_slow(connection, request)

    engine.behave = together
    [level] = await levels_of(run_of(engine, users=(7,), requests=21, warmup=2))
    assert (level.requests, level.errors) == (21, 0)
    assert (engine.max_active, engine.connections) == (7, 7)
    assert level.warmups == len(engine.requests) - 21 >= 14


@with_engine(a_little_slow)
async def test_seconds_end_a_level_and_what_runs_then_is_waited_for(engine: scripted.Engine) -> None:
    [first, second] = await levels_of(run_of(engine, users=(1, 3), requests=None, seconds=0.3, warmup=1))
    assert (first.seconds, second.seconds) == (pytest.approx(0.3), pytest.approx(0.3))
    assert first.requests > 0 and second.requests > 0
    assert first.warmups + first.requests + second.warmups + second.requests == len(engine.requests)
    assert first.cut == second.cut == 0


@with_engine(scripted.events(*WHOLE))
async def test_no_two_requests_have_the_same_prompt(engine: scripted.Engine) -> None:
    await levels_of(run_of(engine, users=(2, 3), requests=6, warmup=1))
    prompts = [request.json["messages"][0]["content"] for request in engine.requests]
    assert len(set(prompts)) == len(prompts)
    fields = engine.requests[0].json
    assert (fields["stream"], fields["stream_options"]) == (True, {"include_usage": True})
    assert (fields["max_tokens"], fields["ignore_eos"], fields["model"]) == (3, True, "m")


@with_engine(scripted.events(*WHOLE))
async def test_the_same_seed_asks_the_same_and_another_does_not(engine: scripted.Engine) -> None:
    run = run_of(engine, requests=3)
    for seed in (1, 1, 2):
        await levels_of(replace(run, prompting=replace(run.prompting, seed=seed)))
    prompts = [request.json["messages"][0]["content"] for request in engine.requests]
    assert prompts[:3] == prompts[3:6]
    assert set(prompts[:3]).isdisjoint(prompts[6:])


@with_engine(scripted.endless())
async def test_who_stops_gets_what_was_measured_and_leaves_nothing_running(engine: scripted.Engine) -> None:
    engine.script = [scripted.events(*WHOLE), scripted.events(*WHOLE)]
    stop = asyncio.Event()
    level = asyncio.create_task(levels_of(run_of(engine, users=(2, 3), requests=100), stop))
    async with asyncio.timeout(60):
        while len(engine.requests) < 4:
            await asyncio.sleep(0.01)
        stop.set()
        [found] = await level
        assert (found.users, found.requests, found.cut, found.errors) == (2, 2, 2, 0)
        while engine.active:
            await asyncio.sleep(0.01)


@with_engine(scripted.events(*WHOLE))
async def test_a_user_who_is_stopped_in_the_moment_in_which_an_answer_ends_stops(engine: scripted.Engine) -> None:
    ends = Link.on_message_complete

    def ends_and_is_stopped(link: Link) -> None:
        ends(link)
        asking.cancel()

    user = User(parse_target(f"http://{engine.address}"), tls=None, timeout=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Link, "on_message_complete", ends_and_is_stopped)
        asking = asyncio.create_task(user.ask(models_request(parse_target(f"http://{engine.address}"))))
        with pytest.raises(asyncio.CancelledError):
            await asking
    user.close()


@with_engine(scripted.events(*WHOLE))
async def test_a_connection_that_the_engine_closed_between_two_requests_is_no_error(engine: scripted.Engine) -> None:
    user = User(parse_target(f"http://{engine.address}"), tls=None, timeout=60)
    request = chat_request(run_of(engine).target, run_of(engine).prompting, "k")
    assert (await user.ask(request))[0].problem is None
    engine.close_idle()
    async with asyncio.timeout(60):
        while user._link is not None and user._link.usable:
            await asyncio.sleep(0.01)
    assert (await user.ask(request))[0].problem is None
    user.close()
    assert engine.connections == 2


def listing(*ids: str) -> Behaviour:
    return scripted.play(scripted.json_answer(200, {"data": [{"id": one} for one in ids]}))


@pytest.mark.parametrize(
    ("first", "key", "words"),
    [
        (listing("a", "b"), "", "has no model 'm'; it has a, b"),
        (scripted.status(401), "", "answers 401: it wants an API key; give --api-key-file FILE"),
        (scripted.status(403), "wrong", "give another key in the file of --api-key-file"),
        (scripted.drop(), "", "cannot connect to http://127.0.0.1"),
    ],
)
def test_what_cannot_be_measured_is_said_with_what_to_do(first: Behaviour, key: str, words: str) -> None:
    @with_engine(first)
    async def check(engine: scripted.Engine) -> None:
        target = parse_target(f"http://{engine.address}", key)
        with pytest.raises(NothingMeasuredError) as error:
            await prepared(run_of(engine, target=target))
        assert words in str(error.value)
        assert engine.requests[0].header("authorization") == (f"Bearer {key}" if key else None)

    check()


@with_engine(scripted.status(400, {"error": {"message": "Unrecognized request argument: ignore_eos", "code": 400}}))
async def test_an_endpoint_that_does_not_know_ignore_eos_is_told_how(engine: scripted.Engine) -> None:
    with pytest.raises(NothingMeasuredError, match="give --no-ignore-eos"):
        await prepared(run_of(engine))
    [run] = [run_of(engine)]
    plain = replace(run.prompting, ignore_eos=False)
    assert b"ignore_eos" not in chat_request(run.target, plain, "k")


@with_engine(scripted.events(*scripted.chat_events(0), USAGE, scripted.DONE))
async def test_a_prompt_is_counted_even_when_its_one_token_is_no_text_yet(engine: scripted.Engine) -> None:
    user = User(run_of(engine).target, tls=None, timeout=60)
    assert await counted(run_of(engine), user, 16) == 20
    user.close()
    engine.script = [listing("m")]
    assert (await prepared(run_of(engine))).prompting.words > 0


@with_engine(scripted.events(*WHOLE))
async def test_an_endpoint_that_lists_no_models_can_be_measured(engine: scripted.Engine) -> None:
    engine.script = [scripted.status(404)]
    assert (await prepared(run_of(engine))).prompting.words > 0


@scenario
async def test_tls_is_checked_against_the_certificates_that_were_given(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *names], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await scripted.read_request(reader):
            writer.write(scripted.json_answer(200, json.loads('{"data": [{"id": "m"}]}')))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    target = parse_target(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    for trusted, status in ((ssl.create_default_context(cafile=str(certificate)), 200), (None, 0)):
        user = User(target, tls=trusted or ssl.create_default_context(), timeout=30)
        sample, found = await user.ask(models_request(target))
        user.close()
        assert found.status == status
    assert sample.problem is not None
    assert "certificate" in sample.problem.said
    server.close()
