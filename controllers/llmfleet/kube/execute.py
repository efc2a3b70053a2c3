"""Carry a plan out, action by action, in order.

In: a plan and the API. Out: what the apiserver answered for each action (None for deletes and events). The first error
ends the plan and is raised (`kube.errors`), except that an event which cannot be written never stops anything, and
deleting what is gone already is success. It never retries: the work queue does.
"""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime
from typing import assert_never

from llmfleet.kube.client import Api
from llmfleet.kube.errors import KubeError, NotFound, NotLeader
from llmfleet.kube.events import Continue, Create, EventLog
from llmfleet.kube.plan import Action, Apply, ApplyStatus, CreateEvent, Delete, MergePatch, Plan
from llmfleet.kube.refs import Manifest
from llmfleet.settings import holder_name

log = logging.getLogger(__name__)


def execute(plan: Plan, api: Api) -> tuple[Manifest | None, ...]:
    """Run every action of the plan."""
    return tuple([_run(action, api) for action in plan])


def _run(action: Action, api: Api) -> Manifest | None:
    match action:
        case Apply():
            return api.apply(action.obj, force=action.force)
        case ApplyStatus():
            return api.apply_status(action.ref, action.status, resource_version=action.resource_version)
        case MergePatch():
            return api.merge_patch(
                action.ref, action.body, resource_version=action.resource_version, subresource=action.subresource
            )
        case Delete():
            _delete(action, api)
        case CreateEvent():
            _report(action, api)
        case _:
            assert_never(action)
    return None


def _delete(action: Delete, api: Api) -> None:
    try:
        api.delete(action.ref, action.uid, grace_seconds=action.grace_seconds, propagation=action.propagation)
    except NotFound:
        log.debug("already gone", extra={"fields": {"object": str(action.ref)}})


_logs: dict[str, EventLog] = {}
_lock = threading.Lock()


def _log_of(manager: str) -> EventLog:
    if manager not in _logs:
        _logs[manager] = EventLog(controller=manager, instance=holder_name())
    return _logs[manager]


def _report(event: CreateEvent, api: Api) -> None:
    now = datetime.now(UTC)
    with _lock:
        events = _log_of(api.manager)
        step = events.record(event, now)
    try:
        _write(step, event, events, api, now)
    except NotLeader:
        raise
    except KubeError as error:
        fields = {"reason": event.reason, "message": event.message, "error": str(error)}
        log.warning("an event could not be written", extra={"fields": fields})


def _write(step: Create | Continue | None, event: CreateEvent, events: EventLog, api: Api, now: datetime) -> None:
    if isinstance(step, Continue):
        try:
            api.merge_patch(step.ref, step.body)
            return
        except NotFound:
            with _lock:
                step = events.begin_again(event, now)
    if step is not None:
        api.create(step.body)
