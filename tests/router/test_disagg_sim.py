"""The router before simulated prefill and decode engines: the same text as from one engine, whatever fails between.

One test for each row of the table in docs/disaggregation.md. The engines are processes that hand KV over as vLLM's NIXL
connector does, with its leases and its ways to fail; what happens between the legs is arranged in the router's process.
"""

import asyncio
import json
import signal
from contextlib import ExitStack, asynccontextmanager
from functools import partial

import orjson
import pytest
from bed import Bed, Remade, scenario

from llmfleet.api.document import Role, State
from sim.engine import free_port, start

PROMPT = "The quick brown fox jumps over the lazy dog. " * 10
ASK = {"model": "tiny", "prompt": PROMPT, "max_tokens": 6, "ignore_eos": True}


class Outside:
    """An engine that is a process of its own, where the bed expects one of its own."""

    def __init__(self, process):
        self.process = process
        self.address = f"127.0.0.1:{process.port}"

    async def start(self):
        return None

    async def stop(self):
        return None


class SimBed(Bed):
    """A router before prefill engines p0, p1, ... and decode engines d0, d1, ..."""

    def __init__(self, engines, settings):
        super().__init__(settings={"disaggregation": settings})
        self.names = list(engines)
        self.processes = engines
        self.engines = [Outside(process) for process in engines.values()]

    def publish(self, **changes):
        roles = {"p": Role.PREFILL, "d": Role.DECODE}
        every = {
            f"e{i}": {"role": roles[name[0]], "engine_revision": "r"} | changes.get(name, {})
            for i, name in enumerate(self.names)
        }
        return super().publish(**every)

    def backend(self, name):
        instance = f"e{self.names.index(name)}"
        return next(b for b in self.router.fleet.backends.values() if b.instance == instance)

    def ways(self):
        return dict(self.router.metrics.model("m").ways)

    async def request(self, path="/v1/completions", **changes):
        return await self.ask(ASK | {"model": "m"} | changes, path=path)

    async def metric(self, name, what, **labels):
        return await asyncio.to_thread(partial(self.processes[name].metric, what, **labels))

    async def reaches(self, name, what, value, **labels):
        for _ in range(400):
            if await self.metric(name, what, **labels) == value:
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"{what} of {name} never became {value}")


def launch(stack, folder, role, *flags, **config):
    port = free_port()
    given = {"kv_connector": "NixlConnector", "kv_role": role, **config}
    env = {"VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1", "VLLM_NIXL_SIDE_CHANNEL_PORT": str(port)}
    names = ("--served-model-name", "m", "--sim-step-a", "3")
    process = start(folder, *names, "--kv-transfer-config", json.dumps(given), *flags, env=env)
    return stack.enter_context(process)


@asynccontextmanager
async def bed(folder, prefill=1, decode=1, settings=None, flags=(), decode_flags=(), **config):
    """Start engines and a router before them."""
    with ExitStack() as stack:
        engines = {f"p{i}": launch(stack, folder, "kv_producer", *flags, **config) for i in range(prefill)}
        engines |= {
            f"d{i}": launch(stack, folder, "kv_consumer", *flags, *decode_flags, **config) for i in range(decode)
        }
        for process in engines.values():
            process.until_up()
        async with SimBed(engines, settings or {}) as running:
            yield running


def alone(process, **changes):
    """What one engine says without a hand-off."""
    return process.complete(**ASK | {"model": "m"} | changes).json()["choices"][0]["text"]


def between(running, happening):
    """Do something once between the two legs; it may change what the first one answered."""
    pending = [happening]

    def remake(kind):
        class Interrupted(kind):
            def _take(self, body):
                super()._take(pending.pop()(body) or body if pending else body)

        return Interrupted

    running.router.tracer = Remade(remake)


def changed(answer, **changes):
    document = orjson.loads(answer)
    document["kv_transfer_params"] |= changes
    return orjson.dumps(document)


