"""Judge an updated instance by what the routers saw of it, against the rest of its fleet.

In: the canary settings, the counters at the start of the trial and now. Out: a `Verdict`. Counters of a router that
restarted start again at zero, so a count that went back is taken as it is. No evidence is no pass: a canary that
nobody asked anything stays on trial.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from llmfleet.api.types import Canary, Spec
from llmfleet.deploy.records import Figures, Trial
from llmfleet.deploy.update import Verdict


def judge_trial(canary: Canary, trial: Trial | None, figures: tuple[Figures, Figures] | None, now: datetime) -> Verdict:
    """Open until the time is up and something was seen."""
    if trial is None or figures is None:
        return Verdict(passed=None, message="waiting for the routers' figures")
    seen, rest = since(trial.canary, figures[0]), since(trial.rest, figures[1])
    if now - trial.since < timedelta(seconds=canary.analysis_seconds):
        return Verdict(passed=None, message=f"on trial with {canary.weight_percent} % of its weight")
    if seen.requests <= 0:
        return Verdict(passed=None, message="no request has reached the canary yet")
    return judge_figures(canary, seen, rest)


def judge_figures(canary: Canary, seen: Figures, rest: Figures) -> Verdict:
    errors = seen.errors / seen.requests
    if errors > float(canary.max_error_ratio):
        return Verdict(
            passed=False, message=f"{errors:.1%} of the canary's requests failed, limit {canary.max_error_ratio}"
        )
    own, usual = mean_ttft(seen), mean_ttft(rest)
    if own is not None and usual and own / usual > float(canary.max_ttft_ratio):
        message = f"the canary's mean TTFT is {own / usual:.2f} times the rest's, limit {canary.max_ttft_ratio}"
        return Verdict(passed=False, message=message)
    return Verdict(passed=True, message=f"{seen.requests:.0f} requests, {errors:.1%} failed")


def mean_ttft(figures: Figures) -> float | None:
    return figures.ttft_sum / figures.ttft_count if figures.ttft_count > 0 else None


def since(before: Figures, now: Figures) -> Figures:
    """What was added between two readings."""
    if now.requests < before.requests:
        return now
    return Figures(
        requests=now.requests - before.requests,
        errors=max(0.0, now.errors - before.errors),
        ttft_sum=max(0.0, now.ttft_sum - before.ttft_sum),
        ttft_count=max(0.0, now.ttft_count - before.ttft_count),
    )


def trial_weight(spec: Spec) -> int:
    """The share of its usual weight that an instance on trial gets; at least one, or it could prove nothing."""
    return max(1, round(spec.router.weight * spec.update.canary.weight_percent / 100))
