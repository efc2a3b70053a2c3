"""The first page: is the promise kept, for whom, and which page to open next.

In: nothing. Out: a Dashboard. Pure. An error is what the service did wrong, as in the chart's rules: a status from 500
on, or an answer that failed or broke after a 200. It is counted over all requests that reached a model.
"""

from __future__ import annotations

from typing import Final

from llmfleet_dashboards import promql
from llmfleet_dashboards.model import Dashboard, Row, Unit, Variable
from llmfleet_dashboards.panels import FLEET, MODEL, NAMESPACE, ask, figure, lines, now, table
from llmfleet_dashboards.promql import ENGINE, ROUTERS, gauge, or_none, or_zero, quantile, rate, share

WHERE: Final = promql.MODEL
REQUESTS: Final = "llmfleet_router_requests_total"
TTFT: Final = "llmfleet_router_time_to_first_token_seconds"

OBJECTIVE: Final = Variable(
    name="objective",
    label="Availability objective",
    description="Share of requests that must be answered well",
    options=("0.99", "0.995", "0.999", "0.9995"),
    default="0.999",
)
TTFT_OBJECTIVE: Final = Variable(
    name="ttft",
    label="TTFT objective (s)",
    description="A first token within so many seconds is in time; the choices are the bounds of the router's histogram",
    options=("0.1", "0.25", "0.5", "0.75", "1.0", "2.5", "5.0", "10.0"),
    default="1.0",
)


def bad(window: str, by: str = "") -> str:
    """Errors per second over a window."""
    said = f'rate({REQUESTS}{{{WHERE}, model!="", code=~"5.."}}[{window}])'
    broken = f'rate({REQUESTS}{{{WHERE}, model!="", outcome=~"failed|truncated"}}[{window}])'
    return f"{promql.total(by)}({said} or {broken})"


def every(window: str, by: str = "") -> str:
    """Requests that count for availability."""
    return f'{promql.total(by)}(rate({REQUESTS}{{{WHERE}, model!=""}}[{window}]))'


def error_share(window: str) -> str:
    """Errors over requests; zero while requests are served and none was bad."""
    return share(f"({or_zero(bad(window), ROUTERS)})", every(window))


def in_time(window: str, by: str = "") -> str:
    """Streams whose first token came in time, as a share."""
    within = f'{promql.total(by)}(rate({TTFT}_bucket{{{WHERE}, le="$ttft"}}[{window}]))'
    return share(within, f"{promql.total(by)}(rate({TTFT}_count{{{WHERE}}}[{window}]))")


def build() -> Dashboard:
    """The page."""
    return Dashboard(
        uid="llmfleet-overview",
        title="llmfleet / Overview",
        description="Whether clients get what was promised, and the size and load of what serves them.",
        variables=(NAMESPACE, FLEET, MODEL, OBJECTIVE, TTFT_OBJECTIVE),
        rows=(_promise(), _traffic(), _time(), _models()),
    )


def _promise() -> Row:
    return Row(
        title="The promise",
        panels=(
            figure(
                "Availability",
                "Share of the requests to a model in this time range that were not answered with an error: a "
                "status from "
                "500 on, or an answer that failed or broke after a 200. Clients that left and statuses below "
                "500 are no "
                "errors. Red: below 99 %.",
                Unit.SHARE,
                now(f"1 - {error_share('$__range')}", "availability"),
                (0, "red"),
                (0.99, "orange"),
                (0.999, "green"),
            ),
            figure(
                "Error budget burned",
                "Errors of this time range over what the availability objective allows in it: 1 is all of it, "
                "14 means "
                "that a month's budget is gone in two days. Above 1: look at Errors by outcome, then at Router "
                "and queue.",
                Unit.COUNT,
                now(f"{error_share('$__range')} / (1 - $objective)", "times the budget"),
                (1, "orange"),
                (6, "red"),
            ),
            figure(
                "First token in time",
                "Share of the streams of this time range whose first token came within the TTFT objective, as "
                "clients "
                "saw it: waiting at the router is part of it.",
                Unit.SHARE,
                now(in_time("$__range"), "in time"),
                (0, "red"),
                (0.95, "orange"),
                (0.99, "green"),
            ),
            figure(
                "Requests in flight",
                "Requests at an engine now. Waiting ones are beside it.",
                Unit.COUNT,
                ask(gauge("llmfleet_router_in_flight_requests", WHERE), "in flight"),
            ),
            figure(
                "Requests waiting",
                "Requests that wait at routers for a slot or an engine. Above zero for long: the fleet is too small, "
                "or engines are left out; see Router and queue.",
                Unit.COUNT,
                ask(or_zero(gauge("llmfleet_queue_requests", WHERE), ROUTERS), "waiting"),
                (1, "orange"),
                (100, "red"),
            ),
            figure(
                "Engines",
                "Instances whose engine is scraped. Fewer than expected: see Autoscaler and operator.",
                Unit.COUNT,
                ask(f"count(count by (namespace, llmcluster) ({promql.ENGINES}))", "engines"),
            ),
        ),
    )


