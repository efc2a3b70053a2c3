"""The autoscalers ours is compared with, as their documentation and source say they work.

In: one fleet and an observation of it at each tick, options by their documented names. Out: how many instances.
Each docstring names what was read; defaults are the documented ones. All see what our own policy sees, when it sees
it: counters and gauges of engines, and how many requests the router holds. None is a copy of foreign code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from llmfleet.api.types import Role
from llmfleet.capacity.capacity import Capacity
from llmfleet.scale.fleet import Fleet
from llmfleet.scale.look import View, look
from llmfleet.scale.memory import Memory, begin
from llmfleet.scale.signals import Observation

MINUTE: Final = 60.0


class Peer(Protocol):
    """Sizes one fleet."""

    def size(self, fleet: Fleet, seen: Observation, now: float) -> int: ...


@dataclass(slots=True, kw_only=True)
class Watching:
    """What peers look at, with means over as long as each likes."""

    role: Role
    capacity: Capacity
    ttft: float
    low: int
    high: int
    memory: Memory | None = None
    views: list[View] = field(default_factory=list)
    wishes: list[tuple[float, int]] = field(default_factory=list)

    def view(self, seen: Observation, now: float) -> View:
        """One look; of what it learns only the measurements are used."""
        self.memory, view = look(
            self.memory or begin(now),
            seen,
            role=self.role,
            capacity=self.capacity,
            now=now,
            lead=MINUTE,
            window=MINUTE,
            keep=0.0,
        )
        self.views = [one for one in self.views if one.now > now - 200]
        self.views.append(view)
        return view

    def recent(self, seconds: float) -> list[View]:
        """Looks of the last seconds, at least one."""
        return [one for one in self.views if one.now > self.views[-1].now - seconds] or self.views[-1:]

    def sold(self, seconds: float = MINUTE) -> float:
        """Busy instances: step time sold, mean."""
        recent = self.recent(seconds)
        return sum(one.rates.work(self.capacity.steps, self.role) for one in recent) / len(recent)

    def offered(self, seconds: float) -> float:
        """Offered load, mean."""
        recent = self.recent(seconds)
        return sum(one.load for one in recent) / len(recent)

    def concurrency(self, seconds: float) -> float:
        """Requests that run or wait anywhere, mean."""
        recent = self.recent(seconds)
        return sum(one.waiting + one.queued + one.rates.running for one in recent) / len(recent)

    def bounded(self, wanted: int) -> int:
        return min(max(wanted, self.low), self.high)

    def wish(self, wanted: int, now: float, keep: float) -> None:
        """Remember a recommendation for stabilisation windows."""
        self.wishes = [(at, wish) for at, wish in self.wishes if at > now - keep]
        self.wishes.append((now, wanted))

    def stable(self, size: int, now: float, up: float, down: float) -> int:
        """HPA's windows: up to the least that any look of one asked for, down to the most of the other."""
        lowest = min((wish for at, wish in self.wishes if at > now - up), default=self.wishes[-1][1])
        highest = max((wish for at, wish in self.wishes if at > now - down), default=self.wishes[-1][1])
        return lowest if lowest > size else min(size, highest)


@dataclass(slots=True)
class Static:
    """As many as it was told."""

    watching: Watching
    instances: float = 0.0

    def size(self, fleet: Fleet, seen: Observation, now: float) -> int:
        return int(self.instances) or self.watching.high


@dataclass(slots=True)
class Hpa:
    """Kubernetes' HorizontalPodAutoscaler v2 on the share of step time sold.

    Read: kubernetes.io, "Horizontal Pod Autoscaling". Tolerance 0.1; instances that are not ready count as idle on
    the way up; up at most by the larger of 100 % and 4 in 15 s without a window; down after 300 s.
    """

    watching: Watching
    target: float = 0.6
    tolerance: float = 0.1
    down: float = 300.0

    def size(self, fleet: Fleet, seen: Observation, now: float) -> int:
        self.watching.view(seen, now)
        return self.scaled(fleet, self.watching.sold(), now)

    def scaled(self, fleet: Fleet, total: float, now: float) -> int:
        """What the controller does with the sum of a metric over instances."""
        watching, ready, size = self.watching, max(fleet.ready, 1), fleet.size
        ratio = total / ready / self.target
        wanted = size if abs(ratio - 1) <= self.tolerance else math.ceil(ready * ratio)
        if wanted > size > fleet.ready:
            ratio = total / size / self.target
            wanted = size if ratio <= 1 + self.tolerance else math.ceil(size * ratio)
        watching.wish(wanted, now, self.down)
        return watching.bounded(min(watching.stable(size, now, 0.0, self.down), max(2 * size, size + 4)))


