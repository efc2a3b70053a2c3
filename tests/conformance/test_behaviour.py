"""What happens over time: streams against unary answers, disconnects, limits, keys, signals."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.engine import SIM, launch, patience
from sim.engine import Process, read_all, until_silent, wait_for

OPTIONS = (
    *("--api-key", "sekret", "--max-num-queued-reqs", "2", "--max-num-seqs", "1", "--fingerprint-mode", "none"),
    *("--enable-request-id-headers", "--enable-prompt-tokens-details", "--enable-server-load-tracking"),
    *("--scheduling-policy", "priority", "--sse-keep-alive-interval", "1", "--shutdown-timeout", "180"),
    *("--served-model-name", "tiny", "alias"),
)
# An engine that is told to end has sent its last byte a second later, on a busy machine some seconds later.
QUIET_SECONDS = 30
# Going away takes real vLLM up to 12 s on an idle machine.
AWAY_SECONDS = 300
KEY = {"Authorization": "Bearer sekret"}


@pytest.fixture(scope="module")
def guarded(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One engine with a key, limits and a shutdown timeout."""
    folder: Path = tmp_path_factory.mktemp("guarded")
    slow = ("--sim-step-a", "8") if kind == SIM else ()  # what runs is asked about five times over while it runs
    with launch(kind, folder, *OPTIONS, *slow) as process:
        yield process.until_up(patience(kind))


def last_events(data: bytes) -> list[bytes]:
    return [line[6:] for line in data.split(b"\n") if line.startswith(b"data: ")][-2:]


def counts(engine: Process) -> tuple[float, float]:
    """Requests that run and that wait."""
    return engine.metric("vllm:num_requests_running"), engine.metric("vllm:num_requests_waiting")


