"""The HTTP side against a running simulator: answers, streams, limits, disconnects."""

import json
import socket
import threading
from pathlib import Path

import openai
import pytest

from sim.engine import process_status, read_all, start, wait_for

FAST = ("--sim-step-a", "2", "--sim-step-b", "0", "--sim-step-c", "0", "--sim-step-d", "0")
SLOW = ("--sim-step-a", "20", *FAST[2:])  # what is open is still open when this process gets to look


def test_a_completion_says_the_same_thing_every_time(engine):
    first, second = engine.complete(max_tokens=6).json(), engine.complete(max_tokens=6).json()
    assert first["choices"][0]["text"] == second["choices"][0]["text"] != engine.complete(prompt="other").json()
    assert first["usage"] == {
        "prompt_tokens": 3,
        "total_tokens": 9,
        "completion_tokens": 6,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }
    assert first["id"] != second["id"]


def test_a_stream_says_what_the_unary_answer_says(engine):
    whole = engine.complete(max_tokens=9).json()["choices"][0]["text"]
    events = engine.complete(max_tokens=9, stream=True, stream_options={"include_usage": True}).events()
    assert "".join(e["choices"][0]["text"] for e in events[:-2]) == whole
    assert [e["choices"][0]["finish_reason"] for e in events[:-2]] == [None] * 8 + ["length"]
    assert events[-2]["usage"] == {"prompt_tokens": 3, "total_tokens": 12, "completion_tokens": 9}
    assert events[-2]["choices"] == [] and "system_fingerprint" in events[-2] and events[-1] == "[DONE]"


def test_without_usage_the_fingerprint_is_on_the_last_content_event(engine):
    events = engine.complete(max_tokens=3, stream=True).events()
    assert ["system_fingerprint" in e for e in events[:-1]] == [False, False, True]


def test_a_chat_stream_begins_with_the_role(engine):
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "stream": True}
    events = engine.post("/v1/chat/completions", body).events()
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len(events) == 4


def test_continuous_usage_counts_up(engine):
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = engine.complete(max_tokens=3, stream=True, stream_options=options).events()
    assert [e["usage"]["completion_tokens"] for e in events[:-1]] == [1, 2, 3, 3]


def test_the_official_client_reads_answers_and_streams(engine):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{engine.port}/v1", api_key="none", max_retries=0) as client:
        chat = [{"role": "user", "content": "hello"}]
        answer = client.chat.completions.create(model="tiny", messages=chat, max_tokens=5)
        parts = client.chat.completions.create(model="tiny", messages=chat, max_tokens=5, stream=True)
        text = "".join(part.choices[0].delta.content or "" for part in parts)
        assert text == answer.choices[0].message.content
        assert client.responses.create(model="tiny", input="hello", max_output_tokens=5).output_text == text
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="nope", prompt="x")


def test_stop_strings_cut_the_answer_and_are_never_shown(engine):
    whole = engine.complete(max_tokens=20).json()["choices"][0]["text"]
    stop = whole.split()[5]
    expected = whole[: whole.index(stop)]
    unary = engine.complete(max_tokens=20, stop=stop).json()["choices"][0]
    assert (unary["text"], unary["finish_reason"], unary["stop_reason"]) == (expected, "stop", stop)
    events = engine.complete(max_tokens=20, stop=[stop], stream=True).events()
    assert "".join(e["choices"][0]["text"] for e in events[:-1]) == expected


def test_several_choices_and_prompts_are_numbered(engine):
    choices = engine.complete(prompt=["a b", "c d"], n=2, temperature=1).json()["choices"]
    assert [c["index"] for c in choices] == [0, 1, 2, 3]
    assert len({c["text"] for c in choices}) == 4


def test_a_token_prompt_is_the_text_it_stands_for(engine):
    ids = engine.post("/tokenize", {"prompt": "hello world"}).json()["tokens"]
    assert engine.post("/detokenize", {"tokens": ids}).json() == {"prompt": "hello world"}
    assert engine.complete(prompt=ids).json()["choices"][0]["text"] == engine.complete().json()["choices"][0]["text"]


def test_request_ids_become_answer_ids_and_are_not_echoed(engine):
    reply = engine.post("/v1/completions", {"prompt": "x", "max_tokens": 1}, {"X-Request-Id": "abc-1"})
    assert reply.json()["id"] == "cmpl-abc-1"
    assert "x-request-id" not in {name.lower() for name in reply.headers}


def test_responses_and_messages_stream_their_own_events(engine):
    response = engine.post("/v1/responses", {"input": "hi", "max_output_tokens": 2, "stream": True})
    kinds = [event["type"] for event in response.events()]
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    assert [event["sequence_number"] for event in response.events()] == list(range(len(kinds)))
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "stream": True}
    kinds = [event["type"] for event in engine.post("/v1/messages", body).events()]
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"


