"""The source of figures that a spec names, with the token that it needs.

In: a spec and its namespace. Out: a `Source`. A token is read from a Secret of the same namespace, by the name the spec
gives, and kept in memory for a minute; nobody may list Secrets. It is never logged, and no message holds it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Final

from llmfleet.api.autoscaler import AutoscalerSpec, SourceType
from llmfleet.kube.client import Api
from llmfleet.kube.errors import KubeError
from llmfleet.kube.refs import SECRET, Key, Ref
from llmfleet.prometheus.client import Prometheus
from llmfleet.prometheus.query import QueryError
from llmfleet.scale.client import Direct, Source
from llmfleet.telemetry import AutoscalerMetrics

TOKEN_SECONDS: Final = 60.0

Clock = Callable[[], float]


class Sources:
    """Where figures come from: the processes themselves, or one client for each Prometheus and token."""

    def __init__(self, api: Api, clock: Clock, metrics: AutoscalerMetrics) -> None:
        self._api, self._clock, self._metrics = api, clock, metrics
        self._direct = Direct(clock, metrics)
        self._servers: dict[tuple[str, ...], Prometheus] = {}

    def of(self, spec: AutoscalerSpec, namespace: str) -> Source:
        """The source a spec names."""
        if spec.source.type is SourceType.DIRECT:
            return self._direct
        asked = spec.source.prometheus
        named = asked.bearer_token_secret_ref
        token = Token(self._api, self._clock, Key(namespace, named.name), named.key) if named.name else None
        place = (asked.address, *((namespace, named.name, named.key) if token else ()))
        made = Prometheus(asked.address, self._clock, self._metrics, token.read if token else None)
        return self._servers.setdefault(place, made)


class Token:
    """A bearer token out of a Secret of the autoscaler's own namespace, read again after a while."""

    def __init__(self, api: Api, clock: Clock, secret: Key, key: str) -> None:
        self._api, self._clock, self._secret, self._key = api, clock, secret, key
        self._read, self._at = "", float("-inf")

    def read(self) -> str:
        """The token; `QueryError` says which Secret is at fault, and nothing of what is in it."""
        if not 0 <= self._clock() - self._at <= TOKEN_SECONDS:
            ref = Ref(kind=SECRET, namespace=self._secret.namespace, name=self._secret.name)
            try:
                data = self._api.get(ref).get("data") or {}
                self._read = parse_token(data[self._key])
            except KubeError as error:
                raise QueryError(f"{ref} cannot be read: {error}") from None
            except (KeyError, ValueError):
                raise QueryError(f"{ref} has no token under the key {self._key}") from None
            self._at = self._clock()
        return self._read


def parse_token(text: str) -> str:
    """One word out of base64; ValueError when it is none, as a line break would begin another header."""
    token = base64.b64decode(text, validate=True).decode("ascii").strip()
    if len(token.split()) != 1:
        raise ValueError("not one word")
    return token
