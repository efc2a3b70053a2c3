"""Every scenario there is, in the order in which they run: the soak last."""

from __future__ import annotations

from faults_long import (
    apiserver_moods,
    control_plane_away,
    freezes,
    node_power,
    partitions,
    redis_gone,
    small_faults,
    soak,
)
from faults_long.scenario import Scenario

SCENARIOS: tuple[Scenario, ...] = (
    *node_power.SCENARIOS,
    *partitions.SCENARIOS,
    *freezes.SCENARIOS,
    *apiserver_moods.SCENARIOS,
    *redis_gone.SCENARIOS,
    *control_plane_away.SCENARIOS,
    *small_faults.SCENARIOS,
    *soak.SCENARIOS,
)
