"""The official client for Node.js, unchanged, against the router."""

import pytest
from bed import Bed, scenario
from engine import DONE, chat_event, error_event, events, ok, silent, status
from sdk import node, responses, tool_calls


@scenario
async def test_chat_stream_and_models_work():
    async with Bed() as bed:
        assert await node("chat", bed.port) == "hello"
        assert await node("stream", bed.port) == {"text": "t0t1t2", "error": None}
        assert await node("models", bed.port) == ["m"]


@scenario
async def test_tools_are_sent_and_their_calls_streamed():
    async with Bed(tool_calls()) as bed:
        assert await node("tools", bed.port) == '{"a":1}'


@scenario
async def test_responses_work_whole_and_as_events():
    async with Bed(responses()) as bed:
        assert await node("responses", bed.port) == "hello"
        seen = await node("responsesStream", bed.port)
        assert seen == ["response.created", "response.output_text.delta", "response.completed"]


@pytest.mark.parametrize("end", ["cut", "error"])
@scenario
async def test_a_broken_stream_raises_instead_of_ending(end):
    tail = [error_event(), DONE] if end == "error" else []
    async with Bed(events(chat_event("a"), *tail, end=bool(tail), then="keep" if tail else "cut")) as bed:
        seen = await node("stream", bed.port)
        assert seen["text"] == "a" and seen["error"]["name"] == "APIError"
        if end == "cut":
            assert seen["error"]["code"] == "upstream_lost"


@scenario
async def test_errors_arrive_as_the_exceptions_their_status_stands_for():
    async with Bed(status(429)) as bed:
        missing = await node("missing", bed.port)
        assert missing == {"name": "NotFoundError", "status": 404, "code": "model_not_found"}
        assert (await node("failure", bed.port))["name"] == "RateLimitError"


@scenario
async def test_a_fleet_that_fails_for_a_moment_is_asked_again_by_the_client():
    async with Bed(ok()) as bed:
        bed.engines[0].script = [status(503)]
        assert await node("retried", bed.port) == "hello"
        assert len(bed.engines[0].requests) == 2


@scenario
async def test_a_client_that_times_out_stops_the_engine():
    async with Bed(silent()) as bed:
        assert (await node("timeout", bed.port))["name"] == "APIConnectionTimeoutError"
        await bed.until(lambda: bed.engines[0].aborted == 1, "the engine being aborted")
        assert bed.in_flight() == 0
