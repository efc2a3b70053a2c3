"""Faults on command, as data: what is wrong with the engine right now.

In: a parsed admin command and the time. Out: questions answered. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KINDS = ("die", "hang", "slow", "refuse", "die_at_token", "error_event", "cut", "clear")


@dataclass(slots=True, kw_only=True)
class Faults:
    """The faults in force. Token faults count down over all streams and strike once."""

    slow: float = 1.0
    hang_until: float = 0.0
    refuse: bool = False
    at_token: int = 0
    at_token_kind: str = ""

    def hanging(self, now: float) -> bool:
        """Whether the engine stands still."""
        return now < self.hang_until

    def clear(self) -> None:
        """Make everything well again."""
        self.slow, self.hang_until, self.refuse = 1.0, 0.0, False
        self.at_token, self.at_token_kind = 0, ""

    def strikes(self, tokens: int) -> str:
        """Name the fault that strikes a stream at this many tokens, once."""
        if not self.at_token_kind or tokens < self.at_token:
            return ""
        kind, self.at_token_kind = self.at_token_kind, ""
        return kind


def apply(faults: Faults, command: Mapping[str, Any], now: float) -> str:
    """Set one fault; gives its kind. ValueError says what to write."""
    kind = command.get("kind")
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r} is not one of {', '.join(KINDS)}")
    if kind == "clear":
        faults.clear()
    elif kind == "hang":
        faults.hang_until = now + _number(command, "seconds", 1e9)
    elif kind == "slow":
        faults.slow = _number(command, "factor", 10.0)
    elif kind == "refuse":
        faults.refuse = True
    elif kind in ("die_at_token", "error_event", "cut"):
        faults.at_token = int(_number(command, "token", 1))
        faults.at_token_kind = str(kind)
    return str(kind)


def _number(command: Mapping[str, Any], name: str, default: float) -> float:
    value = command.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise ValueError(f"{name}: {value!r} is not a number of at least 0")
    return float(value)
