"""Spans: what a client's context becomes, what engines are told, what a collector gets, and what none of it costs."""

import asyncio
import json
import re
import sys
import threading
import time

import pytest
from bed import CHAT, STREAM, Bed, scenario
from collector import Collector, attributes
from engine import drop, endless, ok, status
from hypothesis import given
from hypothesis import strategies as st
from test_disagg_relay import Split, offering

from llmfleet.router.keys import hashed
from llmfleet.router.limits import Otel, SettingsError, parse_settings
from llmfleet.router.tracing import client, context
from llmfleet.router.tracing.client import Exporter
from llmfleet.router.tracing.context import Context, chosen, read, without, written
from llmfleet.router.tracing.spans import Kind, Span, encode
from llmfleet.telemetry import RouterMetrics

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CHOSEN = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"}
ROUTE = "POST /v1/chat/completions"


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """However busy the machine is: what is on its way to the collector arrives."""
    monkeypatch.setattr(client, "FAREWELL_SECONDS", 60.0)
    monkeypatch.setattr(client, "ANSWER_SECONDS", 60.0)


def to(collector, **otel):
    return {"otel": {"endpoint": collector.url, **otel}}


def parent_of(request):
    """What an engine was told: trace, span and flags."""
    value = request.header("traceparent")
    return re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", value).groups()


# ---- W3C Trace Context ----


def head(*lines):
    return "".join(f"\r\n{line}" for line in lines).encode("latin-1")


def test_a_context_is_read_and_written_as_w3c_says():
    found = read(
        head("Host: a", f"TraceParent:  00-{TRACE}-{PARENT}-01 ", "tracestate: a=1", "Tracestate: b=2 , ,c@d=3")
    )
    assert found == Context(TRACE.encode(), PARENT.encode(), True, b"a=1,b=2,c@d=3")
    assert read(written(found)) == found
    assert read(head(f"traceparent: 00-{TRACE}-{PARENT}-02")).sampled is False
    assert read(head(f"traceparent: cc-{TRACE}-{PARENT}-01-what-the-future-will-be")).trace_id == TRACE.encode()
    assert without(head("a: 1", f"TraceParent: 00-{TRACE}-{PARENT}-01", "tracestate: a=1", "b: 2")) == head(
        "a: 1", "b: 2"
    )


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}-0g",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01,00-{TRACE}-{PARENT}-01",
        f"cc-{TRACE}-{PARENT}-01.x",
        "\xff" * 55,
        "a" * 20000,
    ],
)
def test_what_is_not_exactly_a_context_is_none(value):
    assert read(head(f"traceparent: {value}")) is None


def test_two_parents_are_none_and_a_state_without_a_parent_is_nothing():
    line = f"traceparent: 00-{TRACE}-{PARENT}-01"
    assert read(head(line, line)) is None
    assert read(head("tracestate: a=1")) is None
    assert read(b"") is None


@pytest.mark.parametrize(
    "state",
    [
        "a",
        "A=1",
        "a=",
        "=1",
        "a=1,a=2",
        "a=\x01",
        "a=é",
        "a=" + "x" * 257,
        "a=1=2",
        ",".join(f"k{i}=1" for i in range(33)),
        ",".join(f"{key}={'x' * 200}" for key in "abc"),
    ],
)
def test_a_doubtful_state_is_dropped_alone(state):
    assert read(head(f"traceparent: 00-{TRACE}-{PARENT}-01", f"tracestate: {state}")).state == b""


@given(st.binary(max_size=200))
def test_no_bytes_of_a_field_are_an_error_and_what_is_passed_on_reads_as_the_same(noise):
    noise = noise.replace(b"\r", b"")
    assert read(b"\r\ntraceparent: " + noise) is None
    found = read(head(f"traceparent: 00-{TRACE}-{PARENT}-01") + b"\r\ntracestate: " + noise)
    assert found is not None and read(written(found)) == found
    assert b"\n" not in found.state


