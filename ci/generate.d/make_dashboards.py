"""The dashboards of the monitoring chart, one JSON file for each page of ci/dashboards.

In: the pages, as Python values. Out: the files as text. It writes nothing and asks no Prometheus.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def outputs(root: Path) -> dict[Path, str]:
    """One file for each page, named after its uid."""
    folder = str(root / "ci" / "dashboards")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    from llmfleet_dashboards import dashboards
    from llmfleet_dashboards.grafana import to_json

    target = root / "charts" / "llmfleet-monitoring" / "dashboards"
    return {target / f"{page.uid}.json": json.dumps(to_json(page), indent=2) + "\n" for page in dashboards()}
