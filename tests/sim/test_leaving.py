"""How the process goes away: signals, engine deaths, faults on command."""

import http.client
import signal

import pytest

from sim.engine import read_all, start, until_silent, wait_for

SLOW = ("--sim-step-a", "5", "--sim-step-b", "0", "--sim-step-c", "0", "--sim-step-d", "0")


def last_events(data: bytes) -> list[bytes]:
    return [line[6:] for line in data.split(b"\n") if line.startswith(b"data: ")][-2:]


def test_the_port_refuses_connections_until_the_engine_is_up(tmp_path):
    with start(tmp_path, "--sim-load-seconds", "5") as own:
        assert wait_for(lambda: b"API server version" in own.log.read_bytes())
        assert not own.up()
        own.until_up()


def test_a_taken_port_ends_the_start(tmp_path):
    with start(tmp_path, *SLOW).until_up() as own, start(tmp_path, *SLOW, "--port", str(own.port)) as second:
        assert second.exit_code() == 1
        assert b"cannot bind" in second.log.read_bytes()


@pytest.mark.parametrize("form", [(), ("--sim-sigterm-ends", "error")])
def test_sigterm_ends_a_lone_stream_with_an_error_event_and_done(tmp_path, form):
    with start(tmp_path, *SLOW, *form).until_up() as own:
        stream = own.open(stream=True)
        assert wait_for(lambda: own.metric("vllm:num_requests_running") == 1)
        own.signal(signal.SIGTERM)
        event, done = last_events(read_all(stream))
        assert event.startswith(b'{"error": {"message": "EngineCore encountered an issue') and done == b"[DONE]"
        assert own.exit_code() == 0


def test_sigterm_can_leave_a_stream_silent_until_its_client_goes(tmp_path):
    with start(tmp_path, *SLOW, "--sim-sigterm-ends", "silence").until_up() as own:
        stream = own.open(stream=True)
        assert wait_for(lambda: own.metric("vllm:num_requests_running") == 1)
        own.signal(signal.SIGTERM)
        assert wait_for(lambda: not own.up())
        until_silent(stream, 0.5)
        assert until_silent(stream, 0.5) == b"" and own.process.poll() is None
        stream.close()
        assert own.exit_code() == 0


def test_sigterm_ends_several_requests_with_finish_reason_abort(tmp_path):
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 900}
    with start(tmp_path, *SLOW).until_up() as own:
        stream, unary = own.open(stream=True), own.open()
        message = own.open("/v1/messages", stream=True, model="tiny", **chat)
        response = own.open("/v1/responses", stream=True, input="hi")
        assert wait_for(lambda: own.metric("vllm:num_requests_running") == 4)
        own.signal(signal.SIGTERM)
        event, done = last_events(read_all(stream))
        assert b'"finish_reason":"abort"' in event and done == b"[DONE]"
        answer = unary.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200 ") and b'"finish_reason":"abort"' in answer
        delta, stop = last_events(read_all(message))
        assert b'"stop_reason":null' in delta and stop == b'{"type":"message_stop"}'
        assert b'"type":"response.completed"' in last_events(read_all(response))[1]
        assert own.exit_code() == 0


def test_an_engine_death_ends_each_kind_of_stream_its_own_way(tmp_path):
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 900}
    with start(tmp_path, *SLOW, admin=True).until_up() as own:
        message = own.open("/v1/messages", stream=True, model="tiny", **chat)
        response = own.open("/v1/responses", stream=True, input="hi")
        assert wait_for(lambda: own.metric("vllm:num_requests_running") == 2)
        own.fault(kind="die", what="engine")
        data = read_all(message)
        assert b'event: error\ndata: {"type":"error","error":{"type":"internal_error"' in data
        assert b"message_stop" not in data and data.endswith(b"0\r\n\r\n")
        data = read_all(response)
        assert b'"error":{' not in data and not data.endswith(b"0\r\n\r\n")


def test_with_a_shutdown_timeout_streams_finish_health_stays_and_new_requests_get_500(tmp_path):
    with start(tmp_path, *SLOW, "--shutdown-timeout", "20").until_up() as own:
        stream = own.open(stream=True, max_tokens=900)
        assert wait_for(lambda: own.metric("vllm:num_requests_running") == 1)
        own.signal(signal.SIGTERM)
        assert wait_for(lambda: own.complete().status == 500)
        refused = own.complete().json()["error"]
        assert refused["message"] == "cannot schedule new futures after shutdown"
        assert own.get("/health").status == 200
        data = read_all(stream)
        assert data.count(b"data: {") == 900 and b'"finish_reason":"length"' in last_events(data)[0]
        assert own.exit_code() == 0


