"""Prefill/decode over the NIXL stand-in: both legs, the lease, and the table of failures."""

import json
import signal
from contextlib import ExitStack

import pytest

from sim.engine import free_port, read_all, start, wait_for

LEG_ONE = {"do_remote_decode": True, "do_remote_prefill": False}
PROMPT = "The quick brown fox jumps over the lazy dog. " * 10


def starter(stack, folder):
    """Give a function that starts a prefill or a decode engine."""

    def engine(role, *flags, **config):
        given = {"kv_connector": "NixlConnector", "kv_role": role, **config}
        port = free_port()
        env = {"VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1", "VLLM_NIXL_SIDE_CHANNEL_PORT": str(port)}
        process = start(folder, "--sim-step-a", "3", "--kv-transfer-config", json.dumps(given), *flags, env=env)
        process.extra["side"] = port
        return stack.enter_context(process).until_up()

    return engine


@pytest.fixture
def engines(tmp_path):
    """Start engines of a test's own."""
    with ExitStack() as stack:
        yield starter(stack, tmp_path)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """One prefill and one decode engine for the tests that leave them alive."""
    with ExitStack() as stack:
        engine = starter(stack, tmp_path_factory.mktemp("pair"))
        yield engine("kv_producer"), engine("kv_consumer")


def leg_one(prefill, prompt=PROMPT):
    """Run the first leg; gives what the second needs."""
    answer = prefill.complete(prompt=prompt, max_tokens=1, kv_transfer_params=LEG_ONE).json()
    return answer["kv_transfer_params"]


def leg_two(decode, params, prompt=PROMPT, **more):
    return decode.complete(prompt=prompt, max_tokens=6, ignore_eos=True, kv_transfer_params=params, **more)


def test_both_legs_give_what_one_engine_gives_and_free_the_blocks(pair):
    prefill, decode = pair
    alone = prefill.complete(prompt=PROMPT, max_tokens=6, ignore_eos=True).json()["choices"][0]["text"]
    params = leg_one(prefill)
    assert list(params) == [
        *("do_remote_prefill", "do_remote_decode", "remote_block_ids", "remote_engine_id", "remote_request_id"),
        *("remote_host", "remote_port", "tp_size", "dcp_size", "pp_size", "remote_num_tokens"),
        *("remote_blocks_expiry_time", "transfer_mode", "remote_prefill_cached_tokens"),
    ]
    assert (params["remote_port"], params["remote_num_tokens"]) == (prefill.extra["side"], 113)
    assert prefill.metric("vllm:kv_cache_usage_perc") > 0
    reply = leg_two(decode, params)
    assert (reply.status, reply.json()["choices"][0]["text"]) == (200, alone)
    assert reply.json()["kv_transfer_params"] is None
    assert wait_for(lambda: prefill.metric("vllm:kv_cache_usage_perc") == 0)
    assert decode.metric("vllm:external_prefix_cache_hits_total") == 113
    assert decode.metric("vllm:prompt_tokens_cached_by_source_total", source="p2p") == 113
    assert decode.metric("vllm:prompt_tokens_by_source_total", source="external_kv_transfer") == 113
    assert decode.metric("vllm:nixl_bytes_transferred_sum") > 0


def test_a_streamed_second_leg_is_an_ordinary_stream(pair):
    prefill, decode = pair
    events = leg_two(decode, leg_one(prefill), stream=True).events()
    assert len(events) == 7 and events[-1] == "[DONE]"


def test_a_chat_hands_its_token_ids_over(pair):
    prefill, decode = pair
    chat = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4, "ignore_eos": True}
    alone = prefill.post("/v1/chat/completions", chat).json()["choices"][0]["message"]["content"]
    one = {**chat, "max_tokens": 1, "return_token_ids": True, "kv_transfer_params": LEG_ONE}
    first = prefill.post("/v1/chat/completions", one).json()
    params = {**first["kv_transfer_params"], "prompt_token_ids": first["prompt_token_ids"]}
    two = {**chat, "messages": [{"role": "user", "content": "not read"}], "kv_transfer_params": params}
    answer = decode.post("/v1/chat/completions", two).json()
    assert answer["choices"][0]["message"]["content"] == alone
    assert answer["usage"]["prompt_tokens"] == first["usage"]["prompt_tokens"]


def test_blocks_nobody_reads_are_freed_when_the_lease_ends(engines):
    prefill = engines("kv_producer", kv_connector_extra_config={"kv_lease_duration": 6})
    leg_one(prefill)
    assert prefill.metric("vllm:kv_cache_usage_perc") > 0
    assert wait_for(lambda: prefill.metric("vllm:nixl_num_kv_expired_reqs_total") == 1)
    assert prefill.metric("vllm:kv_cache_usage_perc") == 0


def test_a_read_after_the_lease_counts_as_a_late_notification(engines):
    prefill = engines("kv_producer", kv_connector_extra_config={"kv_lease_duration": 0.3})
    decode, params = engines("kv_consumer"), leg_one(prefill)
    assert wait_for(lambda: prefill.metric("vllm:nixl_num_kv_expired_reqs_total") == 1)
    assert leg_two(decode, params).status == 200
    assert wait_for(lambda: prefill.metric("vllm:nixl_num_notifications_after_expiry_total") == 1)


