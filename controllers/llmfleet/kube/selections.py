"""The caches several controllers share, each asked for in one place so that everything is watched once.

In: a manager and the namespaces to watch (none: all). Out: caches. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmfleet import names
from llmfleet.kube.refs import CONFIGMAP, LLMCLUSTER, POD, STATEFULSET
from llmfleet.kube.watch.client import Cache
from llmfleet.kube.workqueue import Manager


def clusters(manager: Manager, namespaces: Sequence[str]) -> Cache:
    """Every LLMCluster."""
    return manager.cache(LLMCLUSTER, namespaces=namespaces)


def engine_pods(manager: Manager, namespaces: Sequence[str]) -> Cache:
    """Every rank of every instance."""
    return manager.cache(POD, namespaces=namespaces, label_selector=f"{names.APP_NAME_LABEL}={names.ENGINE_APP}")


def router_pods(manager: Manager, namespaces: Sequence[str]) -> Cache:
    """Every router pod of every release."""
    return manager.cache(
        POD, namespaces=namespaces, label_selector=f"{names.APP_COMPONENT_LABEL}={names.ROUTER_COMPONENT}"
    )


def statefulsets(manager: Manager, namespaces: Sequence[str]) -> Cache:
    """The StatefulSet of every instance."""
    return manager.cache(STATEFULSET, namespaces=namespaces, label_selector=names.CLUSTER_LABEL)


def backends(manager: Manager, namespaces: Sequence[str]) -> Cache:
    """Every ConfigMap that a router reads its backends from, with its data."""
    return manager.cache(CONFIGMAP, namespaces=namespaces, label_selector=f"{names.BACKENDS_LABEL}=true")