def test_a_stream_and_a_unary_answer_say_the_same(engine):
    asked = {"model": "tiny", "prompt": "The quick brown", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    whole = engine.post("/v1/completions", asked).json()
    usage = {"stream_options": {"include_usage": True}, "stream": True}
    events = engine.post("/v1/completions", {**asked, **usage}).events()
    assert "".join(e["choices"][0]["text"] for e in events[:-2]) == whole["choices"][0]["text"]
    assert events[-2]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 12


def test_a_stop_string_ends_the_answer_before_itself(engine):
    asked = {"prompt": "The quick brown", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    text = engine.post("/v1/completions", asked).json()["choices"][0]["text"]
    stop = text[len(text) // 2 :][:2]
    cut = text[: text.index(stop)]
    choice = engine.post("/v1/completions", {**asked, "stop": [stop]}).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (cut, "stop", stop)
    events = engine.post("/v1/completions", {**asked, "stop": [stop], "stream": True}).events()
    assert "".join(e["choices"][0]["text"] for e in events[:-1]) == cut
    assert events[-2]["choices"][0]["stop_reason"] == stop


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_aborts_its_request_and_counts_nowhere(engine, stream):
    made, ended = engine.metric("vllm:generation_tokens_total"), engine.metric("vllm:e2e_request_latency_seconds_count")
    link = engine.open(stream=stream, max_tokens=1000)
    assert wait_for(lambda: engine.metric("vllm:num_requests_running") == 1)
    link.close()
    assert wait_for(lambda: engine.metric("vllm:num_requests_running") == 0)
    assert engine.metric("vllm:generation_tokens_total") - made < 1000
    assert engine.metric("vllm:e2e_request_latency_seconds_count") == ended
    assert engine.metric("vllm:request_success_total", finished_reason="abort") == 0


def test_a_long_prompt_is_found_in_the_prefix_cache_the_second_time(engine):
    prompt, hits = [300 + n % 100 for n in range(400)], engine.metric("vllm:prefix_cache_hits_total")
    for _ in range(2):
        engine.complete(prompt=prompt, max_tokens=1)
    assert wait_for(lambda: engine.metric("vllm:prefix_cache_hits_total") - hits == 384)
    assert wait_for(lambda: engine.metric("vllm:prompt_tokens_by_source_total", source="local_cache_hit") >= 384)


def test_sigterm_ends_a_stream_with_abort_or_an_error_then_done_or_not_at_all(engine, kind):
    """vLLM aborts its requests and kills its core at once; when the kill is first, the client waits for ever.

    What never happens is an end that looks whole and is not: `[DONE]` without its reason.
    """
    stream = engine.open(stream=True, max_tokens=1000)
    assert wait_for(lambda: engine.metric("vllm:num_requests_running") == 1)
    engine.signal(signal.SIGTERM)
    data = until_silent(stream, QUIET_SECONDS)
    if kind == SIM or data.endswith(b"0\r\n\r\n"):
        event, done = last_events(data)
        error = b'"type": "InternalServerError", "param": null, "code": 500}}'
        assert b'"finish_reason":"abort"' in event or event.endswith(error)
        assert done == b"[DONE]" and data.endswith(b"0\r\n\r\n")
    else:
        assert b"[DONE]" not in data
    stream.close()
    assert engine.exit_code(AWAY_SECONDS) == 0
    assert not engine.up()


def test_a_key_guards_only_some_prefixes(guarded):
    refused = guarded.complete()
    assert (refused.status, refused.json()) == (401, {"error": "Unauthorized"})
    for path in ("/health", "/metrics", "/version", "/load", "/ping"):
        assert guarded.get(path).status == 200
    assert guarded.post("/tokenize", {"prompt": "a"}).status == 200
    assert guarded.post("/invocations", {"prompt": "a", "max_tokens": 1}).status == 200


def test_options_show_in_the_answers(guarded):
    asked = {"model": "alias", "prompt": [300] * 200, "max_tokens": 1}
    guarded.post("/v1/completions", asked, KEY)
    reply = guarded.post("/v1/completions", asked, {**KEY, "X-Request-Id": "abc-1"})
    assert {k.lower(): v for k, v in reply.headers.items()}["x-request-id"] == "abc-1"
    assert (reply.json()["model"], reply.json()["system_fingerprint"]) == ("tiny", None)
    details = {"cached_tokens": 128, "created_cache_tokens": None, "multimodal_tokens": None}
    assert reply.json()["usage"]["prompt_tokens_details"] == details
    events = guarded.post("/v1/completions", {**asked, "stream": True, "stream_options": {"include_usage": True}}, KEY)
    assert events.events()[-2]["usage"]["prompt_tokens_details"] == {"cached_tokens": 128}
    models = guarded.request("GET", "/v1/models", headers=KEY).json()["data"]
    assert [model["id"] for model in models] == ["tiny", "alias"]


def test_chat_also_counts_the_tokens_it_adds_to_the_cache(guarded):
    asked = {"messages": [{"role": "user", "content": "one two three four five six " * 20}], "max_tokens": 1}
    usage = guarded.post("/v1/chat/completions", asked, KEY).json()["usage"]
    assert usage["prompt_tokens_details"] == {
        "cached_tokens": 0,
        "created_cache_tokens": usage["prompt_tokens"] // 128 * 128,
        "multimodal_tokens": None,
    }


def test_requests_above_the_queue_limit_get_503_and_waiting_streams_a_comment(guarded):
    first = guarded.open("/invocations", stream=True, max_tokens=1000)
    assert wait_for(lambda: counts(guarded) == (1, 0))
    second = guarded.open("/invocations", stream=True, max_tokens=1000)
    assert wait_for(lambda: counts(guarded) == (1, 1))
    assert guarded.get("/load").json() == {"server_load": 2}
    reply = guarded.post("/invocations", {"prompt": "a", "max_tokens": 1})
    assert reply.status == 503 and "retry-after" not in {name.lower() for name in reply.headers}
    assert sorted(reply.json()["error"]) == ["code", "message", "param", "type"]
    assert guarded.metric("vllm:admission_rejections_total", reason="max_num_queued_reqs") == 1
    waited = second.recv(4096)
    while b"data: " not in waited and b"keep-alive" not in waited:
        waited += second.recv(4096)
    assert b": keep-alive\n\n" in waited
    second.close()
    assert wait_for(lambda: counts(guarded)[1] == 0)
    first.close()
    assert wait_for(lambda: counts(guarded) == (0, 0))


def refuses(engine: Process) -> bool:
    """Ask for one token. One that is taken after all waits behind the stream that runs: nobody waits for that."""
    with engine.open("/invocations", prompt="a", max_tokens=1) as link:
        return until_silent(link, 2).startswith(b"HTTP/1.1 500 ")


def test_an_engine_with_a_shutdown_timeout_finishes_streams_and_refuses_new_requests_with_500(guarded):
    stream = guarded.open("/invocations", stream=True, max_tokens=900)
    assert wait_for(lambda: guarded.metric("vllm:num_requests_running") == 1)
    guarded.signal(signal.SIGTERM)
    assert wait_for(lambda: refuses(guarded))
    reply = guarded.post("/invocations", {"prompt": "a", "max_tokens": 1})
    assert reply.json()["error"]["message"] == "cannot schedule new futures after shutdown"
    assert "vary" not in {name.lower() for name in reply.headers}
    assert guarded.get("/health").status == 200
    event, done = last_events(read_all(stream))
    assert b'"finish_reason":"length"' in event and done == b"[DONE]"
    assert guarded.exit_code(AWAY_SECONDS) == 0
