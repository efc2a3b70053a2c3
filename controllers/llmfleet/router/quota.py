"""What a tenant may use per minute and at once, in this router's part of it.

In: a tenant, an estimate of tokens, `now`, and what other routers are asked for. Out: a lease, or a `Refusal` with
`Retry-After` and the figures OpenAI's clients know. Tokens are taken by estimate when a request comes and settled by
what it really used. A fifth of every quota is divided evenly between the routers, and the rest by what each is asked
for; a part that grows brings nothing along but a faster fill, so nobody gets more by turning from one router to
another. It never waits or reads a clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from llmfleet.router.errors import Code, Refusal
from llmfleet.router.keys import Tenant
from llmfleet.router.reports import Asked

MINUTE: Final = 60.0
MAX_RETRY_AFTER: Final = 60  # official clients do not wait longer than 120 s, and a bucket is full again after 60
ASSUMED_TOKENS: Final = 256  # of an answer whose request sets no bound
EVEN: Final = 0.2  # of a quota: a router that a tenant turns to has something for it at once
FADE_SECONDS: Final = 10.0  # in which a request that was asked for counts for a third of one that is now
FORGET_SECONDS: Final = 60.0  # after which it does not count at all
TELL_SECONDS: Final = 0.1  # for which what was told to one router is told to the others too
NOTHING: Final = Asked(0.0, 0)


class Bucket:
    """A limit per minute: it fills steadily and holds a minute's worth; what was used beyond that is owed."""

    __slots__ = ("_at", "level", "size")

    def __init__(self, size: float, now: float) -> None:
        self.size = self.level = size
        self._at = now

    def resize(self, size: float) -> None:
        """Take another limit; what was used stays used, as a part of the whole."""
        if size != self.size:
            self.level *= size / self.size
            self.size = size

    def shift(self, size: float) -> None:
        """Take another part of the same limit; what is left is left."""
        self.size = size
        self.level = min(self.level, size)

    def fill(self, now: float) -> float:
        if now > self._at:
            self.level = min(self.size, self.level + (now - self._at) * self.size / MINUTE)
            self._at = now
        return self.level

    def wait(self, amount: float) -> float:
        """Return the seconds until an amount is there; an amount over the whole needs a full bucket."""
        return max(0.0, (min(amount, self.size) - self.level) * MINUTE / self.size)


class Account:
    """What one tenant has left here."""

    __slots__ = ("_asked", "_asked_at", "fraction", "in_flight", "requests", "tenant", "tokens")

    def __init__(self, tenant: Tenant, now: float, fraction: float) -> None:
        self.in_flight = 0
        self.fraction = fraction
        self._asked, self._asked_at = 0.0, now
        self.requests = Bucket(1.0, now)
        self.tokens = Bucket(1.0, now)
        self.adapt(tenant, fraction)

    def adapt(self, tenant: Tenant, fraction: float) -> None:
        """Take other limits, or another part of them."""
        for bucket, limit in ((self.requests, tenant.rpm), (self.tokens, tenant.tokens_per_minute)):
            bucket.resize(max(1.0, limit * self.fraction))
            bucket.shift(max(1.0, limit * fraction))
        self.tenant, self.fraction = tenant, fraction

    def ask(self, now: float) -> None:
        """Count a request, also one that is refused."""
        self._asked = self._faded(now) + 1.0
        self._asked_at = now

    def asked(self, now: float) -> Asked:
        """Return how much is asked for here: requests of late and those that are open, and how many are open."""
        forgotten = now - self._asked_at > FORGET_SECONDS
        return Asked(round((0.0 if forgotten else self._faded(now)) + self.in_flight, 2), self.in_flight)

    def _faded(self, now: float) -> float:
        return self._asked * math.exp(min(0.0, self._asked_at - now) / FADE_SECONDS)


class Lease:
    """One admitted request; give it back once."""

    __slots__ = ("_account", "_taken")

    def __init__(self, account: Account, taken: float) -> None:
        self._account: Account | None = account
        self._taken = taken

    def settle(self, used: float) -> None:
        """The request is over: its tokens are what it used, not what was estimated."""
        account, self._account = self._account, None
        if account is not None:
            account.in_flight -= 1
            if account.tenant.tokens_per_minute:  # a limit that comes later begins with nothing owed
                account.tokens.level = min(account.tokens.size, account.tokens.level + self._taken - used)


