"""Let go of what an operator holds, after Helm has deleted the operator.

In: whose operator it was (`<namespace>/<release>`), the namespaces it watched, its Leases. Out: progress lines. An
LLMCluster that it managed and that no release of ours deletes, such as one made by hand, keeps running; without its
finalizer it can be deleted without an operator. Another operator's is never touched. The Leases go, so that the next
operator of this name leads at once. Whatever goes wrong is said and never raised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from llmfleet import names
from llmfleet.kube.client import Api
from llmfleet.kube.errors import Forbidden, KubeError, NotFound
from llmfleet.kube.execute import execute
from llmfleet.kube.refs import LEASE, LLMCLUSTER, POD, Manifest, Ref, ref_of, uid_of
from llmfleet.uninstall.progress import is_held_by, our_finalizers, plan_strip

LOOK_SECONDS: Final = 1.0
CONTROLLER_PODS: Final = f"{names.APP_INSTANCE_LABEL}={{}},{names.APP_COMPONENT_LABEL} in (operator, autoscaler)"

Say = Callable[[str], None]


class Release:
    """One operator's leave."""

    def __init__(
        self,
        api: Api,
        identity: str,
        *,
        namespaces: Sequence[str],
        leases: Sequence[str],
        timeout: float,
        say: Say,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._api, self._identity, self._say = api, identity, say
        self._home, _, self._name = identity.partition("/")
        self._namespaces, self._leases = tuple(namespaces) or ("",), leases
        self._look_seconds, self._timeout = look_seconds, timeout
        self._deadline = time.monotonic() + timeout

    def run(self) -> None:
        """A living operator would take everything back, so its end is waited for first."""
        self._try("waiting for the operator to end", self._wait_for_operator)
        for lease in self._leases:
            self._try(f"Lease {lease}", partial(self._drop, lease))
        for namespace in self._namespaces:
            where = f"namespace {namespace}" if namespace else "all namespaces"
            self._try(f"LLMClusters of {where}", partial(self._let_go, namespace))

    def _try(self, what: str, step: Callable[[], None]) -> None:
        """Run one step again until the apiserver answers, or the time is up."""
        while True:
            try:
                return step()
            except (NotFound, Forbidden) as error:
                return self._say(f"{what}: left as it is: {error}")
            except KubeError as error:
                if time.monotonic() >= self._deadline:
                    return self._say(f"{what}: giving up: {error}")
                self._say(f"{what}: trying again: {error}")
                time.sleep(max(self._look_seconds, error.retry_after))

    def _wait_for_operator(self) -> None:
        """No pod of it or its autoscaler is left. One that hangs has no rights any more: its Roles went before."""
        selector = CONTROLLER_PODS.format(self._name)
        while left := self._api.list(POD, namespace=self._home, label_selector=selector)[0]:
            if time.monotonic() >= self._deadline:
                return self._say(f"going on although {len(left)} pods of the operator have not ended")
            time.sleep(self._look_seconds)
        return None

    def _drop(self, lease: str) -> None:
        ref = Ref(kind=LEASE, namespace=self._home, name=lease)
        try:
            self._api.delete(ref, uid_of(self._api.get(ref)))
        except NotFound:
            return
        self._say(f"deleted {ref}")

    def _let_go(self, namespace: str) -> None:
        for obj in self._held(namespace):
            try:
                execute((plan_strip(obj),), self._api)
            except NotFound:
                continue
            self._say(
                f"took the finalizer off {ref_of(obj)}: its operator {self._identity} goes; its pods keep running, and"
                " nobody drains, updates or restarts them until an operator of that name is back"
            )

    def _held(self, namespace: str) -> Iterator[Manifest]:
        found, _ = self._api.list(LLMCLUSTER, namespace=namespace)
        return (obj for obj in found if is_held_by(obj, self._identity) and our_finalizers(obj))