def test_a_share_of_new_traces_is_recorded_and_everybody_chooses_alike():
    ids = [b"%032x" % (i * 0x9E3779B97F4A7C15 & (1 << 64) - 1) for i in range(1, 4001)]
    for ratio in (0.0, 0.1, 0.5, 1.0):
        assert sum(chosen(one, ratio) for one in ids) == pytest.approx(ratio * 4000, abs=40)
    assert all(chosen(one, 0.5) for one in ids if chosen(one, 0.1))


# ---- one request ----


@scenario
async def test_a_request_is_a_span_of_the_clients_trace_and_its_attempt_a_child_that_the_engine_knows():
    with Collector() as collector:
        before = time.time_ns()
        async with Bed(ok(3), settings=to(collector)) as bed:
            answer = await bed.ask(STREAM, headers=CHOSEN | {"X-Other": "secret"})
            assert (answer.status, answer.ended) == (200, "whole")
            [request] = bed.engines[0].requests
        after = time.time_ns()
        server, attempt = collector.spans
        assert (server["name"], attempt["name"]) == (ROUTE, "attempt")
        assert (server["kind"], attempt["kind"]) == (2, 3)
        assert server["traceId"] == attempt["traceId"] == TRACE
        assert (server["parentSpanId"], attempt["parentSpanId"]) == (PARENT, server["spanId"])
        assert parent_of(request) == (TRACE, attempt["spanId"], "01")
        assert request.header("tracestate") == CHOSEN["tracestate"] == server["traceState"] == attempt["traceState"]
        assert (server["flags"], attempt["flags"]) == (0x301, 0x101)
        assert (server["status"], attempt["status"]) == ({}, {})
        moments = [server["startTimeUnixNano"], attempt["startTimeUnixNano"], attempt["endTimeUnixNano"]]
        moments.append(server["endTimeUnixNano"])
        assert all(isinstance(moment, str) for moment in moments)
        assert sorted(map(int, moments)) == list(map(int, moments))
        slack = 10**9  # the loop's clock and the wall's are compared four times a second
        assert before - slack <= int(moments[0]) and int(moments[-1]) <= after + slack
        [event] = server["events"]
        assert event["name"] == "first token" and int(moments[0]) <= int(event["timeUnixNano"]) <= int(moments[-1])
        found = attributes(server)
        ttft = found.pop("llmfleet.ttft_ms")
        assert ttft >= 0  # 0 when the engine answers within one round of the loop
        assert found == {
            "http.request.method": "POST",
            "http.route": "/v1/chat/completions",
            "http.response.status_code": 200,
            "gen_ai.request.model": "m",
            "llmfleet.request_id": answer.headers["x-request-id"],
            "llmfleet.outcome": "complete",
            "llmfleet.attempts": 1,
            "llmfleet.queued_ms": 0.0,
        }
        port = bed.engines[0].port
        assert attributes(attempt) == {
            "llmfleet.llmcluster": "e0",
            "llmfleet.role": "both",
            "server.address": "127.0.0.1",
            "server.port": port,
            "http.response.status_code": 200,
        }
        assert bed.router.metrics.spans == {"sent": 2}


@scenario
async def test_a_collector_gets_otlp_in_json_on_its_own_path():
    with Collector() as collector:
        for path, wanted in (("", "/v1/traces"), ("/", "/v1/traces"), ("/otlp/x", "/otlp/x")):
            settings = {"otel": {"endpoint": collector.url + path, "serviceName": "edge"}}
            async with Bed(ok(), settings=settings) as bed:
                assert (await bed.ask()).status == 200
            asked, fields, _ = collector.requests[-1]
            assert (asked, fields["content-type"]) == (wanted, "application/json")
        document = collector.documents[0]
        [resource] = document["resourceSpans"]
        assert set(document) == {"resourceSpans"} and set(resource) == {"resource", "scopeSpans"}
        named = attributes(resource["resource"])
        assert named["service.name"] == "edge" and named["service.instance.id"] == "router-0"
        [scope] = resource["scopeSpans"]
        assert scope["scope"] == {"name": "llmfleet.router", "version": named["service.version"]}
        for span in scope["spans"]:
            assert re.fullmatch(r"[0-9a-f]{32}", span["traceId"]) and re.fullmatch(r"[0-9a-f]{16}", span["spanId"])


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": "nonsense"},
        {"traceparent": f"00-{TRACE}-{PARENT}-01-x", "tracestate": "a=1"},
        {"traceparent": "é" * 3000},
        {"tracestate": "a=1"},
    ],
)
@scenario
async def test_a_request_without_a_usable_context_begins_a_trace_of_its_own(headers):
    with Collector() as collector:
        async with Bed(ok(), settings=to(collector)) as bed:
            assert (await bed.ask(headers=headers)).status == 200
            [request] = bed.engines[0].requests
        server = collector.one(ROUTE)
        assert "parentSpanId" not in server and server["traceId"] != TRACE and "traceState" not in server
        assert parent_of(request)[0] == server["traceId"]
        assert request.header("tracestate") is None


