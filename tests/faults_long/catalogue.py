"""Every scenario there is, in the order in which they run: the soak last."""

from __future__ import annotations

from faults_long import (
    apiserver_moods,
    control_plane_away,
    node_power,
    partitions,
    ranks,
    real_engines,
    redis_gone,
    rollouts,
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
    *soak.SCENARIOS,
)
