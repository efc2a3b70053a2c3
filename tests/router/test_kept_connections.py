"""Requests of several users on one connection, as a proxy in front sends them: each is answered as if it were alone."""

import asyncio
from random import Random

import pytest
from bed import CHAT, Bed, request_bytes, scenario
from engine import ok

from llmfleet.router.keys import hashed

TENANTS = {
    "small": {"keys": [hashed("key-small")]},
    "big": {"keys": [hashed("key-big")]},
    "narrow": {"keys": [hashed("key-narrow")], "models": ["other"]},
}
STATUS = {"key-small": 200, "key-big": 200, "key-narrow": 403, "key-nobody": 401}
EMBED = {"model": "m", "input": "hi"}
PATHS = {"/v1/chat/completions": CHAT, "/v1/embeddings": EMBED}


async def one(client, key, path, extra, cut):
    """Send one request in one piece or in two, and return its status."""
    raw = request_bytes(PATHS[path], path=path, headers={"Authorization": f"Bearer {key}", **extra})
    stop = raw.index(b"\r\n\r\n") + 4 if cut else len(raw)
    client.writer.write(raw[:stop])
    if raw[stop:]:
        await client.writer.drain()
        await asyncio.sleep(0.003)
        client.writer.write(raw[stop:])
    return (await client.answer()).status


@pytest.mark.parametrize("seed", range(6))
@scenario
async def test_each_request_has_its_own_user_and_path_whatever_came_before_it(seed):
    dice = Random(seed)
    async with Bed(ok(), tenants=TENANTS) as bed:
        client = await bed.client()
        seen, sent = bed.engines[0].requests, []
        for _ in range(80):
            key, path = dice.choice(list(STATUS)), dice.choice(list(PATHS))
            extra = {} if dice.random() < 0.6 else {"X-Trace": str(dice.randrange(4))}
            sent.append((key, path, extra, cut := dice.random() < 0.3))
            before = len(seen)
            status = await one(client, key, path, extra, cut)
            assert status == STATUS[key], sent
            assert [request.path for request in seen[before:]] == ([path] if status == 200 else []), sent
            if cut and status == 401:  # refused before its body came: the connection ends
                client = await bed.client()
        lines = await bed.access_log(len(sent))
    for line, (key, path, _, _) in zip(lines, sent, strict=True):
        assert (line["route"], line["status"]) == (path, STATUS[key])
        assert line["tenant"] == ("" if key == "key-nobody" else key.removeprefix("key-")), line


@scenario
async def test_the_body_of_a_request_that_needs_none_is_nobodys():
    chunked = b"GET /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    async with Bed(ok()) as bed:
        client = await bed.client()
        client.writer.write(chunked)
        assert (await client.answer()).status == 200
        (served,) = bed.router.clients
        assert not served._reader._whole
        client.writer.write(request_bytes())
        assert (await client.answer()).status == 200
        assert [request.json for request in bed.engines[0].requests] == [CHAT]


@scenario
async def test_a_client_that_expects_to_be_asked_for_its_body_is_asked_each_time():
    raw = request_bytes(headers={"Expect": "100-continue"})
    stop = raw.index(b"\r\n\r\n") + 4
    async with Bed(ok()) as bed:
        client = await bed.client()
        client.writer.write(raw)
        assert (await client.answer()).status == 200
        client.writer.write(raw[:stop])
        assert (await client.head())[0] == 100
        client.writer.write(raw[stop:])
        assert (await client.answer()).status == 200
