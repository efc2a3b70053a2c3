"""Draw a view for a terminal.

In: a `View`. Out: something `rich` prints. It decides nothing and prints nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmfleet.top.live import Engine, Model
from llmfleet.top.view import Decision, ModelRow, View

GOOD = "green"
BAD = "red"
BUSY = "yellow"


def draw(view: View, hint: str = "") -> RenderableType:
    """Models, engines, other fleets, trouble."""
    return Group(*parts(view, hint))


def parts(view: View, hint: str) -> Iterator[RenderableType]:
    routers = [one for one in view.routers if not one.problem]
    draining = f", {view.live.draining} draining" if view.live.draining else ""
    yield Text(f"{len(routers)} routers answered{draining}, {view.live.connections} client connections{hint}")
    if view.models:
        yield Text()
        yield models(view)
        yield Text()
        yield engines(view)
    if view.others:
        yield Text()
        yield fleets(view)
    for problem in view.problems:
        yield Text(f"! {problem}", style=BAD)


def models(view: View) -> Table:
    table = plain(
        "model", "ready", "in flight", "waiting", "req/s", "in tok/s", "out tok/s", "TTFT p50", "p95", "fails"
    )
    decided_by = any(row.decisions for row in view.models)
    if decided_by:
        table.add_column("last decision", overflow="fold")
    for row in view.models:
        model, lately = row.model, row.rates
        table.add_row(
            named(model),
            Text(f"{model.ready}/{len(model.engines)}", style=GOOD if model.ready == len(model.engines) else BUSY),
            f"{model.in_flight}/{model.slots}",
            Text(str(model.waiting), style=BUSY if model.waiting else ""),
            figure(lately.requests, 1),
            figure(lately.prompt_tokens, 0),
            figure(lately.output_tokens, 0),
            seconds(lately.ttft_median),
            seconds(lately.ttft_p95),
            Text(percent(lately.bad_share), style=BAD if lately.bad_share else ""),
            *((decided(row),) if decided_by else ()),
        )
    return table


def named(model: Model) -> Text:
    state = "" if model.state == "serving" else f" ({model.state})"
    return Text(model.name + state + (" PANIC" if model.panic else ""), style=BAD if model.panic else "bold")


def decided(row: ModelRow) -> Text:
    return Text("; ".join(sentence(one) for one in row.decisions) or "-")


def sentence(one: Decision) -> str:
    role = "" if one.role == "both" else f"{one.role} "
    return f"{role}{one.current} -> {one.desired} {one.reason or 'nobody decided yet'}: {one.message}".rstrip(": ")


def engines(view: View) -> Table:
    table = plain("engine", "model", "role", "state", "in flight", "limit here", "TTFT mean")
    for row in view.models:
        for engine in row.model.engines:
            table.add_row(
                Text(engine.instance),
                Text(row.model.name),
                engine.role,
                Text(engine.state, style=style_of(engine)),
                Text(f"{engine.in_flight}/{engine.slots}", style=BUSY if engine.in_flight >= engine.slots else ""),
                str(engine.limit),
                seconds(engine.ttft),
            )
    return table


def style_of(engine: Engine) -> str:
    return {"ready": GOOD, "draining": BUSY}.get(engine.state, BAD)


def fleets(view: View) -> Table:
    table = plain("fleet", "role", "current", "ready", "wanted")
    table.add_column("last decision", overflow="fold")
    for one in view.others:
        said = Text(f"{one.reason}: {one.message}".strip(": ") or "nobody decided yet")
        table.add_row(Text(one.scaler), one.role, str(one.current), str(one.ready), str(one.desired), said)
    return table


def plain(first: str, *rest: str) -> Table:
    """A table without lines between cells; figures to the right."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    table.add_column(first, overflow="fold")
    for name in rest:
        word = name in ("model", "role", "state")
        table.add_column(name, justify="left" if word else "right", overflow="fold", no_wrap=not word)
    return table


def figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.1f} %"


def seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.2f} s"
