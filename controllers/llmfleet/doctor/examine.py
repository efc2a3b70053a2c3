"""Run every check over a snapshot, and say what was found.

In: a `Snapshot`. Out: findings, errors first; text; one JSON object. It repairs nothing. A check that trips over an
object of a shape it does not know costs that check, not the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llmfleet.doctor import install, serving
from llmfleet.doctor.snapshot import Finding, Severity, Snapshot

Check = Callable[[Snapshot], Iterator[Finding]]
CHECKS: Sequence[Check] = (*install.CHECKS, *serving.CHECKS)
NAMES = (
    "crds",
    "controllers",
    "images",
    "devices",
    "claims",
    "secrets",
    "token",
    "instances",
    "roll-out",
    "fleets",
    "backends",
    "routers",
    "route-sync",
    "redis",
    "access",
)
"""Every check by the name its findings carry, in the order of a start."""


def examine(world: Snapshot) -> list[Finding]:
    """All findings: errors first, then in the order in which an install comes up."""
    found = [finding for check in CHECKS for finding in guarded(check, world)]
    return sorted(found, key=lambda one: (one.severity is not Severity.ERROR, NAMES.index(one.check), one.where))


def guarded(check: Check, world: Snapshot) -> Iterator[Finding]:
    """What a check found until it was through, or could not go on: then that is a finding too."""
    try:
        yield from check(world)
    except Exception as error:  # any shape of any object may be the cause
        yield Finding(
            check="access",
            severity=Severity.WARNING,
            where=f"check {check.__name__}",
            problem=f"check {check.__name__} could not run: {type(error).__name__}: {error}",
            fix="an object it reads has a shape that this version does not know: use llmfleet of the chart's version",
        )


def has_errors(findings: Sequence[Finding]) -> bool:
    return any(one.severity is Severity.ERROR for one in findings)


def text(world: Snapshot, findings: Sequence[Finding]) -> Iterator[str]:
    """What was looked at, each fault with its fix, and a verdict."""
    counts = ((len(objects), kind) for kind, objects in world.objects.items())
    looked = ", ".join(f"{count} {kind}" for count, kind in counts if count)
    yield f"looked at {looked or 'nothing'}, {len(world.routers)} answers of routers"
    for one in findings:
        yield ""
        yield f"{one.severity:<7}  {one.check}: {one.where}"
        yield f"         {one.problem}"
        yield f"    fix  {one.fix}"
    yield ""
    errors = sum(one.severity is Severity.ERROR for one in findings)
    yield f"{errors} errors, {len(findings) - errors} warnings" if findings else "nothing wrong was found"


def as_json(world: Snapshot, findings: Sequence[Finding]) -> dict[str, Any]:
    """The same as an object."""
    return {
        "looked": {kind: len(objects) for kind, objects in world.objects.items()},
        "notRead": dict(world.refused),
        "findings": [
            {
                "check": one.check,
                "severity": str(one.severity),
                "where": one.where,
                "problem": one.problem,
                "fix": one.fix,
            }
            for one in findings
        ],
    }
