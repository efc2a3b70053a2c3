"""What docs/explain.md shows is what the law of today says: a change of the law that moves a figure fails here."""

from __future__ import annotations

from pathlib import Path

from crds.crd_objects import monolithic
from llmfleet.explain import report
from llmfleet.explain.core import explain
from unit.scale.builders import COEFFICIENTS
from unit.scale.world import World

PAGE = Path(__file__).parents[3] / "docs/explain.md"


def test_the_page_shows_a_jump_of_the_load_as_it_is_explained_today() -> None:
    """A quarter of an hour at 1.0 instances, then ten minutes at 3.6, with room for five."""
    world, moments = World(), list[str]()
    world.create(
        monolithic(
            {"workBudget.capacity.coefficients": COEFFICIENTS, "workBudget.coldStartSeconds": 40, "maxInstances": 5}
        )
    )
    for second in range(1500):
        world.load = (lambda role: 0.8) if second < 900 else (lambda role: 2.9)
        world.run(1)
        moments += [world.now.isoformat()] * (len(world.events) - len(moments))
    events = [
        {"reason": reason, "action": action, "note": note, "eventTime": at}
        for (_, reason, action, note), at in zip(world.events, moments, strict=True)
    ]
    told = explain(world.scaler(), world.clusters(), events, world.now)
    shown = "\n".join(report.text(told, world.now))
    assert f"$ llmfleet explain llama -n d\n{shown}\n```" in PAGE.read_text()
