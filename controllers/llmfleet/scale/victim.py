"""Which instances go.

In: the instances of a fleet, a policy, how many. Out: those instances, in the order they go. Never one that somebody
else made; first those that do not serve anyway (newest first: it has the longest way to go), then those of an outdated
shape, then as the policy says; ties go to the newest.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmfleet.api.autoscaler import Victim
from llmfleet.scale.fleet import Instance


def victims(candidates: Iterable[Instance], policy: Victim, wanted: int) -> list[Instance]:
    """The instances to delete."""
    own = [one for one in candidates if one.ours and not one.leaving]
    return sorted(own, key=lambda one: rank(one, policy))[: max(wanted, 0)]


def rank(one: Instance, policy: Victim) -> tuple[bool, bool, float, float, str]:
    """Lowest goes first."""
    if not one.ready:
        return False, False, 0.0, -one.created, one.name
    by_policy = {Victim.LEAST_UTILIZED: one.load, Victim.NEWEST: 0.0, Victim.OLDEST: one.created}[policy]
    return True, not one.outdated, by_policy, -one.created, one.name
