"""What a tenant may use per minute and at once, in this router's part of it.

In: a tenant, an estimate of tokens, `now`, and the fraction of every quota that is this router's. Out: a lease, or a
`Refusal` with `Retry-After` and the figures OpenAI's clients know. Tokens are taken by estimate when a request comes
and settled by what it really used. It never waits or reads a clock.
"""

from __future__ import annotations

import math
from typing import Final

from llmfleet.router.errors import Code, Refusal
from llmfleet.router.keys import Tenant

MINUTE: Final = 60.0
MAX_RETRY_AFTER: Final = 60  # official clients do not wait longer than 120 s, and a bucket is full again after 60
ASSUMED_TOKENS: Final = 256  # of an answer whose request sets no bound


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

    __slots__ = ("fraction", "in_flight", "requests", "room", "tenant", "tokens")

    def __init__(self, tenant: Tenant, now: float, fraction: float) -> None:
        self.in_flight = 0
        self.requests = Bucket(1.0, now)
        self.tokens = Bucket(1.0, now)
        self.adapt(tenant, fraction)

    def adapt(self, tenant: Tenant, fraction: float) -> None:
        """Take other limits, or another part of them."""
        self.tenant, self.fraction = tenant, fraction
        self.room = max(1, math.floor(tenant.concurrency * fraction))
        self.requests.resize(max(1.0, tenant.rpm * fraction))
        self.tokens.resize(max(1.0, tenant.tokens_per_minute * fraction))


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
    """The accounts of every tenant with a limit. `fraction` is this router's part of each."""

    __slots__ = ("_accounts", "fraction", "refused")

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self.fraction = 1.0
        self.refused: dict[tuple[str, str], int] = {}  # by tenant and limit

    def enter(self, tenant: Tenant, tokens: float, now: float) -> Lease | None:
        """Admit a request, or refuse it with the reason; None: this tenant has no limit at all."""
        if not (tenant.rpm or tenant.tokens_per_minute or tenant.concurrency):
            return None
        account = self._accounts.get(tenant.name)
        if account is None:
            account = self._accounts[tenant.name] = Account(tenant, now, self.fraction)
        elif account.tenant is not tenant or account.fraction != self.fraction:
            account.adapt(tenant, self.fraction)
        if tenant.concurrency and account.in_flight >= account.room:
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
