"""A load that knows its answers tells the text of somebody else from its own, whole or cut."""

from __future__ import annotations

import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from e2e.load import COMPLETE, ERROR_EVENT, SILENT, STATUS, connector
from faults_long.texts import Texts


def texts(url: str = "http://nobody") -> Texts:
    """Two prompts are known."""
    return Texts(url, "m", 4, known={"one": "a b c d", "two": "e f g h"})


def test_the_right_text_whole_or_cut_is_nobody_elses():
    found = texts()
    found.compare("one", "a b c d", whole=True)
    found.compare("two", "e f", whole=False)
    found.compare("two", "", whole=False)
    assert found.foreign == []


def test_the_text_of_another_and_one_that_only_begins_right_show():
    found = texts()
    found.compare("one", "e f g h", whole=True)
    found.compare("one", "e f", whole=False)
    found.compare("two", "e f", whole=True)
    assert len(found.foreign) == 3


@pytest.mark.asyncio
async def test_streams_are_told_apart_by_how_they_end():
    ends = {
        "whole": ["a b ", "c d", "[DONE]"],
        "foreign": ["e f g h", "[DONE]"],
        "silent": ["a b "],
        "told": ["a b ", {"error": {"message": "lost"}}, "[DONE]"],
    }
    async with TestServer(app(ends)) as server:
        found = texts(str(server.make_url("")).rstrip("/"))
        async with connector() as session:
            outcomes = {}
            for model in [*ends, "refused"]:
                found.model = model
                outcomes[model] = await found.ask(session, "one", streamed=True)
    kinds = {model: one.kind for model, one in outcomes.items()}
    assert kinds == {
        "whole": COMPLETE,
        "foreign": COMPLETE,
        "silent": SILENT,
        "told": ERROR_EVENT,
        "refused": STATUS,
    }
    assert outcomes["told"].chunks == 1 and len(found.foreign) == 1


def app(ends: dict[str, list[object]]) -> web.Application:
    """An engine that answers by the model it is asked for."""

    async def answer(request: web.Request) -> web.StreamResponse:
        events = ends.get((await request.json())["model"])
        if events is None:
            return web.json_response({"error": "no"}, status=503)
        reply = web.StreamResponse()
        await reply.prepare(request)
        for event in events:
            await reply.write(f"data: {line(event)}\n\n".encode())
        return reply

    found = web.Application()
    found.router.add_post("/v1/completions", answer)
    return found


def line(event: object) -> str:
    """One event as it goes over the wire."""
    if event == "[DONE]":
        return "[DONE]"
    return json.dumps(event if isinstance(event, dict) else {"choices": [{"text": event}]})
