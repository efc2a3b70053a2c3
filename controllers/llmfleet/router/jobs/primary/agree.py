"""Which server is the primary, and how many replicas could take its place, by what a majority of the Sentinels says.

In: what each Sentinel says, or why it says nothing; what the primary says of its replicas. Out: `Primary`, or
`Unavailable` with the reason in words, and how many copies outlive any failover. Less than a majority is not believed:
the others may have made another server the primary. It never asks anybody anything.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llmfleet.router.jobs.troubles import Unavailable

SILENT_SECONDS: Final = 5
"""Sentinels promote no replica that was silent for longer."""
_REPLICA: Final = re.compile(r"slave\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Primary:
    """The server that keeps jobs; `replicas` is how many the Sentinels hear, None where nobody knows."""

    address: str
    replicas: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What one Sentinel says: the primary's address, whether it is down, and which replicas it hears."""

    address: str
    down: bool = False
    replicas: frozenset[str] = frozenset()


def said_of(master: Mapping[str, Any], replicas: Iterable[Mapping[str, Any]]) -> Said:
    """Read the answers to SENTINEL MASTER and SENTINEL REPLICAS."""
    return Said(
        address=address_of(master),
        down=bool(master["is_sdown"] or master["is_odown"]),
        replicas=frozenset(address_of(one) for one in replicas if _heard(one)),
    )


def _heard(replica: Mapping[str, Any]) -> bool:
    """Whether a Sentinel could promote it. A closed connection says nothing: a promotion begins by closing all."""
    silent = replica["last-ok-ping-reply"] > 1000 * SILENT_SECONDS
    return not (replica["is_sdown"] or replica["is_odown"] or silent)


def address_of(server: Mapping[str, Any]) -> str:
    """HOST:PORT, with the brackets of IPv6."""
    host = server["ip"]
    return f"[{host}]:{server['port']}" if ":" in host else f"{host}:{server['port']}"


def agreed(answers: Sequence[Said | str]) -> Primary:
    """Return what a majority says; a text stands for a Sentinel that says nothing, and says why."""
    said = [one for one in answers if isinstance(one, Said)]
    silent = [one for one in answers if isinstance(one, str)]
    if 2 * len(said) <= len(answers):
        raise Unavailable(f"{len(silent)} of {len(answers)} Sentinels say nothing: {silent[0]}")
    votes = Counter(one.address for one in said if not one.down)
    address, count = votes.most_common(1)[0] if votes else ("", 0)
    if 2 * count > len(answers):
        replicas = {replica for one in said if one.address == address for replica in one.replicas}
        return Primary(address=address, replicas=len(replicas - {address}))
    down = [one.address for one in said if one.down]
    if down:
        raise Unavailable(f"{len(down)} of {len(answers)} Sentinels take the primary {down[0]} for down")
    raise Unavailable("the Sentinels do not agree which server is the primary")


def needed_copies(primary: Primary, info: Mapping[str, Any]) -> int:
    """How many replicas must have what no failover may undo: all there are, whichever of them is promoted.

    WAIT counts replicas and does not say which. So those that follow the primary (by its INFO) count as well as those
    that the Sentinels hear: one that only follows must not stand for one that is being promoted.
    """
    if primary.replicas is None:
        return 0
    return max(primary.replicas, sum(_follows(one) for key, one in info.items() if _REPLICA.fullmatch(key)))


def _follows(replica: Any) -> bool:
    return isinstance(replica, Mapping) and replica["state"] == "online" and int(replica["lag"]) <= SILENT_SECONDS
