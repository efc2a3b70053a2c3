"""uvloop refuses bytes for a connection that was reset before it reports the loss; no slot may hang on that moment."""

from bed import CHAT, STREAM, Bed, scenario
from engine import ok, silent


@scenario
async def test_an_answer_for_a_connection_that_was_just_aborted_frees_the_slot():
    async with Bed(silent(), settings={"timeouts": {"upstreamIdleSeconds": 0.1}}) as bed:
        for body in (CHAT, STREAM):
            client = await bed.client()
            await client.send(body)
            await bed.until(lambda: bed.in_flight() == 1 and bed.engines[0].active == 1)
            (served,) = bed.router.clients
            exchange = served._exchange
            upstream = exchange._upstream
            served.transport.abort()
            # The engine answers in the same turn of the loop, before `connection_lost` was called.
            upstream.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            served.pause_writing()
            served.resume_writing()
            await bed.until(lambda: bed.in_flight() == 0 and not bed.router.clients, "the slot being freed")
            await bed.until(lambda: bed.engines[0].active == 0)
        assert bed.router.metrics.model("m").in_flight == 0


@scenario
async def test_flow_control_of_an_engine_connection_that_is_closing_is_harmless():
    async with Bed(silent(), ok()) as bed:
        client = await bed.client()
        await client.send(STREAM)
        await bed.until(lambda: bed.engines[0].active == 1)
        (served,) = bed.router.clients
        served._exchange._upstream.transport.abort()
        served.pause_writing()
        served.resume_writing()
        answer = await client.answer()
        assert (answer.status, answer.ended) == (200, "whole"), "asked again elsewhere"
        assert bed.in_flight() == 0
