"""Short ways to write the panels and variables that pages are made of.

In: titles, descriptions, units and queries. Out: Panels, Targets and Variables. Pure.
"""

from __future__ import annotations

from typing import Final

from llmfleet_dashboards.model import Kind, Level, Panel, Target, Unit, Variable

EVERYTHING: Final = ".+"

NAMESPACE: Final = Variable(
    name="namespace",
    label="Namespace",
    description="Namespaces with routers or engines",
    query='label_values({__name__=~"llmfleet_router_build_info|vllm:num_requests_running"}, namespace)',
    everything=EVERYTHING,
)
FLEET: Final = Variable(
    name="fleet",
    label="Fleet",
    description="Fleets, by the label serving.ai/fleet of their engine pods",
    query='label_values(vllm:num_requests_running{namespace=~"$namespace"}, fleet)',
    everything=EVERYTHING,
)
INSTANCE: Final = Variable(
    name="instance",
    label="Instance",
    description="Instances of those fleets that were scraped in this time range",
    query='label_values(vllm:num_requests_running{namespace=~"$namespace", fleet=~"$fleet"}, llmcluster)',
)
MODEL: Final = Variable(
    name="model",
    label="Model",
    description="Models as clients name them; All includes requests that never reached a model",
    query='label_values(llmfleet_router_requests_total{namespace=~"$namespace"}, model)',
    everything=".*",
)
CONTROLLERS: Final = Variable(
    name="controllers",
    label="Controllers in",
    description="Namespaces where operators and autoscalers run",
    query='label_values({__name__=~"llmfleet_(operator|autoscaler)_build_info"}, namespace)',
    everything=EVERYTHING,
)


def ask(expr: str, legend: str) -> Target:
    """A line, or several, over the time range."""
    return Target(expr=expr, legend=legend)


def now(expr: str, legend: str = "") -> Target:
    """Only the end of the time range."""
    return Target(expr=expr, legend=legend, instant=True)


def lines(title: str, description: str, unit: Unit, *targets: Target, width: int = 8, stacked: bool = False) -> Panel:
    """Values over time."""
    return Panel(title=title, description=description, unit=unit, targets=targets, width=width, stacked=stacked)


def figure(
    title: str, description: str, unit: Unit, target: Target, *levels: tuple[float, str], width: int = 4
) -> Panel:
    """One number, coloured from a level on."""
    marks = tuple(Level(value=value, color=color) for value, color in levels)
    return Panel(
        title=title,
        description=description,
        unit=unit,
        targets=(target,),
        kind=Kind.FIGURE,
        width=width,
        height=4,
        levels=marks,
    )


def table(title: str, description: str, *columns: tuple[str, Unit, str], width: int = 24) -> Panel:
    """One line for each set of labels; a column is a name, a unit and a query."""
    letters = [chr(ord("A") + index) for index in range(len(columns))]
    return Panel(
        title=title,
        description=description,
        unit=Unit.COUNT,
        targets=tuple(now(expr) for _, _, expr in columns),
        kind=Kind.TABLE,
        width=width,
        columns={letter: (name, unit) for letter, (name, unit, _) in zip(letters, columns, strict=True)},
    )