def test_what_is_not_done_within_the_shutdown_timeout_is_ended(tmp_path):
    with start(tmp_path, *SLOW, "--shutdown-timeout", "1").until_up() as own:
        stream = own.open(stream=True)
        assert wait_for(lambda: own.metric("vllm:num_requests_running") == 1)
        own.signal(signal.SIGTERM)
        assert b'"error"' in last_events(read_all(stream))[0]
        assert own.exit_code() == 0


def test_sigterm_while_loading_ends_at_once(tmp_path):
    with start(tmp_path, "--sim-load-seconds", "60") as own:
        assert wait_for(lambda: b"loading the model" in own.log.read_bytes())
        own.signal(signal.SIGTERM)
        assert own.exit_code(40) == 0


def test_a_dead_engine_fails_everything_and_the_process_ends_with_0(tmp_path):
    with start(tmp_path, *SLOW, "--sim-teardown-scale", "6", admin=True).until_up() as own:
        stream = own.open(stream=True)
        assert wait_for(lambda: own.metric("vllm:num_requests_running") == 1)
        own.fault(kind="die", what="engine")
        event, done = last_events(read_all(stream))
        assert b'"code": 500' in event and done == b"[DONE]"
        assert (own.get("/health").status, own.complete().status) == (503, 500)
        assert own.exit_code() == 0


def test_a_killed_process_says_nothing(tmp_path):
    with start(tmp_path, *SLOW, admin=True).until_up() as own:
        stream = own.open(stream=True)
        own.fault(kind="die")
        assert own.exit_code() == -signal.SIGKILL
        with pytest.raises(ConnectionResetError):
            while stream.recv(65536):
                pass
            raise ConnectionResetError


def test_a_process_dies_at_the_token_it_was_told(tmp_path):
    with start(tmp_path, *SLOW, admin=True).until_up() as own:
        own.fault(kind="die_at_token", token=5)
        stream, data = own.open(stream=True), b""
        try:
            while part := stream.recv(65536):
                data += part
        except ConnectionResetError:
            pass
        assert own.exit_code() == -signal.SIGKILL
        assert data.count(b"data: {") <= 5 and b"[DONE]" not in data


def test_token_faults_strike_one_stream_and_leave_the_engine_alive(tmp_path):
    with start(tmp_path, *SLOW, admin=True).until_up() as own:
        own.fault(kind="error_event", token=3)
        data = read_all(own.open(stream=True, max_tokens=10))
        assert data.count(b"data: {") == 4 and b'"error"' in last_events(data)[0]
        own.fault(kind="cut", token=2)
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
            own.complete(stream=True, max_tokens=10)
        assert own.complete(stream=True, max_tokens=10).events()[-1] == "[DONE]"
        assert wait_for(lambda: own.metric("vllm:num_requests_running") == 0)


def test_a_refusing_engine_resets_every_request_until_cleared(tmp_path):
    with start(tmp_path, *SLOW, admin=True).until_up() as own:
        own.fault(kind="refuse")
        with pytest.raises((ConnectionResetError, http.client.RemoteDisconnected)):
            own.get("/health")
        own.fault(kind="clear")
        assert own.get("/health").status == 200


def test_a_slow_engine_takes_longer_per_token(tmp_path):
    with start(tmp_path, *SLOW, admin=True).until_up() as own:
        own.complete(max_tokens=3)
        before = own.metric("vllm:inter_token_latency_seconds_sum")
        own.fault(kind="slow", factor=20)
        own.complete(max_tokens=3)
        assert own.metric("vllm:inter_token_latency_seconds_sum") - before >= 0.18


def test_a_hanging_worker_kills_the_engine_after_the_execute_timeout(tmp_path):
    with start(tmp_path, *SLOW, env={"VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "0.5"}, admin=True).until_up() as own:
        own.fault(kind="hang")
        event, done = last_events(read_all(own.open(stream=True)))
        assert b'"error"' in event and done == b"[DONE]"
        assert own.exit_code() == 0


def test_wrong_faults_say_what_to_write(tmp_path):
    with start(tmp_path, *SLOW, admin=True).until_up() as own:
        with pytest.raises(AssertionError, match="kind: 'explode' is not one of die, hang"):
            own.fault(kind="explode")
        with pytest.raises(AssertionError, match="seconds: 'long' is not a number of at least 0"):
            own.fault(kind="hang", seconds="long")