@dataclass(slots=True)
class Hysteresis:
    """Up above one threshold for a while, down below another for a longer while, never soon after."""

    watching: Watching
    up: float = 0.60
    down: float = 0.35
    up_seconds: float = 120.0
    down_seconds: float = 600.0
    cooldown: float = 60.0
    moved: float = float("-inf")

    def size(self, fleet: Fleet, seen: Observation, now: float) -> int:
        watching = self.watching
        view = watching.view(seen, now)
        ready, size, sold = max(fleet.ready, 1), fleet.size, watching.sold()
        middle, wanted = (self.up + self.down) / 2, size
        if sold / ready > self.up or (view.waiting + view.queued) / ready > 2:
            wanted = max(size, math.ceil(sold / middle), ready + 1 if fleet.ready == size else size)
        elif sold / ready < self.down:
            wanted = max(1, min(size - 1, math.ceil(sold / middle)))
        watching.wish(wanted, now, self.down_seconds)
        chosen = self._held(size, now)
        if chosen != size:
            self.moved = now
        return watching.bounded(chosen)

    def _held(self, size: int, now: float) -> int:
        """What held for its whole window."""
        wishes = self.watching.wishes
        if now - self.moved < self.cooldown:
            return size
        lowest = min(wish for at, wish in wishes if at > now - self.up_seconds)
        highest = max(wish for _, wish in wishes)
        if lowest > size:
            return lowest
        return highest if highest < size and now - wishes[0][0] > self.down_seconds - 30 else size


@dataclass(slots=True)
class KedaWaiting:
    """KEDA on `vllm:num_requests_waiting`, as vLLM's production-stack documents it.

    Read: production-stack `docs/source/use_cases/autoscaling-keda.rst`: threshold 5, polled each 15 s. KEDA hands the
    sum to an HPA as an external metric with an average value, so `ceil(sum / threshold)` with HPA's tolerance, rates
    and windows; cooldownPeriod (360 s) concerns only the step from one to none. What our router holds counts as
    waiting: without a router that knows slots it would wait in engines.
    """

    watching: Watching
    threshold: float = 5.0
    tolerance: float = 0.1
    down: float = 300.0

    def size(self, fleet: Fleet, seen: Observation, now: float) -> int:
        watching, size = self.watching, fleet.size
        view = watching.view(seen, now)
        each = (view.waiting + view.queued) / self.threshold
        wanted = size if abs(each / max(size, 1) - 1) <= self.tolerance else math.ceil(each)
        watching.wish(max(wanted, 1), now, self.down)
        return watching.bounded(min(watching.stable(size, now, 0.0, self.down), max(2 * size, size + 4)))