def present(own):
    return own.metric("vllm:num_requests_running") + own.metric("vllm:num_requests_waiting")


def test_the_head_of_a_stream_is_sent_before_the_prefill_is_done(tmp_path):
    with start(tmp_path, *FAST, admin=True).until_up() as own:
        own.fault(kind="hang")
        link = own.open(stream=True, max_tokens=2)
        head = link.recv(65536)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n") and head.endswith(b"\r\n\r\n")
        own.fault(kind="clear")
        assert read_all(link).count(b"data: ") == 3


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_seat_and_counts_nowhere(tmp_path, stream):
    with start(tmp_path, *SLOW).until_up() as own:
        link = own.open(stream=stream, max_tokens=1000)
        assert wait_for(lambda: own.metric("vllm:num_requests_running") == 1)
        link.close()
        assert wait_for(lambda: own.metric("vllm:num_requests_running") == 0)
        assert own.metric("vllm:request_success_total", finished_reason="abort") == 0
        assert own.metric("vllm:e2e_request_latency_seconds_count") == 0
        assert own.metric("vllm:kv_cache_usage_perc") == 0


def test_a_repeated_prompt_counts_as_a_prefix_cache_hit(engine):
    prompt = "a prompt long enough for several whole blocks of sixteen tokens of four bytes each " * 4
    hits = engine.metric("vllm:prefix_cache_hits_total")
    for _ in range(2):
        engine.complete(prompt=prompt, max_tokens=1)
    assert engine.metric("vllm:prefix_cache_hits_total") - hits == 80
    assert engine.metric("vllm:prompt_tokens_cached_by_source_total", source="device") >= 80


def test_metrics_add_up_after_a_request(tmp_path):
    with start(tmp_path, *FAST).until_up() as own:
        own.complete(max_tokens=5)
        own.complete(max_tokens=3, stream=True)
        assert own.metric("vllm:generation_tokens_total") == 8
        assert own.metric("vllm:prompt_tokens_total") == 6
        assert own.metric("vllm:request_success_total", finished_reason="length") == 2
        assert own.metric("vllm:time_to_first_token_seconds_count") == 2
        assert own.metric("vllm:inter_token_latency_seconds_count") == 6
        assert own.metric("vllm:iteration_tokens_total_count") == 8
        assert own.metric("http_requests_total", handler="/v1/completions", status="2xx") == 2


def test_requests_above_the_queue_limit_are_refused_at_once(tmp_path):
    with start(tmp_path, *SLOW, "--max-num-queued-reqs", "2", "--max-num-seqs", "1").until_up() as own:
        links = [own.open(stream=True) for _ in range(2)]
        assert wait_for(lambda: present(own) == 2)
        reply = own.complete()
        assert reply.status == 503 and "Retry-After" not in reply.headers
        assert own.metric("vllm:admission_rejections_total", reason="max_num_queued_reqs") == 1
        assert own.metric("vllm:num_requests_waiting_by_reason", reason="capacity") == 1
        for link in links:
            link.close()


def test_priority_scheduling_serves_the_urgent_first(tmp_path):
    with start(tmp_path, *FAST, "--max-num-seqs", "1", "--scheduling-policy", "priority").until_up() as own:
        order: list[int] = []

        def ask(priority: int, tokens: int) -> None:
            own.complete(prompt=f"p{priority}", max_tokens=tokens, ignore_eos=True, priority=priority)
            order.append(priority)

        threads = []
        # The first is so long that it still runs when the last one comes, and has something left after that; each ends
        # long after the one before it, so that this process has seen that end.
        for priority, tokens in ((0, 900), (10, 900), (-10, 150)):
            threads.append(threading.Thread(target=ask, args=(priority, tokens)))
            threads[-1].start()
            assert wait_for(lambda: present(own) == len(threads))
        for thread in threads:
            thread.join()
        assert order == [-10, 0, 10]


def test_the_priority_header_wins_over_the_body(tmp_path):
    with start(tmp_path, *SLOW, "--max-num-seqs", "1", "--scheduling-policy", "priority").until_up() as own:
        running = own.open(stream=True, max_tokens=900)
        assert wait_for(lambda: own.metric("vllm:num_requests_running") == 1)
        body = {"prompt": "urgent", "max_tokens": 1, "priority": 5}
        assert own.post("/v1/completions", body, {"X-Vllm-Priority": "-5"}).status == 200
        assert own.metric("vllm:num_preemptions_total") == 1
        running.close()


