"""Every scenario there is, in the order in which they run: the soak last."""

from __future__ import annotations

from faults_long import (
    apiserver_moods,
    certificates,
    clocks,
    control_plane_away,
    drains,
    images_missing,
    node_power,
    partitions,
    ranks,
    real_engines,
    redis_gone,
    rollouts,
    router_memory,
    small_faults,
    soak,
)
from faults_long.scenario import Scenario

SCENARIOS: tuple[Scenario, ...] = (
    *rollouts.SCENARIOS,
    *node_power.SCENARIOS,
    *partitions.SCENARIOS,
    *ranks.SCENARIOS,
    *real_engines.SCENARIOS,
    *apiserver_moods.SCENARIOS,
    *redis_gone.SCENARIOS,
    *control_plane_away.SCENARIOS,
    *small_faults.SCENARIOS,
    *drains.SCENARIOS,
    *images_missing.SCENARIOS,
    *clocks.SCENARIOS,
    *certificates.SCENARIOS,
    *router_memory.SCENARIOS,
    *soak.SCENARIOS,
)