@dataclass(slots=True)
class Kpa:
    """Knative's KPA on concurrency.

    Read: knative/serving `config/core/configmaps/autoscaler.yaml`: target 100 concurrent requests an instance at 70 %
    utilisation, stable window 60 s, panic window 10 % of it, panic from 200 %, up at most 1000-fold, down at most by
    half; no scale-down in panic. It ticks each 2 s; here as often as everybody looks, so a panic window is one look.
    """

    watching: Watching
    target: float = 100.0
    utilization: float = 0.7
    stable: float = 60.0
    panic: float = 6.0
    panicked: float = float("-inf")
    highest: int = 0

    def size(self, fleet: Fleet, seen: Observation, now: float) -> int:
        watching, each = self.watching, self.target * self.utilization
        watching.view(seen, now)
        ready = max(fleet.ready, 1)
        calm = max(math.ceil(watching.concurrency(self.stable) / each), ready // 2)
        quick = math.ceil(watching.concurrency(self.panic) / each)
        if quick >= 2 * ready:
            self.panicked = now
        if now - self.panicked < self.stable:
            self.highest = max(self.highest, quick, calm)
            return watching.bounded(max(self.highest, fleet.size))
        self.highest = 0
        return watching.bounded(calm)


@dataclass(slots=True)
class Apa:
    """AIBrix' APA: HPA's ratio with two tolerances, without stabilisation windows.

    Read: aibrix `pkg/controller/podautoscaler/algorithm/apa.go` and its examples: target 0.5 of
    `gpu_cache_usage_perc`, tolerances 0.1 both ways, at most 2x up and 2x down at once, mean over 60 s.
    """

    watching: Watching
    target: float = 0.5
    up_tolerance: float = 0.1
    down_tolerance: float = 0.1
    rate: float = 2.0

    def size(self, fleet: Fleet, seen: Observation, now: float) -> int:
        watching, size = self.watching, fleet.size
        watching.view(seen, now)
        recent = watching.recent(MINUTE)
        usage = sum(one.rates.kv_usage for one in recent) / len(recent)
        ratio = usage / self.target * max(fleet.ready, 1) / max(size, 1)
        if 1 - self.down_tolerance <= ratio <= 1 + self.up_tolerance:
            return watching.bounded(size)
        wanted = math.ceil(size * ratio)
        return watching.bounded(max(min(wanted, math.floor(self.rate * size)), math.ceil(size / self.rate)))


@dataclass(slots=True)
class WvaV2:
    """llm-d's Workload Variant Autoscaler, saturation analyzer V2.

    Read: `docs/developer-guide/saturation-scaling-config.md`: capacity of a replica in KV tokens is the smaller of
    80 % of its cache and, once its queue has reached 5, the mean of the last ten uses seen then; demand is what is
    resident plus the queue times a request's tokens. Up when demand / 0.85 exceeds supply with pending replicas, down
    when supply exceeds demand / 0.70. An HPA with windows of 60 s up and 240 s down follows it.
    """

    watching: Watching
    up: float = 0.85
    down: float = 0.70
    up_seconds: float = 60.0
    down_seconds: float = 240.0
    full: list[float] = field(default_factory=list)

    def size(self, fleet: Fleet, seen: Observation, now: float) -> int:
        view, ready = self.watching.view(seen, now), max(fleet.ready, 1)
        tokens = view.rates.kv_tokens / ready
        resident = view.rates.kv_usage * view.rates.kv_tokens
        if view.waiting / ready >= 5:
            self.full = [*self.full, resident / ready][-10:]
        each = 0.8 * tokens
        if self.full:
            each = min(each, sum(self.full) / len(self.full))
        queued = (view.waiting + view.queued) * (view.shape.prompt + view.shape.output)
        wanted = between(resident + queued, max(each, 1.0), fleet, self.up, self.down)
        self.watching.wish(wanted, now, max(self.up_seconds, self.down_seconds))
        stable = self.watching.stable(fleet.size, now, self.up_seconds, self.down_seconds)
        return self.watching.bounded(stable)


@dataclass(slots=True)
class WvaQm:
    """The same with its queueing-model analyzer.

    Read: `docs/developer-guide/slo-queuemodel.md`: an iteration takes `alpha / (1 - rho)`, so a replica carries the
    load at which that reaches the objective for the time between tokens; alpha is learned. Demand counts what waits as
    if it had come within a minute. Thresholds and windows as for V2.
    """

    watching: Watching
    up: float = 0.85
    down: float = 0.70
    up_seconds: float = 60.0
    down_seconds: float = 240.0

    def size(self, fleet: Fleet, seen: Observation, now: float) -> int:
        watching = self.watching
        view = watching.view(seen, now)
        demand = watching.sold() + view.backlog / MINUTE
        wanted = between(demand, view.capacity.rho, fleet, self.up, self.down)
        watching.wish(wanted, now, max(self.up_seconds, self.down_seconds))
        return watching.bounded(watching.stable(fleet.size, now, self.up_seconds, self.down_seconds))


def between(demand: float, each: float, fleet: Fleet, up: float, down: float) -> int:
    """WVA's rule: add what is missing at the upper threshold, take what is spare at the lower."""
    missing = demand / up - fleet.size * each
    spare = fleet.ready * each - demand / down
    if missing > 0:
        return fleet.size + math.ceil(missing / each)
    return fleet.size - int(spare / each) if spare > 0 else fleet.size


@dataclass(slots=True)
class Dynamo:
    """NVIDIA Dynamo's planner: a throughput loop of 180 s as a floor, a load loop of one step at a time.

    Read: ai-dynamo `components/src/dynamo/planner/core/{throughput_scaling,load_scaling}.py` and
    `core/load/predictors.py`: the next interval's load by a Kalman filter with a local trend (q 1 and 0.1, r 10; one of
    its four predictors, the default auto-ARIMA needs a library), replicas = ceil(load / best rate at the objective)
    without headroom. The load loop adds one when the latencies of all engines are estimated above the objective,
    takes one when after that they would still be below 80 % of it, and is frozen while an instance starts. Its tick is
    5 s; here as often as everybody looks.
    """

    watching: Watching
    interval: float = 180.0
    sensitivity: float = 0.8
    last: float = float("-inf")
    floor: int = 1
    level: float = -1.0
    trend: float = 0.0
    spread: tuple[float, float, float] = (1000.0, 0.0, 1000.0)
    """Covariance: level, both, trend."""

    def size(self, fleet: Fleet, seen: Observation, now: float) -> int:
        watching = self.watching
        view = watching.view(seen, now)
        if now - self.last >= self.interval:
            self.last = now
            self.floor = self.predicted(view)
        if fleet.ready < fleet.size:
            return watching.bounded(max(fleet.size, self.floor))
        ready = max(fleet.ready, 1)
        return watching.bounded(max(self.stepped(ready, view), self.floor))

    def predicted(self, view: View) -> int:
        """Replicas for the next interval, from requests in the last."""
        work = view.load / view.shape.requests if view.shape.requests > 0 else 0.0
        if work <= 0:
            return self.floor
        seen = self.watching.offered(self.interval) / work * self.interval
        if self.level < 0:
            self.level = seen
        level, (p, q, r) = self.level + self.trend, self.spread
        p, q, r = p + 2 * q + r + 1.0, q + r, r + 0.1
        gain, gain_trend = p / (p + 10.0), q / (p + 10.0)
        error = seen - level
        self.level, self.trend = level + gain * error, self.trend + gain_trend * error
        self.spread = ((1 - gain) * p, (1 - gain) * q, r - gain_trend * q)
        expected = max(0.0, self.level + self.trend) * work / self.interval
        return max(1, math.ceil(expected / view.capacity.rho))

    def stepped(self, ready: int, view: View) -> int:
        """One more, one less, or as many."""
        watching, capacity = self.watching, view.capacity
        busy = min(watching.sold(15.0) / ready, 0.97)
        wait = view.backlog / ready
        prompt = capacity.steps.c * view.shape.prompt
        if wait + prompt > watching.ttft or capacity.steps.a / (1 - busy) > capacity.tpot:
            return ready + 1
        if ready > 1:
            more = ready / (ready - 1)
            itl = capacity.steps.a / (1 - min(busy * more, 0.97))
            if wait * more + prompt < self.sensitivity * watching.ttft and itl < self.sensitivity * capacity.tpot:
                return ready - 1
        return ready


PEER_OPTIONS: Final[Mapping[str, frozenset[str]]] = {
    "hysteresis": frozenset({"up", "down", "up_seconds", "down_seconds", "cooldown"}),
    "hpa": frozenset({"target", "tolerance", "down"}),
    "keda-waiting": frozenset({"threshold", "tolerance", "down"}),
    "kpa": frozenset({"target", "utilization", "stable", "panic"}),
    "apa": frozenset({"target", "up_tolerance", "down_tolerance", "rate"}),
    "wva-v2": frozenset({"up", "down", "up_seconds", "down_seconds"}),
    "wva-qm": frozenset({"up", "down", "up_seconds", "down_seconds"}),
    "dynamo": frozenset({"interval", "sensitivity"}),
    "static": frozenset({"instances"}),
}
PEERS: Final[Mapping[str, Callable[..., Peer]]] = {
    "hysteresis": Hysteresis,
    "hpa": Hpa,
    "keda-waiting": KedaWaiting,
    "kpa": Kpa,
    "apa": Apa,
    "wva-v2": WvaV2,
    "wva-qm": WvaQm,
    "dynamo": Dynamo,
    "static": Static,
}