def test_times_of_a_request_are_in_its_answer_where_asked_for(tmp_path):
    with start(tmp_path, *FAST, "--enable-per-request-metrics").until_up() as own:
        metrics = own.complete(max_tokens=5).json()["metrics"]
        # Zero, where the process got no time before all five were due.
        assert metrics["mean_itl_ms"] * 4 == pytest.approx(metrics["generation_time_ms"])
        assert metrics["tokens_per_second"] is None or metrics["tokens_per_second"] > 0
        events = own.complete(max_tokens=5, stream=True, stream_options={"include_usage": True}).events()
        assert "speculative_decoding" not in events[-2]["metrics"] and events[-2]["metrics"]["queue_time_ms"] >= 0
        assert own.complete(n=2, temperature=1).json()["metrics"] is None


def test_a_key_guards_only_some_prefixes(tmp_path):
    with start(tmp_path, *FAST, "--api-key", "sekret", "other").until_up() as own:
        assert own.complete().json() == {"error": "Unauthorized"}
        for key in ("sekret", "other"):
            body, headers = {"prompt": "x", "max_tokens": 1}, {"Authorization": f"Bearer {key}"}
            assert own.post("/v1/completions", body, headers).status == 200
        for path in ("/metrics", "/load", "/version", "/health"):
            assert own.get(path).status == 200
        assert own.post("/invocations", {"prompt": "x", "max_tokens": 1}).status == 200


def test_optional_flags_change_the_answers(tmp_path):
    flags = ("--enable-request-id-headers", "--enable-prompt-tokens-details", "--fingerprint-mode", "none")
    more = ("--enable-server-load-tracking", "--served-model-name", "one", "two", "--lora-modules", "sql=/a")
    with start(tmp_path, *SLOW, *flags, *more).until_up() as own:
        prompt = "x" * 400
        own.complete(prompt=prompt)
        reply = own.post("/v1/completions", {"model": "two", "prompt": prompt, "max_tokens": 1}, {"X-Request-Id": "r1"})
        assert reply.headers["x-request-id"] == "r1"
        assert reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 96
        assert (reply.json()["system_fingerprint"], reply.json()["model"]) == (None, "one")
        adapter = own.post("/v1/completions", {"model": "sql", "prompt": "x", "max_tokens": 1}).json()
        assert adapter["model"] == "sql"
        assert [m["id"] for m in own.get("/v1/models").json()["data"]] == ["one", "two", "sql"]
        assert own.metric("vllm:num_requests_running", model_name="one") == 0
        link = own.open(stream=True)
        assert wait_for(lambda: own.get("/load").json() == {"server_load": 1})
        link.close()


def test_keep_alive_comments_fill_the_wait_for_the_first_token(tmp_path):
    with start(tmp_path, *FAST, "--sse-keep-alive-interval", "1", admin=True).until_up() as own:
        own.fault(kind="hang")
        link, data = own.open(stream=True, max_tokens=2), b""
        while b": keep-alive\n\n" not in data:
            data += link.recv(65536)
        assert b"data: " not in data
        own.fault(kind="clear")
        assert read_all(link).count(b"data: ") == 3


def test_prompts_and_answers_never_reach_the_log(tmp_path):
    secret = "correct horse battery staple"
    with start(tmp_path, *FAST, env={"VLLM_LOGGING_LEVEL": "DEBUG"}).until_up() as own:
        answer = own.complete(prompt=secret).json()["choices"][0]["text"]
        own.post("/v1/completions", b'{"prompt": "' + secret.encode() + b'", "max_tokens": []}')
        own.post("/v1/chat/completions", {"messages": [{"role": "user", "content": secret}], "max_tokens": 1})
    log = own.log.read_text()
    assert "horse" not in log and answer.strip() not in log and "listening" in log


def test_pipelined_requests_are_answered_in_order_and_idle_connections_end(tmp_path):
    with start(tmp_path, *FAST, env={"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "1"}).until_up() as own:
        link = socket.create_connection(("127.0.0.1", own.port), timeout=60)
        link.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\nGET /load HTTP/1.1\r\nHost: x\r\n\r\n")
        data = b""
        while part := link.recv(4096):
            data += part
        assert data.index(b'{"version"') < data.index(b'{"server_load"')


def test_0_33_differs_where_its_sources_do(tmp_path):
    with start(tmp_path, *FAST, "--sim-vllm-version", "0.33").until_up() as own:
        assert own.get("/version").json() == {"version": "0.33.0"}
        assert own.complete().json()["system_fingerprint"].startswith("vllm-0.33.0-")


def test_the_process_stays_small_and_loads_nothing_heavy(engine):
    assert int(process_status(engine)["VmRSS"].split()[0]) < 60 * 1024
    maps = Path(f"/proc/{engine.process.pid}/maps").read_text()
    assert not any(name in maps for name in ("torch", "numpy", "aiohttp", "pydantic"))


def test_a_token_that_is_no_number_is_a_schema_error(engine):
    reply = engine.post("/detokenize", {"tokens": ["x"]})
    assert reply.status == 400 and json.loads(reply.body)["error"]["param"] == "body.tokens.0"
