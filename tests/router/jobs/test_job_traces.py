"""A job's spans belong to the trace of the request that it was stored by, whichever router runs it, and when."""

from dataclasses import replace

import pytest
from bed import CHAT, Bed, scenario
from collector import Collector, attributes
from engine import ok
from test_jobs import JobBed

from llmfleet.router.limits import parse_settings
from llmfleet.router.tracing import client

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CHOSEN = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "rojo=1"}
ROUTE = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """However busy the machine is: what is on its way to the collector arrives."""
    monkeypatch.setattr(client, "FAREWELL_SECONDS", 60.0)
    monkeypatch.setattr(client, "ANSWER_SECONDS", 60.0)


def bed(server, collector, **otel) -> Bed:
    made = JobBed(server, ok())
    if collector is not None:
        rules = parse_settings({"otel": {"endpoint": collector.url, **otel}}).otel
        made._settings = replace(made._settings, otel=rules)
    return made


@scenario
async def test_a_job_is_a_child_of_the_request_that_stored_it_and_its_attempt_a_child_of_the_job(redis_server):
    with Collector() as collector:
        async with bed(redis_server, collector) as one:
            path = await one.put(CHAT, **CHOSEN)
            await one.becomes(path, "complete")
            [request] = one.engines[0].requests
        stored, job, attempt = collector.one(f"POST {ROUTE}"), collector.one(f"job {ROUTE}"), collector.one("attempt")
        assert {span["traceId"] for span in (stored, job, attempt)} == {TRACE}
        assert (stored["kind"], job["kind"], attempt["kind"]) == (2, 5, 3)
        parents = [span["parentSpanId"] for span in (stored, job, attempt)]
        assert parents == [PARENT, stored["spanId"], job["spanId"]]
        assert attributes(stored)["llmfleet.outcome"] == "job"
        assert (attributes(stored)["http.response.status_code"], attributes(job)["llmfleet.outcome"]) == (
            202,
            "complete",
        )
        assert request.header("traceparent") == f"00-{TRACE}-{attempt['spanId']}-01"
        assert request.header("tracestate") == job["traceState"] == "rojo=1"
        asked = collector.named("GET /v1/requests/")
        assert asked and TRACE not in {span["traceId"] for span in asked}
        assert b"job_" not in b"".join(body for _, _, body in collector.requests)


@scenario
async def test_the_trace_goes_on_in_another_router_also_one_that_makes_no_spans(redis_server):
    for second in (True, False):
        with Collector() as collector:
            async with bed(redis_server, collector) as one, bed(redis_server, collector if second else None) as two:
                one.jobs.worker._stopped = True  # it stores and runs nothing
                path = await one.put(CHAT, **CHOSEN)
                await two.becomes(path, "complete")
                [request] = two.engines[0].requests
            stored = collector.one(f"POST {ROUTE}")
            above = stored["spanId"]
            if second:
                job = collector.one(f"job {ROUTE}")
                assert (job["traceId"], job["parentSpanId"]) == (TRACE, stored["spanId"])
                above = collector.one("attempt")["spanId"]
            assert request.header("traceparent") == f"00-{TRACE}-{above}-01"


@scenario
async def test_a_job_of_a_trace_that_is_not_recorded_makes_no_spans(redis_server):
    with Collector() as collector:
        async with bed(redis_server, collector, sampleRatio=0) as one:
            path = await one.put(CHAT, traceparent=f"00-{TRACE}-{PARENT}-00")
            await one.becomes(path, "complete")
            [request] = one.engines[0].requests
        assert request.header("traceparent").startswith(f"00-{TRACE}-") and request.header("traceparent").endswith(
            "-00"
        )
        assert collector.requests == []
