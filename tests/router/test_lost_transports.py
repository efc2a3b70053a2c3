"""A transport that was reset refuses bytes before it reports the loss; no slot may hang on that moment."""

from bed import CHAT, STREAM, Bed, scenario
from engine import ok, silent


class Closed:
    """What uvloop's transport is between a reset and `connection_lost`."""

    def __init__(self, transport) -> None:
        self._transport = transport

    def is_closing(self) -> bool:
        return True

    def refuse(self, *_: object) -> None:
        raise RuntimeError("unable to perform operation; the handler is closed")

    write = pause_reading = resume_reading = write_eof = refuse

    def __getattr__(self, name: str):
        return getattr(self._transport, name)


@scenario
async def test_an_answer_for_a_connection_that_is_closed_already_frees_the_slot():
    async with Bed(silent(), settings={"timeouts": {"upstreamIdleSeconds": 0.1}}) as bed:
        for body in (CHAT, STREAM):
            client = await bed.client()
            await client.send(body)
            await bed.until(lambda: bed.in_flight() == 1 and bed.engines[0].active == 1)
            (served,) = bed.router.clients
            upstream = served._exchange._upstream
            real, served.transport = served.transport, Closed(served.transport)
            upstream.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            real.abort()
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
        upstream = served._exchange._upstream
        real, upstream.transport = upstream.transport, Closed(upstream.transport)
        served.pause_writing()
        served.resume_writing()
        real.abort()
        answer = await client.answer()
        assert (answer.status, answer.ended) == (200, "whole"), "asked again elsewhere"
        assert bed.in_flight() == 0