class Quotas:
    """The accounts of every tenant with a limit. `fraction` is this router's part unless all the others are heard."""

    __slots__ = ("_accounts", "_before", "_latest", "_others", "_routers", "_told", "_told_at", "fraction", "refused")

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._told: dict[str, Asked] = {}  # to the other routers
        self._told_at = -math.inf
        self._before: dict[str, Asked] = {}  # what was told when the quotas were divided before the last time
        self._latest: dict[str, Asked] = {}  # and the last time
        self._others: dict[str, Asked] | None = None  # what all of them are asked for; None: not all are heard
        self._routers = 1
        self.fraction = 1.0
        self.refused: dict[tuple[str, str], int] = {}  # by tenant and limit

    def enter(self, tenant: Tenant, tokens: float, now: float) -> Lease | None:
        """Admit a request, or refuse it with the reason; None: this tenant has no limit at all."""
        if not (tenant.rpm or tenant.tokens_per_minute or tenant.concurrency):
            return None
        account = self._accounts.get(tenant.name)
        fraction = self.part(tenant.name)
        if account is None:
            account = self._accounts[tenant.name] = Account(tenant, now, fraction)
        elif account.tenant is not tenant or account.fraction != fraction:
            account.adapt(tenant, fraction)
        account.ask(now)
        if tenant.concurrency and account.in_flight >= self.room(tenant, fraction):
            raise self._refusal(account, "concurrency", 1.0, now)
        requests, bucket, taken = account.requests, account.tokens, 0.0
        if tenant.rpm and requests.fill(now) < 1:
            raise self._refusal(account, "requests", requests.wait(1), now)
        if tenant.tokens_per_minute:
            taken = tokens
            if bucket.fill(now) < min(tokens, bucket.size):
                raise self._refusal(account, "tokens", bucket.wait(tokens), now)
        account.in_flight += 1
        requests.level -= 1 if tenant.rpm else 0
        bucket.level -= taken
        return Lease(account, taken)

    def demands(self, now: float, *, draining: bool = False) -> dict[str, Asked]:
        """Say to other routers what this one is asked for, by tenant; one that drains needs no part for what comes."""
        if now - self._told_at >= TELL_SECONDS:
            every = {name: account.asked(now) for name, account in self._accounts.items()}
            told = {name: asked for name, asked in every.items() if asked.demand}
            self._told = {n: Asked(0.0, asked.in_flight) for n, asked in told.items()} if draining else told
            self._told_at = now
        return self._told

    def divide(self, told: dict[str, Asked], others: Sequence[Mapping[str, Asked] | None]) -> None:
        """Take over what this router told and what each other one is asked for; None: nobody can know."""
        self._others, self._routers = {}, len(others) + 1
        self._before, self._latest = self._latest, told
        for other in others:
            if other is None:
                self._others = None
                return
            for name, asked in other.items():
                known = self._others.get(name, NOTHING)
                self._others[name] = Asked(known.demand + asked.demand, known.in_flight + asked.in_flight)

    def part(self, name: str) -> float:
        """Return this router's part of a tenant's quota; the parts of all that hear each other add up to one."""
        if self._others is None or self._routers == 1:
            return self.fraction
        # Not what the others cannot know yet: they would still have the part that is taken.
        own = min(self._before.get(name, NOTHING).demand, self._latest.get(name, NOTHING).demand)
        total = own + self._others.get(name, NOTHING).demand
        return EVEN / self._routers + (1.0 - EVEN) * (own / total if total else 1.0 / self._routers)

    def room(self, tenant: Tenant, fraction: float) -> int:
        """Return how many requests a tenant may have open here: one at least, however many routers there are."""
        part = tenant.concurrency * fraction
        if self._others is None:
            return max(1, math.floor(part))
        # What was another router's part a moment ago may still be in use there.
        elsewhere = self._others.get(tenant.name, NOTHING).in_flight
        return max(1, min(math.ceil(part - 1e-9), tenant.concurrency - elsewhere))

    def in_flight(self, name: str) -> int:
        """Return how many requests of a tenant with a limit are open."""
        account = self._accounts.get(name)
        return account.in_flight if account is not None else 0

    def keep(self, tenants: dict[str, Tenant]) -> None:
        """Forget tenants that are no longer named and have nothing open."""
        self._accounts = {n: a for n, a in self._accounts.items() if n in tenants or a.in_flight}

    def _refusal(self, account: Account, limit: str, wait: float, now: float) -> Refusal:
        tenant = account.tenant
        account.requests.fill(now)
        account.tokens.fill(now)
        key = (tenant.name, limit)
        self.refused[key] = self.refused.get(key, 0) + 1
        most = {
            "concurrency": f"{tenant.concurrency} requests at once",
            "requests": f"{tenant.rpm} requests per minute",
            "tokens": f"{tenant.tokens_per_minute} tokens per minute",
        }[limit]
        return Refusal(
            status=429,
            code=Code.RATE_LIMITED,
            message=f"rate limit reached: this API key may use {most}",
            kind=limit,
            extra=b"retry-after: %d\r\n%b" % (min(MAX_RETRY_AFTER, max(1, math.ceil(wait))), headers(account)),
        )


def headers(account: Account) -> bytes:
    """Write the figures as OpenAI does; what is left is told for the whole quota, of which this router has a part."""
    tenant, lines = account.tenant, []
    for limit, bucket, name in (
        (tenant.rpm, account.requests, b"requests"),
        (tenant.tokens_per_minute, account.tokens, b"tokens"),
    ):
        if limit:
            left = max(0, math.floor(bucket.level * limit / bucket.size))
            lines.append(b"x-ratelimit-limit-%b: %d\r\n" % (name, limit))
            lines.append(b"x-ratelimit-remaining-%b: %d\r\n" % (name, left))
            lines.append(b"x-ratelimit-reset-%b: %b\r\n" % (name, duration(bucket.wait(bucket.size))))
    return b"".join(lines)


def duration(seconds: float) -> bytes:
    """Write a time as OpenAI does: 20ms, 6s, 1m30s."""
    if seconds < 1:
        return b"%dms" % math.ceil(seconds * 1000)
    whole = math.ceil(seconds)
    return b"%ds" % whole if whole < 60 else b"%dm%ds" % divmod(whole, 60)


def estimate(size: int, choices: int, max_tokens: int) -> float:
    """Estimate the tokens of a request before it runs: its bytes, and the most its answers may have."""
    return size / 4 + choices * (max_tokens or ASSUMED_TOKENS)
