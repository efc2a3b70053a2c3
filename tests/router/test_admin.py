"""What operators and machines read on the admin port."""

import json

from bed import CHAT, STREAM, Bed, scenario
from engine import chat_event, drop, events, ok
from prometheus_client.parser import text_string_to_metric_families


async def families(bed: Bed) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    text = (await bed.admin("/metrics")).decode()
    return {
        sample.name: {tuple(sorted(s.labels.items())): s.value for s in family.samples if s.name == sample.name}
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@scenario
async def test_metrics_tell_what_happened_to_every_request():
    async with Bed(drop(), ok(3, gap=0.02)) as bed:
        await bed.ask(STREAM)
        await bed.ask(CHAT | {"model": "nope"})
        seen = await families(bed)
        model = ("model", "m")
        requests = seen["llmfleet_router_requests_total"]
        assert requests[(("code", "200"), model, ("outcome", "complete"))] == 1
        assert requests[(("code", "404"), ("model", ""), ("outcome", "refused"))] == 1
        assert seen["llmfleet_router_retries_total"][(model, ("reason", "reset"))] == 1
        assert seen["llmfleet_router_refusals_total"][(("model", ""), ("reason", "model_not_found"))] == 1
        assert seen["llmfleet_router_time_to_first_token_seconds_count"][(model,)] == 1
        assert seen["llmfleet_router_request_duration_seconds_count"][(model,)] == 1
        picks = seen["llmfleet_router_endpoint_picks_total"]
        assert {dict(k)["llmcluster"]: v for k, v in picks.items()} == {"e0": 1, "e1": 1}
        failures = seen["llmfleet_router_endpoint_failures_total"]
        assert {dict(k)["llmcluster"]: v for k, v in failures.items()} == {"e0": 1, "e1": 0}
        tokens = seen["llmfleet_router_endpoint_time_to_first_token_seconds_count"]
        assert {dict(k)["llmcluster"]: v for k, v in tokens.items()} == {"e0": 0, "e1": 1}
        slots = seen["llmfleet_router_endpoint_slots"]
        assert {dict(k)["llmcluster"]: v for k, v in slots.items()} == {"e0": 256, "e1": 256}
        assert seen["llmfleet_router_document_generation"][()] == bed.router.fleet.generation
        assert seen["llmfleet_router_document_age_seconds"][()] >= 0
        assert seen["llmfleet_router_build_info"] == {(("version", "0.1.0"),): 1}
        assert seen["llmfleet_router_draining"][()] == 0
        assert seen["process_open_fds"][()] > 0


@scenario
async def test_in_flight_is_shown_while_it_lasts():
    async with Bed(ok(3, delay=3)) as bed:
        client = await bed.client()
        await client.send(STREAM)
        await bed.until(lambda: bed.in_flight() == 1)
        seen = await families(bed)
        assert seen["llmfleet_router_in_flight_requests"][(("model", "m"),)] == 1
        endpoint = (("llmcluster", "e0"), ("role", "both"))
        assert seen["llmfleet_router_endpoint_in_flight_requests"][endpoint] == 1
        await client.answer()
        seen = await families(bed)
        assert seen["llmfleet_router_in_flight_requests"][(("model", "m"),)] == 0


@scenario
async def test_time_to_first_token_means_the_first_delta_that_is_not_empty():
    behave = events(chat_event(role=True), chat_event(""), chat_event("now"), chat_event(None, finish="stop"),
                    b"data: [DONE]\n\n", gap=0.15)  # fmt: skip
    async with Bed(behave) as bed:
        await bed.ask(STREAM)
        assert bed.router.metrics.model("m").ttft.total >= 0.29


@scenario
async def test_models_that_clients_invent_make_no_label():
    async with Bed() as bed:
        for i in range(50):
            await bed.ask(CHAT | {"model": f"invented-{i}"})
        text = (await bed.admin("/metrics")).decode()
        assert "invented" not in text


@scenario
async def test_the_fleet_view_names_generation_pod_and_every_engine():
    async with Bed(ok(), ok()) as bed:
        generation = bed.publish(e1={"weight": 5, "tier": 1})
        await bed.adopted(generation)
        fleet = json.loads(await bed.admin("/fleet"))
        assert (fleet["generation"], fleet["pod"], fleet["draining"]) == (generation, "router-0", False)
        model = fleet["models"]["m"]
        assert (model["state"], model["inFlight"], model["slots"]) == ("serving", 0, 512)
        assert model["endpoints"][1] == {
            "instance": "e1",
            "address": bed.engines[1].address,
            "podUID": "uid-e1",
            "role": "both",
            "inFlight": 0,
            "slots": 256,
            "limit": 256,
            "out": "",
            "tier": 1,
            "weight": 5,
            "state": "ready",
        }
