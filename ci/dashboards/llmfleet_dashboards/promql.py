"""Pieces of PromQL that every page shares: selectors, rates, quantiles, and what to show when nothing has happened.

In: names of metrics and labels. Out: text. Pure. A page never writes a range of its own: `$__rate_interval` follows the
scrape interval and the zoom.
"""

from __future__ import annotations

from typing import Final

ROUTER: Final = 'namespace=~"$namespace"'
MODEL: Final = 'namespace=~"$namespace", model=~"$model"'
ENGINE: Final = 'namespace=~"$namespace", fleet=~"$fleet"'
ENDPOINT: Final = 'namespace=~"$namespace", llmcluster=~"$instance"'
"""An engine as a router sees it: routers know instances, not fleets."""
OPERATOR: Final = 'namespace=~"$controllers"'
SCALER: Final = 'namespace=~"$controllers", fleet=~"$namespace/$fleet"'
"""The autoscaler names a fleet by its namespace and its name."""

ROUTERS: Final = f"llmfleet_router_build_info{{{ROUTER}}}"
OPERATORS: Final = f"llmfleet_operator_build_info{{{OPERATOR}}}"
AUTOSCALERS: Final = f"llmfleet_autoscaler_build_info{{{OPERATOR}}}"
ENGINES: Final = f"vllm:num_requests_running{{{ENGINE}}}"


def rate(metric: str, where: str, by: str = "") -> str:
    """Events per second, of all or by some labels."""
    return f"{total(by)}(rate({metric}{{{where}}}[$__rate_interval]))"


def gauge(metric: str, where: str, by: str = "", how: str = "sum") -> str:
    """Values of now, added up unless `how` says otherwise."""
    return f"{total(by, how)}({metric}{{{where}}})"


def total(by: str = "", how: str = "sum") -> str:
    """`sum`, or `sum by (labels)`."""
    return f"{how} by ({by})" if by else how


def quantile(q: float, histogram: str, where: str, by: str = "") -> str:
    """A quantile over all series of a histogram; nothing where nothing was observed."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', where, labels)}) >= 0"


def mean(histogram: str, where: str, by: str = "") -> str:
    """What one observation was on average; nothing where nothing was observed."""
    count = rate(f"{histogram}_count", where, by)
    return f"{rate(f'{histogram}_sum', where, by)} / ({count} > 0)"


def or_zero(expr: str, alive: str) -> str:
    """A line at zero while nothing of the kind has happened and the process is scraped; no line when it is not."""
    return f"{expr} or on () 0 * sum({alive})"


def or_none(expr: str, label: str, alive: str) -> str:
    """The same for an expression by a label, whose value is then the word none."""
    return f'{expr} or on () label_replace(0 * sum({alive}), "{label}", "none", "", "")'


def share(part: str, whole: str) -> str:
    """A part of a whole between 0 and 1; nothing where there is no whole."""
    return f"{part} / ({whole} > 0)"