@pytest.mark.parametrize(("headers", "ratio"), [(CHOSEN | {"traceparent": f"00-{TRACE}-{PARENT}-00"}, 1), ({}, 0)])
@scenario
async def test_a_trace_that_is_not_recorded_goes_on_to_the_engine_and_to_no_collector(headers, ratio):
    with Collector() as collector:
        async with Bed(ok(), settings=to(collector, sampleRatio=ratio)) as bed:
            assert (await bed.ask(headers=headers)).status == 200
            [request] = bed.engines[0].requests
            trace, span, flags = parent_of(request)
            assert flags == "00" and span != PARENT and (trace == TRACE) is bool(headers)
        assert collector.requests == []


@scenario
async def test_a_client_that_wants_its_trace_recorded_gets_it_whatever_the_share():
    with Collector() as collector:
        async with Bed(ok(), settings=to(collector, sampleRatio=0)) as bed:
            await bed.ask(headers=CHOSEN)
            await bed.ask()
        assert [span["traceId"] for span in collector.spans] == [TRACE, TRACE]


@scenario
async def test_without_an_endpoint_fields_pass_as_they_came_and_nothing_of_this_is_there():
    async with Bed(ok()) as bed:
        await bed.ask(headers=CHOSEN)
        [request] = bed.engines[0].requests
        assert {name: request.header(name) for name in CHOSEN} == CHOSEN
        assert bed.router.tracer is None and bed.app.spans is None
        assert not [thread for thread in threading.enumerate() if thread.name == "spans"]


def test_without_an_endpoint_nothing_that_traces_is_imported():
    code = "import sys, llmfleet.router.app; print([m for m in sys.modules if 'router.tracing' in m])"
    found = __import__("subprocess").run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "tracing.relay" not in found.stdout and "tracing.client" not in found.stdout


# ---- attempts and legs ----


@scenario
async def test_each_attempt_is_a_span_and_tells_why_it_came_to_nothing():
    with Collector() as collector:
        async with Bed(status(503), ok(), settings=to(collector)) as bed:
            while not bed.engines[0].requests:
                assert (await bed.ask(headers=CHOSEN)).status == 200
            told = [parent_of(engine.requests[-1])[1] for engine in bed.engines]
        server = next(span for span in collector.named(ROUTE) if attributes(span)["llmfleet.attempts"] == 2)
        first, second = [span for span in collector.named("attempt") if span["parentSpanId"] == server["spanId"]]
        assert [first["spanId"], second["spanId"]] == told
        assert (attributes(first)["error.type"], attributes(first)["http.response.status_code"]) == ("status", 503)
        assert (first["status"], second["status"], server["status"]) == ({"code": 2}, {}, {})
        assert int(first["endTimeUnixNano"]) <= int(second["startTimeUnixNano"])


