"""Carry a plan out, action by action, in order.

In: a plan and the API. Out: what the apiserver answered for each action (None for deletes and events). The first error
ends the plan and is raised (`kube.errors`); an event that cannot be written never does. It never retries.
"""

from __future__ import annotations

from llmfleet.kube.client import Api
from llmfleet.kube.plan import Plan
from llmfleet.kube.refs import Manifest


def execute(plan: Plan, api: Api) -> tuple[Manifest | None, ...]:
    """Run every action of the plan."""
    raise NotImplementedError