def _traffic() -> Row:
    return Row(
        title="Traffic",
        panels=(
            lines(
                "Requests by outcome",
                "complete: answered; failed: no engine answered well; truncated: broke off after the first byte, and "
                "the client was told; aborted: the client left; refused: the router said no.",
                Unit.REQUESTS,
                ask(rate(REQUESTS, WHERE, "outcome"), "{{outcome}}"),
                stacked=True,
            ),
            lines(
                "Errors by outcome",
                "What counts against availability, by outcome and status. Router and queue says why.",
                Unit.REQUESTS,
                ask(or_none(bad("$__rate_interval", "outcome, code"), "outcome", ROUTERS), "{{outcome}} {{code}}"),
                stacked=True,
            ),
            lines(
                "Error budget burn rate",
                "Errors over what the objective allows, in a short and a long window. Both above 14.4: page somebody.",
                Unit.COUNT,
                ask(f"{error_share('5m')} / (1 - $objective)", "5 minutes"),
                ask(f"{error_share('1h')} / (1 - $objective)", "1 hour"),
            ),
            lines(
                "Tokens of clients",
                "Tokens of prompts and of answers as the routers count them for their tenants.",
                Unit.PER_SECOND,
                ask(rate("llmfleet_router_prompt_tokens_total", WHERE), "prompt"),
                ask(rate("llmfleet_router_completion_tokens_total", WHERE), "answer"),
            ),
            lines(
                "In flight and waiting",
                "Requests at engines, and requests that wait for one. Waiting while in flight is flat: slots "
                "are used up.",
                Unit.COUNT,
                ask(gauge("llmfleet_router_in_flight_requests", WHERE), "in flight"),
                ask(or_zero(gauge("llmfleet_queue_requests", WHERE), ROUTERS), "waiting"),
            ),
            lines(
                "Requests by model",
                "Requests as clients name their model; none: the request never reached one.",
                Unit.REQUESTS,
                ask(f'label_replace({rate(REQUESTS, WHERE, "model")}, "model", "none", "model", "")', "{{model}}"),
                stacked=True,
            ),
        ),
    )


def _time() -> Row:
    spans = (0.5, 0.95, 0.99)
    return Row(
        title="Time",
        panels=(
            lines(
                "Time to first token",
                "From the whole request at the router to the first delta of a stream that is not empty. Engines may "
                "be fast and this slow: then requests wait at the router.",
                Unit.SECONDS,
                *(ask(quantile(q, TTFT, WHERE), f"p{round(q * 100)}") for q in spans),
            ),
            lines(
                "Duration of complete answers",
                "From the whole request to the end of its answer; long answers take long.",
                Unit.SECONDS,
                *(
                    ask(quantile(q, "llmfleet_router_request_duration_seconds", WHERE), f"p{round(q * 100)}")
                    for q in spans
                ),
            ),
            lines(
                "Time between tokens",
                "From one token of an answer to the next, as engines measure it (TPOT). It grows with the "
                "batch: above "
                "its objective the fleet needs another instance.",
                Unit.SECONDS,
                *(ask(quantile(q, "vllm:inter_token_latency_seconds", ENGINE), f"p{round(q * 100)}") for q in spans),
            ),
        ),
    )


def _models() -> Row:
    window = "$__range"
    duration = "llmfleet_router_request_duration_seconds"
    tail = f"histogram_quantile(0.95, sum by (model, le) (rate({TTFT}_bucket{{{WHERE}}}[{window}]))) >= 0"
    longest = f"histogram_quantile(0.95, sum by (model, le) (rate({duration}_bucket{{{WHERE}}}[{window}]))) >= 0"
    requests = f'label_replace(sum by (model) (rate({REQUESTS}{{{WHERE}}}[{window}])), "model", "none", "model", "")'
    return Row(
        title="Models",
        panels=(
            table(
                "Models in this time range",
                "One line for each model. Errors as in Availability.",
                ("Requests", Unit.REQUESTS, requests),
                (
                    "Errors",
                    Unit.SHARE,
                    share(f"({bad(window, 'model')} or 0 * {every(window, 'model')})", every(window, "model")),
                ),
                ("TTFT p95", Unit.SECONDS, tail),
                ("TTFT in time", Unit.SHARE, in_time(window, "model")),
                ("Duration p95", Unit.SECONDS, longest),
                ("In flight", Unit.COUNT, gauge("llmfleet_router_in_flight_requests", WHERE, "model")),
            ),
        ),
    )
