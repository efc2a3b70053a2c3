"""Whether a Redis may keep jobs.

In: what it says of itself (INFO). Out: why not, in words for the person who runs it, or nothing; and what would make it
safer. A server that evicts would lose jobs that were acknowledged, so it is refused however much memory it has left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

SAFE_POLICY: Final = "noeviction"
OLDEST: Final = 7  # scripts with flags


def refusal(info: Mapping[str, Any]) -> str:
    """Return why this server must not be used, or nothing. What it does not say is not held against it."""
    policy = str(info.get("maxmemory_policy", SAFE_POLICY))
    if policy != SAFE_POLICY:
        return f"Redis evicts (maxmemory-policy is {policy}) and would lose jobs: set it to {SAFE_POLICY}"
    version = str(info.get("redis_version", OLDEST))
    if version.partition(".")[0].isdigit() and int(version.partition(".")[0]) < OLDEST:
        return f"Redis {version} is too old: jobs need {OLDEST}.0 or newer"
    if info.get("role", "master") != "master":
        return "this Redis is a replica: jobs need the address of the primary, or Sentinels that name it"
    if info.get("cluster_enabled", 0):
        return "this Redis is a cluster: jobs need a single primary"
    return ""


def warnings(info: Mapping[str, Any], *, replicated: bool) -> Iterator[str]:
    """Yield what makes this server less safe than it could be."""
    if not info.get("aof_enabled", 1):
        yield "appendonly is off: jobs are lost when the server stops"
    if replicated and not info.get("connected_slaves", 1):
        yield "redis.replicated is set and no replica is connected: no job is taken until one is"