@scenario
async def test_an_engine_that_is_not_there_is_an_attempt_without_a_status():
    with Collector() as collector:
        async with Bed(ok(), settings=to(collector) | {"queue": {"overflow": "reject"}}) as bed:
            await bed.engines[0].stop()
            assert (await bed.ask()).status == 502
        attempt = collector.one("attempt")
        assert attributes(attempt)["error.type"] == "connect" and attempt["status"] == {"code": 2}
        assert "http.response.status_code" not in attributes(attempt)
        server = collector.one(ROUTE)
        assert attributes(server)["error.type"] == "upstream_lost" and server["status"] == {"code": 2}


@scenario
async def test_both_legs_of_a_split_request_are_spans_and_each_engine_knows_its_own():
    with Collector() as collector:
        split = Split(p0=offering(), d0=ok())
        split._settings = parse_settings(to(collector))
        async with split as bed:
            assert (await bed.ask(STREAM, headers=CHOSEN)).status == 200
            (one,), (two,) = bed.asked("p0"), bed.asked("d0")
            bed.nothing_held()
        prefill, decode = collector.one("prefill"), collector.one("decode")
        server = collector.one(ROUTE)
        assert prefill["parentSpanId"] == decode["parentSpanId"] == server["spanId"]
        assert (parent_of(one), parent_of(two)) == ((TRACE, prefill["spanId"], "01"), (TRACE, decode["spanId"], "01"))
        assert (attributes(prefill)["llmfleet.role"], attributes(decode)["llmfleet.role"]) == ("prefill", "decode")
        assert [attributes(leg)["http.response.status_code"] for leg in (prefill, decode)] == [200, 200]
        assert int(prefill["endTimeUnixNano"]) <= int(decode["startTimeUnixNano"])


@scenario
async def test_a_prefill_leg_that_fails_is_a_span_with_its_reason_beside_the_one_that_does_not():
    with Collector() as collector:
        split = Split(p0=drop(), d0=ok())
        split._settings = parse_settings(to(collector))
        async with split as bed:
            assert (await bed.ask()).status == 200
            bed.nothing_held()
        failed = collector.named("prefill")
        assert failed and all(attributes(leg)["error.type"] == "reset" for leg in failed)
        assert attributes(collector.one("attempt"))["http.response.status_code"] == 200


@scenario
async def test_a_request_that_waited_says_for_how_long():
    gate = asyncio.Event()
    answer = ok()

    async def behave(connection, request):
        await gate.wait()
        await answer(connection, request)

    with Collector() as collector:
        async with Bed(behave, settings=to(collector), slots=1) as bed:
            first = asyncio.create_task(bed.ask())
            await bed.until(lambda: bed.engines[0].active == 1, "the first request")
            second = asyncio.create_task(bed.ask())
            await bed.until(lambda: bed.router.waiting("m") == 1, "the second request")
            await asyncio.sleep(0.05)  # which it waits for at least
            gate.set()
            assert {(await one).status for one in (first, second)} == {200}
        waited = sorted(attributes(span)["llmfleet.queued_ms"] for span in collector.named(ROUTE))
        assert waited[0] == 0.0 and waited[1] > 20


# ---- ends ----


@scenario
async def test_refusals_are_spans_that_hold_nothing_of_what_the_client_wrote():
    with Collector() as collector:
        tenants = {"team-a": {"keys": [hashed("key-of-team-a")]}}
        async with Bed(ok(), settings=to(collector), tenants=tenants) as bed:
            key = {"Authorization": "Bearer key-of-team-a"}
            assert (await bed.ask(headers={"Authorization": "Bearer my-secret-guess"})).status == 401
            assert (await bed.ask(b"{not json", headers=key)).status == 400
            assert (await bed.ask(path="/v1/secret-path", headers=key)).status == 404
            assert (await bed.ask(path="/v1/models/secret", headers=key, method="DELETE")).status == 405
            assert (await bed.ask(CHAT | {"model": "secret"}, headers=key | CHOSEN)).status == 404
            secret = CHAT | {"messages": [{"role": "user", "content": "my secret"}], "user": "secret user"}
            assert (await bed.ask(secret, headers=key)).status == 200
        said = [
            (s["name"], attributes(s).get("error.type"), attributes(s).get("llmfleet.tenant")) for s in collector.spans
        ]
        assert said == [
            (ROUTE, "invalid_api_key", None),
            (ROUTE, "invalid_json", "team-a"),
            ("POST", "not_found", None),
            ("DELETE /v1/models/", "method_not_allowed", None),
            (ROUTE, "model_not_found", "team-a"),
            (ROUTE, None, "team-a"),
            ("attempt", None, None),
        ]
        assert collector.spans[4]["parentSpanId"] == PARENT
        sent = b"".join(body for _, _, body in collector.requests)
        for word in (b"secret", b"key-of", b"Bearer", b"not json"):
            assert word not in sent