def test_params_used_with_another_prompt_continue_the_first_one(pair):
    prefill, decode = pair
    params = leg_one(prefill)
    right = leg_two(decode, params).json()["choices"][0]["text"]
    assert leg_two(decode, params, prompt="something else entirely " * 8).json()["choices"][0]["text"] == right


def test_a_dead_prefill_engine_fails_the_second_leg(engines):
    prefill, decode = engines("kv_producer"), engines("kv_consumer")
    leg_two(decode, leg_one(prefill))
    params = leg_one(prefill)
    prefill.signal(signal.SIGKILL)
    prefill.exit_code()
    for _ in range(2):
        reply = leg_two(decode, params)
        assert (reply.status, reply.json()["error"]["message"]) == (500, "Internal server error")
    assert decode.metric("vllm:nixl_num_failed_transfers_total") == 2
    assert decode.complete().status == 200
    assert decode.metric("vllm:kv_cache_usage_perc") == 0


def test_an_unreachable_side_channel_fails_a_stream_with_an_event(pair):
    prefill, decode = pair
    wrong = {**leg_one(prefill), "remote_port": free_port(), "remote_engine_id": "unknown"}
    reply = leg_two(decode, wrong, stream=True)
    assert reply.status == 200 and reply.events()[0]["error"]["code"] == 500 and reply.events()[1] == "[DONE]"


def test_a_wrong_engine_id_is_a_mismatch(pair):
    prefill, decode = pair
    reply = leg_two(decode, {**leg_one(prefill), "remote_engine_id": "deadbeef"})
    assert reply.status == 500 and "engine ID mismatch" in reply.json()["error"]["message"]


def test_engines_of_different_versions_never_pair(engines):
    prefill, decode = engines("kv_producer"), engines("kv_consumer", "--sim-vllm-version", "0.33")
    assert leg_two(decode, leg_one(prefill)).status == 500


def test_with_the_recompute_policy_a_failed_pull_becomes_a_local_prefill(engines):
    prefill, decode = engines("kv_producer"), engines("kv_consumer", kv_load_failure_policy="recompute")
    alone = leg_two(prefill, None).json()["choices"][0]["text"]
    reply = leg_two(decode, {**leg_one(prefill), "remote_port": free_port(), "remote_engine_id": "unknown"})
    assert (reply.status, reply.json()["choices"][0]["text"]) == (200, alone)
    assert decode.metric("vllm:prompt_tokens_by_source_total", source="local_compute") == 113


def test_params_without_remote_fields_kill_the_decode_engine(engines):
    decode = engines("kv_consumer")
    reply = leg_two(decode, {"do_remote_prefill": True})
    assert reply.status == 500
    assert decode.exit_code() == 0


def test_params_are_ignored_without_a_connector(tmp_path):
    with start(tmp_path).until_up() as own:
        reply = own.complete(kv_transfer_params={"do_remote_prefill": True})
        assert (reply.status, reply.json()["kv_transfer_params"]) == (200, None)


def test_a_draining_prefill_engine_stays_until_its_blocks_are_read(engines):
    prefill, decode = engines("kv_producer", "--shutdown-timeout", "30"), engines("kv_consumer")
    params = leg_one(prefill)
    prefill.signal(signal.SIGTERM)
    assert not wait_for(lambda: prefill.process.poll() is not None, 1)
    assert leg_two(decode, params).status == 200
    assert prefill.exit_code() == 0


def test_a_client_that_leaves_during_a_pull_frees_everything(engines):
    prefill, decode = engines("kv_producer"), engines("kv_consumer", "--sim-kv-transfer-us", "100000")
    link = decode.open(prompt=PROMPT, stream=True, kv_transfer_params=leg_one(prefill))
    assert wait_for(lambda: decode.metric("vllm:num_requests_waiting_by_reason", reason="deferred") == 1)
    link.close()
    assert wait_for(lambda: decode.metric("vllm:num_requests_waiting") == 0)
    assert wait_for(lambda: decode.metric("vllm:kv_cache_usage_perc") == 0)
    assert wait_for(lambda: prefill.metric("vllm:kv_cache_usage_perc") == 0)


def test_a_prompt_that_waits_for_a_seat_keeps_its_lease(engines):
    lease = {"kv_lease_duration": 6}
    prefill = engines("kv_producer", kv_connector_extra_config=lease)
    decode = engines("kv_consumer", "--max-num-seqs", "1", "--sim-step-a", "10", kv_connector_extra_config=lease)
    first = decode.open(prompt="x", stream=True, max_tokens=900)
    assert wait_for(lambda: decode.metric("vllm:num_requests_running") == 1)
    second = decode.open(prompt=PROMPT, stream=True, max_tokens=3, kv_transfer_params=leg_one(prefill))
    assert b"[DONE]" in read_all(second)
    first.close()
    assert prefill.metric("vllm:nixl_num_kv_expired_reqs_total") == 0
    assert wait_for(lambda: prefill.metric("vllm:kv_cache_usage_perc") == 0)
