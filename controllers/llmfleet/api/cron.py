"""Five cron fields and a time zone: when did this moment come last?

In: `minute hour day-of-month month day-of-week` with `*`, lists, ranges, steps and names. Out: the last occurrence at
or before a moment, or whether a window between two of them is open. Times that a clock change skips do not occur.
As in cron, when both days are restricted either is enough. It never asks what time it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
FIELDS: Final = (("minute", 0, 59), ("hour", 0, 23), ("day of month", 1, 31), ("month", 1, 12), ("day of week", 0, 7))
LOOK_BACK_DAYS: Final = 400
"""A moment that has not come for longer than a year is as good as never."""


class CronError(ValueError):
    """The text is no cron expression, or no time zone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cron:
    """The minutes, hours and days on which a moment comes."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    any_day: bool
    any_weekday: bool

    def on(self, day: datetime) -> bool:
        """Whether the moment comes on this day at all."""
        if day.month not in self.months:
            return False
        by_day, by_weekday = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return by_day and by_weekday if self.any_day or self.any_weekday else by_day or by_weekday


@lru_cache(maxsize=1024)
def parse_cron(text: str) -> Cron:
    """Read five fields."""
    parts = text.lower().split()
    if len(parts) != len(FIELDS):
        raise CronError(f"{text!r} has not five fields: write minute, hour, day of month, month, day of week")
    minutes, hours, days, months, weekdays = (
        parse_field(part, *bounds) for part, bounds in zip(parts, FIELDS, strict=True)
    )
    return Cron(
        minutes=tuple(sorted(minutes, reverse=True)),
        hours=tuple(sorted(hours, reverse=True)),
        days=days,
        months=months,
        weekdays=frozenset(day % 7 for day in weekdays),
        any_day=parts[2].startswith("*"),
        any_weekday=parts[4].startswith("*"),
    )


def parse_field(text: str, name: str, low: int, high: int) -> frozenset[int]:
    """The numbers one field stands for."""
    found: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, last = parse_span(span, name, low, high, open_ended=bool(step))
        if step and (not step.isdecimal() or not int(step)):
            raise CronError(f"{part!r} is no step of {name}")
        found.update(range(first, last + 1, int(step or 1)))
    return frozenset(found)


def parse_span(text: str, name: str, low: int, high: int, *, open_ended: bool) -> tuple[int, int]:
    if text == "*":
        return low, min(high, 6) if name == "day of week" else high
    first, _, last = text.partition("-")
    begin = parse_number(first, name)
    end = parse_number(last, name) if last else high if open_ended else begin
    if not low <= begin <= end <= high:
        raise CronError(f"{text!r} is outside {name} {low}-{high}")
    return begin, end


def parse_number(text: str, name: str) -> int:
    if name == "month" and text in MONTHS:
        return MONTHS.index(text) + 1
    if name == "day of week" and text in DAYS:
        return DAYS.index(text)
    if not text.isdecimal():
        raise CronError(f"{text!r} is no {name}")
    return int(text)


@lru_cache(maxsize=256)
def parse_zone(name: str) -> ZoneInfo:
    """A time zone by its IANA name."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise CronError(f"{name!r} is no time zone known here: write an IANA name such as Europe/Amsterdam") from None


def last_before(cron: Cron, moment: datetime) -> datetime | None:
    """The last time the moment came, at or before `moment` (in the zone of `moment`)."""
    for back in range(LOOK_BACK_DAYS):
        day = moment - timedelta(days=back)
        if not cron.on(day):
            continue
        for hour in cron.hours:
            for minute in cron.minutes:
                found = day.replace(hour=hour, minute=minute, second=0, microsecond=0, fold=0)
                if found <= moment and exists(found):
                    return found
    return None


def exists(moment: datetime) -> bool:
    """False for a local time that a clock change skips."""
    utc = ZoneInfo("UTC")
    return moment.astimezone(utc).astimezone(moment.tzinfo).replace(fold=0) == moment.replace(fold=0)


def is_open(start: str, end: str, zone: str, now: datetime) -> bool:
    """Whether a window has opened since it last closed."""
    local = now.astimezone(parse_zone(zone))
    opened, closed = last_before(parse_cron(start), local), last_before(parse_cron(end), local)
    return opened is not None and (closed is None or opened > closed)
