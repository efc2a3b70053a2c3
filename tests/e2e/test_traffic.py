"""A new instance takes traffic at once, and one that is deleted loses no stream."""

from __future__ import annotations

import time
from contextlib import suppress

import requests

from e2e.bed import Bed, engine_spec, eventually
from e2e.figures import Figures
from e2e.load import COMPLETE, many_streams

SCALE_UPS = 20
AT_ONCE = 5
PATIENT = {"drainTimeoutSeconds": 240}  # a token may take longer here than it should


def answered(url: str, model: str) -> bool:
    """Ask once for one token."""
    body = {"model": model, "prompt": "Hi", "max_tokens": 1}
    with suppress(requests.RequestException):
        return requests.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200
    return False


def test_every_instance_created_by_hand_takes_requests_once_it_is_ready(bed: Bed, figures: Figures) -> None:
    url, delays = bed.router_url(), list[float]()
    spec = {"replicas": 1, "tensorParallelSize": 1}
    for batch in range(SCALE_UPS // AT_ONCE):
        names = [f"up-{batch}-{number}" for number in range(AT_ONCE)]
        for name in names:
            bed.create(name, engine_spec(name, **spec), fleet=f"up-{batch}")
        waiting = set(names)
        begin = time.monotonic()
        while waiting:
            assert time.monotonic() - begin < 300, bed.why(f"up-{batch}")
            for name in [name for name in waiting if bed.is_ready(name)]:
                ready = time.monotonic()
                eventually(lambda name=name: answered(url, name), 60, lambda batch=batch: bed.why(f"up-{batch}"))
                delays.append(time.monotonic() - ready)
                waiting.remove(name)
            time.sleep(0.05)
        for name in names:
            bed.delete(name)
        eventually(lambda batch=batch: not bed.instances(f"up-{batch}"), 240)
    assert len(delays) == SCALE_UPS
    figures.samples("seconds from Ready to the first routed answer", delays)


def test_deleting_an_instance_under_fifty_open_streams_loses_none(bed: Bed, figures: Figures) -> None:
    with bed.fleet("drained", 2, engine_spec("drained", lifecycle=PATIENT)) as (first, _second):
        uids = bed.uids(first)
        load = many_streams(bed.router_url(), "drained", 50, 160, lambda: bed.delete(first))
        assert load.kinds() == {COMPLETE: 50}, load.failures()[:3]
        eventually(lambda: bed.instance(first) is None, 400, lambda: bed.why("drained"))
        eventually(lambda: not uids & bed.uids(first), 120)
        eventually(lambda: "Draining" in {reason for _, reason in bed.said(first)}, 60)
    figures.count("streams open while their fleet lost an instance, of which lost", [50, 0])


def test_evicting_a_pod_lets_its_streams_end_first(bed: Bed) -> None:
    with bed.fleet("evicted", 2, engine_spec("evicted", lifecycle=PATIENT)) as (first, _second):
        rank = bed.ranks(first)[1]["metadata"]["name"]
        load = many_streams(bed.router_url(), "evicted", 20, 120, lambda: bed.evict(rank))
        assert load.kinds() == {COMPLETE: 20}, load.failures()[:3]
        eventually(lambda: bed.is_ready(first), 300, lambda: bed.why("evicted"))


def test_an_aborted_stream_leaves_nothing_behind(bed: Bed) -> None:
    with bed.fleet("aborted", 1, engine_spec("aborted")) as (name,):
        body = {"model": "aborted", "stream": True, "max_tokens": 4000, "ignore_eos": True, "prompt": "Go on."}
        with requests.post(f"{bed.router_url()}/v1/completions", json=body, stream=True, timeout=60) as answer:
            assert next(answer.iter_lines()).startswith(b"data: ")
        pod = bed.ranks(name)[0]["status"]["podIP"]
        eventually(lambda: running(pod) == 0, 60)


def running(address: str) -> float:
    """What the engine says of its running requests."""
    text = requests.get(f"http://{address}:8000/metrics", timeout=60).text
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("vllm:num_requests_running")
    )


def test_the_router_answers_in_the_documented_shape_for_an_unknown_model(bed: Bed) -> None:
    answer = requests.post(
        f"{bed.router_url()}/v1/chat/completions", json={"model": "nobody", "messages": []}, timeout=60
    )
    assert answer.status_code == 404
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
