"""A client that leaves frees its slot and its engine's work; one that does not read holds nothing but its own bytes."""

import asyncio
import os
import random
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from bed import CHAT, STREAM, Bed, Raw, scenario
from engine import chat_event, endless, events, ok, play, silent


def leave(client: Raw, how: str) -> None:
    if how == "reset":
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.writer.transport.abort()
    elif how == "half-close":
        client.writer.write_eof()
    else:
        client.writer.close()


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["unary", "stream"])
@scenario
async def test_a_client_that_leaves_aborts_the_engine_and_frees_the_slot(how, body):
    async with Bed(endless() if body is STREAM else silent(), slots=1) as bed:
        client = await bed.client()
        await client.send(body)
        if body is STREAM:
            await client.head()
        await bed.until(lambda: bed.engines[0].active == 1)
        leave(client, how)
        await bed.until(lambda: bed.engines[0].aborted == 1, "the engine being aborted")
        assert bed.in_flight() == 0
        assert bed.counter("requests") == {(499, "aborted"): 1}


@scenario
async def test_a_client_that_leaves_before_the_first_event_is_not_retried():
    async with Bed(silent(), silent()) as bed:
        client = await bed.client()
        await client.send(STREAM)
        await bed.until(lambda: bed.engines[0].active == 1)
        client.writer.close()
        await bed.until(lambda: bed.engines[0].aborted == 1)
        assert bed.engines[1].requests == [] and bed.in_flight() == 0


@scenario
async def test_a_client_that_leaves_while_the_engine_is_being_connected_leaves_no_slot():
    async with Bed(ok(), slots=4) as bed:
        for _ in range(50):
            client = await bed.client()
            await client.send(STREAM)
            client.writer.transport.abort()
        await bed.until(lambda: bed.in_flight() == 0 and not bed.router.clients, "every slot being freed")
        assert [(await bed.ask()).status for _ in range(4)] == [200] * 4


@scenario
async def test_two_thousand_disconnects_at_any_moment_leak_nothing():
    """Requests leave before, during and after their answers, by FIN and RST, 100 at a time."""
    chance = random.Random(7)
    slow = events(*[chat_event()] * 20, gap=0.002)
    async with Bed(slow, ok(3, gap=0.002), silent(), settings={"timeouts": {"firstEventSeconds": 5}}, slots=300) as bed:
        gate = asyncio.Semaphore(100)

        async def one() -> None:
            async with gate:
                client = await bed.client()
                await client.send(chance.choice((CHAT, STREAM)))
                await asyncio.sleep(chance.random() * 0.03)
                leave(client, chance.choice(("close", "reset", "half-close")))

        await asyncio.gather(*(one() for _ in range(2000)))
        await bed.until(lambda: bed.in_flight() == 0 and not bed.router.clients, "every slot being freed")
        await bed.until(lambda: all(e.active == 0 for e in bed.engines), "every engine being idle")
        stats = bed.router.metrics.model("m")
        assert stats.in_flight == 0
        assert all(b.in_flight == 0 for b in bed.router.fleet.backends.values())
        bed.engines[2].behave = ok()
        assert (await bed.ask()).status == 200


@scenario
async def test_a_client_that_does_not_read_stops_the_engine_and_is_closed_in_the_end():
    async with Bed(endless(gap=0, size=60_000), settings={"timeouts": {"clientStallSeconds": 1}}) as bed:
        client = await bed.client()
        await client.send(STREAM)
        await client.head()
        await bed.until(lambda: any(c.blocked for c in bed.router.clients), "backpressure")
        held = [c.transport.get_write_buffer_size() for c in bed.router.clients]
        while bed.router.clients:
            held += [c.transport.get_write_buffer_size() for c in bed.router.clients]
            await asyncio.sleep(0.02)
        assert max(held) < 1 << 20, "the router does not buffer the stream"
        await bed.until(lambda: bed.engines[0].aborted == 1, "the engine being aborted")
        assert bed.in_flight() == 0


@scenario
async def test_a_slow_reader_gets_everything_and_is_not_taken_for_a_stalled_engine():
    big = [chat_event("z" * 50_000) for _ in range(60)]
    whole = [*big, chat_event(None, finish="stop"), b"data: [DONE]\n\n"]
    settings = {"timeouts": {"stallSeconds": 1.5, "clientStallSeconds": 30}}
    async with Bed(events(*whole), settings=settings) as bed:
        client = await bed.client()
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        await client.send(STREAM)
        await asyncio.sleep(2.5)
        answer = await client.answer()
        assert (answer.ended, answer.body) == ("whole", b"".join(whole))


@scenario
async def test_a_broken_engine_answer_frees_the_slot_while_the_client_still_reads():
    async with Bed(play(b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\nshort", then="cut")) as bed:
        assert (await bed.ask()).status == 502
        assert bed.in_flight() == 0


def test_a_client_that_is_lost_without_a_word_frees_its_slot_too():
    """Invariant 3 without a FIN: its address vanishes, in a network namespace of the test's own."""
    script = Path(__file__).parent / "lost_clients.py"
    command = ["unshare", "--map-root-user", "--net", sys.executable, str(script)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(script.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.stdout.splitlines() == ["waiting: 1 0", "streaming: 1 0"], done.stderr[-2000:]