@scenario
async def test_a_client_that_leaves_ends_its_spans():
    with Collector() as collector:
        async with Bed(endless(), settings=to(collector)) as bed:
            raw = await bed.client()
            await raw.send(STREAM)
            await raw.head()
            await raw.chunk()
            raw.writer.transport.abort()
            await bed.until(lambda: bed.in_flight() == 0)
        server = collector.one(ROUTE)
        found = attributes(server)
        assert (found["llmfleet.outcome"], found["http.response.status_code"]) == ("aborted", 499)
        assert found["gen_ai.usage.output_tokens"] >= 1
        assert collector.one("attempt")["parentSpanId"] == server["spanId"]


@scenario
async def test_a_fault_in_the_tracing_costs_no_client_its_answer(monkeypatch, caplog):
    with Collector() as collector:
        async with Bed(ok(), settings=to(collector)) as bed:
            monkeypatch.setattr(bed.router.tracer, "hand_over", None)
            answer = await bed.ask()
            assert (answer.status, answer.ended) == (200, "whole") and bed.in_flight() == 0
        assert "a request could not be traced" in caplog.text


# ---- the way to the collector ----


def span(number=1):
    return Span("attempt", Kind.CLIENT, TRACE.encode(), b"%016x" % number, b"", 1, 2, {})


def eventually(condition, what):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come true in 30 s")


def exporter(url, *, max_queue=1000, retries=(0.01, 0.01)):
    metrics = RouterMetrics(lambda: None)
    made = Exporter(url, metrics, {"service.name": "r"}, "1", max_queue=max_queue, retries=retries)
    made.start()
    return made, metrics.spans


def test_what_finds_the_queue_full_is_dropped_and_counted_while_a_collector_is_slow():
    with Collector() as collector:
        collector.held.clear()
        made, counts = exporter(collector.url, max_queue=300)
        made.offer([span(i) for i in range(1, 257)])  # a batch, which is on its way now
        eventually(lambda: collector.requests, "the first request")
        for i in range(400):
            made.offer([span(1000 + i)])
        assert counts == {"dropped": 100}
        collector.held.set()
        eventually(lambda: counts["sent"] == 556, "all that was taken")
        made.close()
        assert counts == {"dropped": 100, "sent": 556}
        assert len(collector.spans) == 556 == len({one["spanId"] for one in collector.spans})


def test_a_passing_failure_is_tried_again_and_others_are_not():
    with Collector((503, b"", {"Retry-After": "0"}), (429, b"x", {}), (200, b"{}", {}), (400, b"no", {})) as collector:
        made, counts = exporter(collector.url)
        made.offer([span(1)])
        eventually(lambda: counts["sent"] == 1, "the third try")
        made.offer([span(2), span(3)])
        eventually(lambda: counts["failed"] == 2, "the refusal")
        made.offer([span(4)])
        eventually(lambda: counts["sent"] == 2, "the next batch")
        made.close()
        assert [one["spanId"][-1] for one in collector.spans] == ["1", "1", "1", "2", "3", "4"]


def test_a_redirect_is_a_failure_and_is_not_followed():
    with Collector() as other, Collector((307, b"", {"Location": "http://127.0.0.1:1/"})) as collector:
        collector.answers[0] = (307, b"", {"Location": other.url})
        made, counts = exporter(collector.url)
        made.offer([span(1)])
        eventually(lambda: counts["failed"] == 1, "the failure")
        made.close()
        assert other.requests == []