def text(answer):
    """The text of a unary or streamed completion."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.events[-1] == b"data: [DONE]\n\n"
        chunks = [orjson.loads(event[6:]) for event in answer.events[:-1]]
        assert not any("error" in chunk for chunk in chunks)
        return "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"])
    return answer.json["choices"][0]["text"]


# ---- what goes right ----


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@scenario
async def test_the_text_is_that_of_one_engine_and_the_prompt_is_computed_by_the_other(tmp_path, stream):
    async with bed(tmp_path) as running:
        expected = await asyncio.to_thread(alone, running.processes["p0"])
        answer = await running.request(stream=stream)
        assert (answer.status, text(answer)) == (200, expected)
        source = "vllm:prompt_tokens_by_source_total"
        assert await running.metric("d0", source, source="external_kv_transfer") == 113
        assert await running.metric("d0", source, source="local_compute") == 0
        assert await running.metric("p0", "vllm:kv_cache_usage_perc") == 0
        assert running.ways() == {"split": 1}


@scenario
async def test_every_route_hands_its_prompt_over(tmp_path):
    async with bed(tmp_path) as running:
        chat = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4}
        requests = [
            ("/v1/chat/completions", chat),
            ("/v1/messages", chat),
            ("/v1/responses", {"model": "m", "input": PROMPT, "max_output_tokens": 4}),
        ]
        for path, body in requests:
            for stream in (False, True):
                answer = await running.ask(body | {"stream": stream}, path=path)
                assert (answer.status, answer.ended) == (200, "whole"), (path, answer.body)
                assert b"do_remote" not in answer.body, "what engines tell each other is not for clients"
        assert running.ways() == {"split": 6}
        assert await running.metric("d0", "vllm:prompt_tokens_by_source_total", source="local_compute") == 0
        assert await running.metric("p0", "vllm:kv_cache_usage_perc") == 0


@scenario
async def test_two_hundred_prompts_at_once_each_continue_their_own(tmp_path):
    flags = ("--sim-step-a", "1")
    async with bed(tmp_path, prefill=2, decode=2, flags=flags, settings={"maxWaiting": 1000}) as running:
        prompts = [f"{n} is the number of this prompt " * 6 for n in range(200)]
        sample = {p: await asyncio.to_thread(alone, running.processes["p0"], prompt=p) for p in prompts[::20]}
        gate = asyncio.Semaphore(24)

        async def one(number, prompt):
            async with gate:
                return prompt, await running.request(prompt=prompt, stream=number % 2 == 0)

        answers = await asyncio.gather(*(one(n, p) for n, p in enumerate(prompts)))
        assert {a.status for _, a in answers} == {200}
        assert all(text(a) == sample[p] for p, a in answers if p in sample)
        assert running.ways() == {"split": 200} and running.counter("retries") == {}
        for name in ("p0", "p1", "d0", "d1"):
            assert await running.metric(name, "vllm:kv_cache_usage_perc") == 0
            assert await running.metric(name, "vllm:num_requests_running") == 0
        assert running.in_flight() == 0


# ---- rows of the failure table ----


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@scenario
async def test_a_prefill_engine_killed_between_the_legs_costs_time_and_nothing_else(tmp_path, stream):
    async with bed(tmp_path, prefill=2) as running:
        expected = await asyncio.to_thread(alone, running.processes["p0"])
        victim = running.processes["p0"]

        def kill(answer):
            victim.signal(signal.SIGKILL)
            victim.exit_code()

        between(running, kill)
        answer = await running.request(stream=stream)
        assert (answer.status, text(answer)) == (200, expected)
        assert running.counter("retries") == {"error_event" if stream else "status": 1}
        assert running.ways() == {"split": 2}
        assert (await running.request()).status == 200


@scenario
async def test_the_only_prefill_engine_killed_leaves_decode_serving_alone(tmp_path):
    async with bed(tmp_path) as running:
        expected = await asyncio.to_thread(alone, running.processes["p0"])
        victim = running.processes["p0"]
        between(running, lambda answer: (victim.signal(signal.SIGKILL), victim.exit_code())[2:])
        assert text(await running.request(stream=True)) == expected
        for _ in range(5):
            assert text(await running.request(stream=True)) == expected
        assert running.ways()["fallback"] == 6


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("prefill", [1, 2], ids=["one prefill engine", "two"])
@scenario
async def test_an_unreachable_side_channel_is_never_seen_by_the_client(tmp_path, stream, prefill):
    async with bed(tmp_path, prefill=prefill) as running:
        expected = await asyncio.to_thread(alone, running.processes["p0"])
        between(running, lambda answer: changed(answer, remote_port=free_port(), remote_engine_id="unknown"))
        answer = await running.request(stream=stream)
        assert (answer.status, text(answer)) == (200, expected)
        assert running.ways() == ({"split": 2} if prefill == 2 else {"split": 1, "fallback": 1})


@scenario
async def test_a_wrong_engine_id_is_never_seen_by_the_client(tmp_path):
    async with bed(tmp_path) as running:
        expected = await asyncio.to_thread(alone, running.processes["p0"])
        between(running, lambda answer: changed(answer, remote_engine_id="deadbeef"))
        answer = await running.request()
        assert (answer.status, text(answer)) == (200, expected)
        assert running.counter("retries") == {"status": 1}


@scenario
async def test_without_a_fallback_a_failed_handoff_without_another_pair_is_an_error(tmp_path):
    async with bed(tmp_path, settings={"fallback": "none"}) as running:
        between(running, lambda answer: changed(answer, remote_engine_id="deadbeef"))
        answer = await running.request(stream=True)
        assert (answer.status, answer.error["code"]) == (500, 500)
        assert (await running.request(stream=True)).status == 200


@scenario
async def test_with_the_recompute_policy_the_decode_engine_heals_it_alone(tmp_path):
    async with bed(tmp_path, kv_load_failure_policy="recompute") as running:
        expected = await asyncio.to_thread(alone, running.processes["p0"])
        between(running, lambda answer: changed(answer, remote_port=free_port(), remote_engine_id="unknown"))
        answer = await running.request(stream=True)
        assert (answer.status, text(answer)) == (200, expected)
        assert running.counter("retries") == {} and running.ways() == {"split": 1}


@scenario
async def test_an_engine_without_a_connector_is_found_out_before_decode_is_asked(tmp_path):
    with ExitStack() as stack:
        plain = stack.enter_context(start(tmp_path, "--served-model-name", "m"))
        decode = launch(stack, tmp_path, "kv_consumer")
        plain.until_up()
        decode.until_up()
        async with SimBed({"p0": plain, "d0": decode}, {}) as running:
            assert text(await running.request()) == await asyncio.to_thread(alone, decode)
            assert running.counter("retries") == {"prefill_no_handoff": 1}


@scenario
async def test_engines_that_cannot_read_each_other_serve_all_the_same(tmp_path):
    async with bed(tmp_path, decode_flags=("--sim-vllm-version", "0.33")) as running:
        for _ in range(5):
            assert (await running.request(stream=True)).status == 200
        assert running.backend("p0").breaker.opened == 1, "after three failures the prefill engine is left alone"
        assert running.ways()["fallback"] == 5


@scenario
async def test_a_decode_engine_killed_between_the_legs_means_a_new_first_leg_and_another_decode_engine(
    tmp_path,
):
    async with bed(tmp_path, decode=2) as running:
        expected = await asyncio.to_thread(alone, running.processes["p0"])
        victim = running.processes["d0"]
        between(running, lambda answer: (victim.signal(signal.SIGKILL), victim.exit_code())[2:])
        answer = await running.request(stream=True)
        assert (answer.status, text(answer)) == (200, expected)
        assert running.ways() == {"split": 2}
        assert dict(running.backend("p0").ledger.fates) == {"failed": 1, "used": 1}


@scenario
async def test_a_decode_engine_killed_in_the_middle_of_an_answer_ends_it_with_an_error_event(tmp_path):
    async with bed(tmp_path, decode=2, decode_flags=("--sim-step-a", "20")) as running:
        client = await running.client()
        await client.send(ASK | {"model": "m", "stream": True, "max_tokens": 500}, path="/v1/completions")
        status, _ = await client.head()
        first = await client.chunk()
        busy = "d0" if running.backend("d0").in_flight else "d1"
        running.processes[busy].signal(signal.SIGKILL)
        rest = b""
        while piece := await client.reader.read(65536):
            rest += piece
        assert status == 200 and b"choices" in first
        assert b"the engine was lost in the middle of the answer" in rest and b"[DONE]" not in rest


@scenario
async def test_a_draining_prefill_engine_hands_over_what_it_has_computed(tmp_path):
    async with bed(tmp_path, flags=("--shutdown-timeout", "30")) as running:
        expected = await asyncio.to_thread(alone, running.processes["p0"])
        between(running, lambda answer: running.processes["p0"].signal(signal.SIGTERM))
        assert text(await running.request(stream=True)) == expected
        assert running.ways() == {"split": 1}
        generation = running.publish(p0={"state": State.DRAINING})
        await running.adopted(generation)
        assert text(await running.request(stream=True)) == expected
        assert running.ways() == {"split": 1, "fallback": 1}
        assert await asyncio.to_thread(running.processes["p0"].exit_code) == 0


@scenario
async def test_a_client_that_leaves_during_the_transfer_frees_decode_at_once_and_prefill_within_its_lease(tmp_path):
    lease = {"kv_lease_duration": 2}
    flags = ("--sim-kv-transfer-us", "50000")
    settings = {"kvLeaseSeconds": 2}
    async with bed(tmp_path, settings=settings, flags=flags, kv_connector_extra_config=lease) as running:
        client = await running.client()
        await client.send(ASK | {"model": "m", "stream": True}, path="/v1/completions")
        await running.reaches("d0", "vllm:num_requests_waiting_by_reason", 1, reason="deferred")
        client.writer.close()
        await running.until(lambda: running.in_flight() == 0)
        await running.reaches("d0", "vllm:num_requests_waiting", 0)
        await running.reaches("d0", "vllm:kv_cache_usage_perc", 0)
        assert dict(running.backend("p0").ledger.fates) == {"abandoned": 1}
        await running.reaches("p0", "vllm:kv_cache_usage_perc", 0)


@scenario
async def test_a_client_that_leaves_during_the_prefill_stops_it(tmp_path):
    async with bed(tmp_path, flags=("--sim-step-c", "50")) as running:
        client = await running.client()
        await client.send(ASK | {"model": "m"}, path="/v1/completions")
        await running.reaches("p0", "vllm:num_requests_running", 1)
        client.writer.close()
        await running.until(lambda: running.in_flight() == 0)
        await running.reaches("p0", "vllm:num_requests_running", 0)
        assert await running.metric("p0", "vllm:kv_cache_usage_perc") == 0
        assert await running.metric("d0", "vllm:request_success_total", finished_reason="length") == 0
