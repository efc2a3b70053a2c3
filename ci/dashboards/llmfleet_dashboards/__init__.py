"""The Grafana dashboards of the monitoring chart: panels as values, and the JSON that Grafana reads."""

from llmfleet_dashboards import controllers, disaggregation, engines, gpu, overview, router
from llmfleet_dashboards.model import Dashboard


def dashboards() -> tuple[Dashboard, ...]:
    """Every page, in the order of a look: from what clients feel to what it costs."""
    return tuple(page.build() for page in (overview, router, engines, disaggregation, controllers, gpu))
