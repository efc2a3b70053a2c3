"""Which server is the primary, and how many could take its place, by what a majority of the Sentinels says.

In: what each Sentinel says, or why it says nothing. Out: `Primary`, or `NoPrimary` with the reason in words. Less than
a majority is not believed: the others may have made another server the primary. Of the replicas, each counts that any
of the majority could promote: a job that all of these have is there after the failover, whichever of them it makes the
primary. One that all take for gone does not count, so jobs go on without it. It never asks anybody anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

SILENT_MILLISECONDS: Final = 5000
"""Sentinels promote no replica that was silent for longer."""


class NoPrimary(Exception):
    """There is no server that jobs may be written to; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Primary:
    """The server that keeps jobs; `copies` is how many replicas could take its place, as far as anybody knows."""

    address: str
    copies: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What one Sentinel says: the primary's address, whether it is down, and which replicas it could promote."""

    address: str
    down: bool = False
    replicas: frozenset[str] = frozenset()


def said_of(master: Mapping[str, Any], replicas: Iterable[Mapping[str, Any]]) -> Said:
    """Read the answers to SENTINEL MASTER and SENTINEL REPLICAS."""
    return Said(
        address=address_of(master),
        down=bool(master["is_sdown"] or master["is_odown"]),
        replicas=frozenset(address_of(one) for one in replicas if _promotable(one)),
    )


def _promotable(replica: Mapping[str, Any]) -> bool:
    """Whether a Sentinel would choose it: not one that is down or silent, nor one of priority 0.

    That a connection to it is gone says nothing: a promotion begins by closing all of them.
    """
    silent = replica["last-ok-ping-reply"] > SILENT_MILLISECONDS
    return not (replica["is_sdown"] or replica["is_odown"] or silent) and replica.get("slave-priority") != 0


def address_of(server: Mapping[str, Any]) -> str:
    """HOST:PORT, with the brackets of IPv6."""
    host = server["ip"]
    return f"[{host}]:{server['port']}" if ":" in host else f"{host}:{server['port']}"


def agreed(answers: Sequence[Said | str]) -> Primary:
    """Return what a majority says; a text stands for a Sentinel that says nothing, and says why."""
    said = [one for one in answers if isinstance(one, Said)]
    silent = [one for one in answers if isinstance(one, str)]
    if 2 * len(said) <= len(answers):
        raise NoPrimary(f"{len(silent)} of {len(answers)} Sentinels say nothing: {silent[0]}")
    votes = Counter(one.address for one in said if not one.down)
    address, count = votes.most_common(1)[0] if votes else ("", 0)
    if 2 * count > len(answers):
        replicas = {replica for one in said if one.address == address for replica in one.replicas}
        return Primary(address=address, copies=len(replicas - {address}))
    down = [one.address for one in said if one.down]
    if down:
        raise NoPrimary(f"{len(down)} of {len(answers)} Sentinels take the primary {down[0]} for down")
    raise NoPrimary("the Sentinels do not agree which server is the primary")
