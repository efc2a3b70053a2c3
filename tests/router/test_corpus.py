"""The hostile-HTTP corpus against a router process, with a second parser behind it: nothing hidden ever arrives."""

import asyncio
import os
from contextlib import suppress
from random import Random

import pytest
from bed import request_bytes, scenario
from corpus import ACCEPT, BODY, CORPUS, REJECT, TRAVERSE
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from strict import Edge

# Incomplete requests end soon, and a case never waits for the usual timeouts.
QUICK = "timeouts: {headerSeconds: 0.5, bodySeconds: 0.5}\n"
# Byte by byte, a request that is whole needs its time on a machine that has little; no class waits for these.
PATIENT = "timeouts: {headerSeconds: 60, bodySeconds: 60}\n"
AFTER = b'{"model":"m","user":"after"}'


def test_the_corpus_has_its_classes():
    kinds = [kind for _, kind in CORPUS.values()]
    assert (len(CORPUS), kinds.count(REJECT), kinds.count(ACCEPT), kinds.count(TRAVERSE)) == (66, 46, 11, 9)


async def speak(edge, pieces):
    """Send pieces and a plain request after them; return every status that came back."""
    client = await edge.client()
    statuses = []
    with suppress(ConnectionError):
        for piece in pieces:
            client.writer.write(piece)
            await client.writer.drain()
            if len(pieces) > 1:
                await asyncio.sleep(0)
        statuses.append(await status(client))
        client.writer.write(request_bytes(AFTER))
        statuses.append(await status(client))
    client.writer.close()
    return [found for found in statuses if found]


async def status(client):
    """The status of the next final answer; 0 when the connection is closed instead."""
    try:
        while True:
            answer = await client.answer()
            if answer.status != 100:
                return answer.status
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0


def cut(raw, how):
    if how == "whole":
        return [raw]
    if how == "halves":
        return [raw[: len(raw) // 2], raw[len(raw) // 2 :]]
    return [raw[i : i + 1] for i in range(len(raw))] if len(raw) < 1000 else [raw[:1], raw[1:-1], raw[-1:]]


@pytest.mark.parametrize("how", ["whole", "halves", "bytes"])
@scenario
async def test_no_class_of_the_corpus_desynchronises_the_router_and_its_engines(how):
    async with Edge(PATIENT if how == "bytes" else QUICK) as edge:
        for name, (raw, kind) in CORPUS.items():
            recorder = edge.recorder
            recorder.requests.clear()
            statuses = await speak(edge, cut(raw, how))
            assert recorder.faults == [], name
            bodies = [body for _, body in recorder.requests]
            hidden = [body for body in bodies if body not in (BODY, AFTER)]
            assert hidden == [] and bodies.count(BODY) <= 1, (name, bodies)
            if kind == REJECT:
                assert bodies == [] or bodies == [AFTER], (name, bodies)
                assert not statuses or 400 <= statuses[0] < 500, (name, statuses)
                assert 500 not in statuses, name
                if len(statuses) == 2:
                    raise AssertionError(f"{name}: a connection outlived what cannot be framed: {statuses}")
            elif kind == TRAVERSE:
                assert statuses, f"{name}: the answer was lost"
                assert BODY not in bodies and statuses[0] in (400, 404), (name, statuses)
            else:
                assert statuses, f"{name}: the answer was lost"
                assert statuses[0] in (200, 400, 404, 417), (name, statuses)
        assert edge.process.poll() is None and "Traceback" not in edge.log()


@scenario
async def test_what_may_be_served_is_served_once_with_its_own_body():
    async with Edge(QUICK) as edge:
        served = {}
        for name, (raw, kind) in CORPUS.items():
            if kind == ACCEPT:
                edge.recorder.requests.clear()
                statuses = await speak(edge, [raw])
                served[name] = (statuses[0], [body for _, body in edge.recorder.requests].count(BODY))
        assert served == {
            "a length as trailer": (400, 0),  # llhttp takes none behind chunks
            "an underscore for a dash": (200, 1),
            "an absolute target of another host": (400, 0),
            "CR LF in the target, encoded": (404, 0),
            "an expectation": (200, 1),
            "an unknown expectation": (417, 0),
            "an upgrade to h2c": (200, 1),
            "a length named hop-by-hop": (200, 1),
            "a GET with a body": (200, 0),
            "plain": (200, 1),
            "plain, chunked": (200, 1),
        }


# ---- bad inputs at random, always the same ones ----

TIMES = int(os.environ.get("LLMFLEET_TEST_FUZZ", "1"))  # 1: 2,000 requests on the wire, 8,000 bodies in test_fuzz.py
BATCH, BATCHES = 50, 40

BASES = [raw for raw, _ in CORPUS.values() if len(raw) < 2000]
SPICE = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b" ",
    b"\t",
    b":",
    b",",
    b"0\r\n\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: y\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close\r\n",
    b"Upgrade: h2c\r\n",
    b"HTTP/1.0",
    b"HEAD ",
    b"\xff\xfe",
    b'"kv_transfer_params":{},',
    b'"\\u0070riority":1,',
    b'"model":"m",',
    b"[" * 200,
    b"1e999",
    b"\\ud800",
    b"-",
]


def broken(random):
    """A request of the corpus with a few things wrong at random places."""
    raw = random.choice(BASES)
    for _ in range(random.randint(1, 4)):
        at = random.randint(0, len(raw))
        raw = raw[:at] + random.choice(SPICE) + raw[at + random.randint(0, 8) :]
    return raw


async def send_one(edge, raw):
    client = await edge.client()
    with suppress(ConnectionError):
        client.writer.write(raw)
        found = await status(client)
        assert found == 0 or found == 200 or 400 <= found < 500, (found, raw)
    client.writer.close()


def test_no_bad_request_crashes_the_router_or_brings_it_to_send_what_is_none():
    lots = []

    @seed(20261121)
    @settings(max_examples=BATCHES * TIMES, deadline=None, database=None)
    @given(start=st.integers(0, 2**64))
    def draw(start):
        random = Random(start)
        lots.append([broken(random) for _ in range(BATCH)])

    draw()

    @scenario
    async def run() -> None:
        async with Edge(QUICK) as edge:
            warm = 0
            for number, lot in enumerate(lots):
                await asyncio.gather(*(send_one(edge, raw) for raw in lot))
                if number >= len(lots) // 4 and not warm:
                    warm = edge.rss()
            assert edge.recorder.faults == []
            assert edge.process.poll() is None and "Traceback" not in edge.log()
            assert edge.rss() < 1.1 * warm

    run()
