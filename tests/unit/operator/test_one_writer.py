"""Every field has the one writer that ARCHITECTURE.md names, by the field managers that a real apiserver kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from fakes.apiserver import Apiserver
from fakes.scripted import eventually
from llmfleet.kube.client import Api
from llmfleet.kube.refs import (
    BUDGET,
    CLAIM,
    CONFIGMAP,
    CONTROLLER_REVISION,
    LEASE,
    LLMCLUSTER,
    SERVICE,
    STATEFULSET,
    Kind,
    Manifest,
    Ref,
)
from unit.operator.test_operator import running
from unit.operator.test_permissions import (
    CONFIGMAP_NAME,
    backends,
    cluster,
    deleted_by_the_operator,
    document,
    ready,
    run_pod,
)

CREATOR: Final = "helm"
PERSON: Final = "kubectl-edit"
OPERATOR: Final = "llmfleet-operator"
ROUTE: Final = "llmfleet-route"

# Object -> beginning of a field's path -> who alone may write what begins so; the longest beginning counts.
Writers = Mapping[str, frozenset[str]]


def only(*names: str) -> frozenset[str]:
    return frozenset(names)


BUILT: Final[Writers] = {"": only(OPERATOR)}
TABLE: Final[Mapping[tuple[Kind, str], Writers]] = {
    (LLMCLUSTER, "a"): {
        "spec": only(CREATOR, PERSON),
        "metadata.labels": only(CREATOR),
        "metadata.annotations": only(OPERATOR),
        "metadata.finalizers": only(OPERATOR),
        "status": only(OPERATOR),
    },
    (STATEFULSET, "a"): BUILT,
    (SERVICE, "a"): BUILT,
    (SERVICE, "a-group"): BUILT,
    (CLAIM, "a-models"): BUILT,
    (BUDGET, "a"): BUILT,
    (LEASE, "llmfleet-operator"): BUILT,
    (CONFIGMAP, CONFIGMAP_NAME): {
        "metadata": only(CREATOR),
        "metadata.annotations.serving.ai/generation": only(ROUTE),
        "data": only(ROUTE),
    },
}


def fields(tree: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Every leaf of a fieldsV1, as a path of names; lists end at their own name."""
    inner = {name[2:]: rest for name, rest in tree.items() if name.startswith("f:")}
    if not inner:
        yield path
    for name, rest in inner.items():
        yield from fields(rest, f"{path}.{name}" if path else name)


def written(obj: Manifest) -> set[tuple[str, str]]:
    """(path, manager) of everything anybody has written."""
    entries = obj["metadata"].get("managedFields") or ()
    return {(path, entry["manager"]) for entry in entries for path in fields(entry["fieldsV1"])}


def writers_of(path: str, table: Writers) -> frozenset[str]:
    begins = [start for start in table if not start or path == start or path.startswith(f"{start}.")]
    return table[max(begins, key=len)] if begins else frozenset()


def strangers(api: Api, namespace: str) -> list[str]:
    """Fields that somebody wrote who is not their writer, in every object of the table."""
    found = []
    for (kind, name), table in TABLE.items():
        obj = api.get(Ref(kind=kind, namespace=namespace, name=name))
        pairs = written(obj)
        assert pairs, f"{kind} {name} has no field managers"
        found += [f"{kind} {name}: {who} wrote {path}" for path, who in pairs if who not in writers_of(path, table)]
        written_by = {(start, who) for path, who in pairs for start in table if path.startswith(start)}
        found += [f"{kind} {name}: nobody wrote {start}" for start in table if start not in {s for s, _ in written_by}]
    return found


def test_every_field_is_written_by_the_one_who_owns_it(
    api: Api, server: Apiserver, namespace: str, tmp_path: Path
) -> None:
    """Through a start, a publication, a drain and an update, with a spec that was created and later edited."""
    creator, person = api.as_manager(CREATOR), api.as_manager(PERSON)
    creator.create(backends(namespace))
    with running(server, namespace, "one", tmp_path / "log"):
        creator.create(cluster(namespace))
        eventually(lambda: server.call("GET", STATEFULSET.path(namespace, "a")).status == 200, seconds=240)
        run_pod(creator, namespace)
        eventually(lambda: ready(api, namespace), seconds=240)
        eventually(lambda: '"address":"10.0.0.1:8000"' in document(api, namespace), seconds=240)
        assert strangers(api, namespace) == []
        ref = Ref(kind=LLMCLUSTER, namespace=namespace, name="a")
        person.merge_patch(ref, {"spec": {"image": "i:2"}})
        eventually(lambda: deleted_by_the_operator(server, namespace), seconds=240)
        assert strangers(api, namespace) == []
        assert ("spec.image", PERSON) in written(api.get(ref))
        (kept,) = api.list(CONTROLLER_REVISION, namespace=namespace)[0]
        assert {who for _, who in written(kept)} == {OPERATOR}
