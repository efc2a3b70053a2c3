"""`python -m dashboards` in tests/: run the fleet of the tests for a while and draw each page for the docs.

In: this checkout. Out: docs/images/dashboard-*.svg. It fails like the test when a target shows nothing.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from dashboards.asking import Range, choose, show
from dashboards.drawing import draw
from dashboards.fleet import Fleet
from dashboards.pages import ROOT, pages, queries
from dashboards.scraping import Prometheus
from dashboards.traffic import Traffic

IMAGES = ROOT / "docs" / "images"
SECONDS = 90
HEALED = 8  # seconds without a fault at the end, so that every engine is in the figures of now
STEP = 2


def main() -> int:
    """Run, ask, draw."""
    with (
        tempfile.TemporaryDirectory(prefix="llmfleet dashboards ") as folder,
        Fleet(Path(folder)) as fleet,
        Prometheus(fleet, Path(folder) / "prometheus") as prometheus,
    ):
        span = drive(fleet, prometheus)
        for uid, page in pages().items():
            values = choose(prometheus, page, {})
            shown = [show(prometheus, query, values, span, step=STEP) for query in queries(page)]
            problems = [f"{one.query.name}: {problem}" for one in shown for problem in one.problems]
            if problems:
                print("\n".join(problems), file=sys.stderr)
                return 1
            path = IMAGES / f"dashboard-{uid.removeprefix('llmfleet-')}.svg"
            path.write_text(draw(page, {(one.query.panel, one.query.letter): one for one in shown}, span))
            print(path.relative_to(ROOT))
    return 0


def drive(fleet: Fleet, prometheus: Prometheus) -> Range:
    """Mixed traffic, under which the autoscaler lets a fleet grow."""
    begin = time.time()
    with Traffic(fleet) as traffic:
        while time.time() < begin + SECONDS:
            time.sleep(0.5)
            prometheus.discover()
            if time.time() > begin + SECONDS - HEALED:
                traffic.heal()
        return Range(start=begin, end=begin + SECONDS - 1)


if __name__ == "__main__":
    sys.exit(main())