def test_spans_that_a_collector_rejects_are_counted_and_odd_answers_are_no_error():
    answers = [b'{"partialSuccess":{"rejectedSpans":"2","errorMessage":"x"}}', b"[]", b"\xff", b"x" * 70000]
    with Collector(*((200, text, {}) for text in answers)) as collector:
        made, counts = exporter(collector.url)
        for i in range(1, 5):
            made.offer([span(i)])
            eventually(lambda i=i: counts["sent"] == i, f"batch {i}")
        made.close()
        assert counts == {"sent": 4, "rejected": 2}


@scenario
async def test_requests_are_served_and_the_process_ends_with_a_collector_that_is_away_or_never_answers(monkeypatch):
    monkeypatch.setattr(client, "FAREWELL_SECONDS", 0.1)
    with Collector() as collector:
        collector.held.clear()
        for url in ("http://127.0.0.1:1", collector.url):
            async with Bed(ok(), settings={"otel": {"endpoint": url, "maxQueuedSpans": 64}}) as bed:
                for _ in range(60):
                    assert (await bed.ask()).status == 200
                    assert len(bed.app.spans._queue) <= 64
            assert bed.router.metrics.spans["sent"] == 0


@scenario
async def test_what_is_waiting_when_the_process_ends_is_sent_before():
    with Collector() as collector:
        async with Bed(ok(), settings=to(collector)) as bed:
            await bed.ask()
        assert len(collector.spans) == 2


def test_a_text_in_a_span_is_cut_and_kinds_of_values_are_told_apart():
    odd = span()._replace(attributes={"s": "x" * 1000, "i": 7, "d": 0.5, "b": True, "none": ""}, ended=0)
    [resource] = json.loads(encode([odd], {}, "1"))["resourceSpans"]
    [one] = resource["scopeSpans"][0]["spans"]
    assert attributes(one) == {"s": "x" * 256, "i": 7, "d": 0.5, "b": True}
    assert int(one["endTimeUnixNano"]) >= int(one["startTimeUnixNano"])


def test_a_span_of_one_request_more_than_may_be_is_left_out_and_ends_no_other():
    from llmfleet.router.tracing.relay import MAX_LEGS, MAX_NAMES, Tracer

    class Router:
        loop = type("Loop", (), {"time": staticmethod(lambda: 1.0)})
        wall_offset = 0.0

    tracer = Tracer(Router(), 1.0, lambda spans: None)
    trace, _ = tracer.begin(b"")
    backend = type("Backend", (), {})()
    fields = [trace.leg("attempt", backend) for _ in range(MAX_LEGS + 5)]
    trace.fault("connect")
    assert len(set(fields)) == MAX_LEGS + 5 and len(trace._legs) == MAX_LEGS
    assert [leg.reason for leg in trace._legs] == [""] * MAX_LEGS
    names = {tracer.name_of(type("T", (), {"name": f"t{i}"})) for i in range(MAX_NAMES + 50)}
    assert len(names) == MAX_NAMES + 1 and "other" in names


# ---- settings ----


@pytest.mark.parametrize(
    "url", ["http://a", "https://a.b:4318", "http://[::1]:4318/v1/traces", "http://10.0.0.1:65535/x/y-z"]
)
def test_endpoints_that_can_be_used(url):
    assert parse_settings({"otel": {"endpoint": url}}).otel.endpoint == url


@pytest.mark.parametrize(
    "url",
    ["a:4318", "grpc://a", "http://", "http://a:0", "http://a:65536", "http://u:p@a", "http://a/?k=v", "http://a b"],
)
def test_endpoints_that_cannot_are_refused_with_what_to_write(url):
    with pytest.raises(SettingsError, match=r"otel\.endpoint: .* write http://HOST:PORT"):
        parse_settings({"otel": {"endpoint": url}})


def test_tracing_is_off_by_default():
    assert parse_settings({}).otel == Otel() and Otel().endpoint == ""
    assert set(parse_settings({}).forward_headers) >= context.FIELD_NAMES
