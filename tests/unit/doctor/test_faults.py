"""Each fault of an install is found, named with its object and its fix; a healthy one has none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from charts.rendering import of_kind, render
from llmfleet.api.document import Model, ModelState
from llmfleet.doctor.examine import NAMES, as_json, has_errors, text
from llmfleet.doctor.snapshot import Severity
from llmfleet.top.samples import parse_metrics

from .world import (
    GENERATION,
    NOW,
    claim,
    controller,
    crds,
    document,
    findings,
    instance,
    lease,
    node,
    one,
    pod,
    router,
    scaler,
    snapshot,
    stamp,
    storage_class,
    waiting,
)


def test_a_healthy_install_has_no_finding() -> None:
    assert findings() == []
    assert [*text(snapshot(), [])][-1] == "nothing wrong was found"


def test_an_empty_cluster_misses_the_kinds() -> None:
    found = findings(
        {kind: [] for kind in ("CustomResourceDefinition", "LLMCluster", "LLMClusterAutoscaler", "Deployment")}
    )
    assert [item.check for item in found[:2]] == ["crds", "crds"]
    assert "is not installed" in found[0].problem


def test_old_kinds_are_told_from_new_ones_by_the_fields_they_lack() -> None:
    made = crds()
    for crd in made:
        if crd["metadata"]["name"] == "llmclusters.serving.ai":
            spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
            del spec["properties"]["kvTransfer"]
    found = one({"CustomResourceDefinition": made})
    assert "its spec does not know kvTransfer" in found.problem
    assert "apply-crds" in found.fix


def test_a_kind_that_is_not_served_is_found() -> None:
    made = crds()
    made[0]["status"] = {}
    assert one({"CustomResourceDefinition": made}).problem == "is not served"


def test_no_operator_at_all() -> None:
    found = one({"Deployment": [controller("autoscaler")]})
    assert (found.check, found.where) == ("controllers", "1 llmclusters")
    assert "operator.enabled: true" in found.fix


def test_an_operator_without_ready_pods() -> None:
    broken = controller("operator")
    broken["status"] = {}
    found = one({"Deployment": [broken, controller("autoscaler")]})
    assert (found.where, found.problem) == ("Deployment system/prod-operator", "none of its 2 pods is ready")


def test_an_operator_that_is_scaled_away() -> None:
    broken = controller("operator")
    broken["spec"]["replicas"], broken["status"] = 0, {}
    assert one({"Deployment": [broken, controller("autoscaler")]}).problem == "is scaled to 0"


def test_a_lease_that_nobody_renews() -> None:
    old = lease("operator")
    old["spec"]["renewTime"] = stamp(90)
    found = one({"Lease": [old, lease("autoscaler")]})
    assert found.problem == "was not renewed for 90 s: no operator leads"


def test_a_lease_that_was_never_made() -> None:
    assert one({"Lease": [lease("operator")]}).problem == "the autoscaler has no Lease: no pod leads"


def test_without_election_no_lease_is_missed() -> None:
    alone = controller("operator")
    alone["spec"]["template"]["spec"]["containers"][0]["args"].append("--no-leader-election")
    assert findings({"Deployment": [alone, controller("autoscaler")], "Lease": [lease("autoscaler")]}) == []


def test_an_instance_of_an_operator_that_is_gone() -> None:
    lost = instance()
    lost["metadata"]["annotations"]["serving.ai/managed-by"] = "other/gone"
    assert one({"LLMCluster": [lost]}).problem == "belongs to other/gone; this cluster has system/prod"


@pytest.mark.parametrize(
    ("image", "fix"),
    [
        ("llmfleet/llmfleet:0.1.0", "set global.imageRegistry"),
        ("registry.example.com/llmfleet/llmfleet:0.1.0", "make push REGISTRY"),
        ("localhost/llmfleet:0.1.0", "make push REGISTRY"),
    ],
)
def test_an_image_that_cannot_be_pulled_is_named_once(image: str, fix: str) -> None:
    stuck = [
        pod(f"p{number}", "router", containerStatuses=[waiting("router", "ImagePullBackOff", "no such host", image)])
        for number in range(3)
    ]
    found = one({"Pod": stuck}, routers=[])
    assert image in found.problem
    assert fix in found.fix


def test_nodes_without_gpus() -> None:
    found = one({"Node": [node(0), node(0)]})
    assert found.problem == "a pod asks for 4 nvidia.com/gpu, the best node of 2 offers 0"
    assert "device plugin" in found.fix


def test_nodes_with_too_few_gpus() -> None:
    found = one({"Node": [node(2)]})
    assert "offers 2" in found.problem
    assert "smaller gpusPerPod" in found.fix


def test_claims_of_devices_are_not_counted_on_nodes() -> None:
    spec = {"accelerator": {"resourceClaimTemplateName": "gpu"}}
    assert findings({"LLMCluster": [instance(**spec)], "Node": [node(0)]}) == []


def test_a_claim_without_a_class_in_a_cluster_without_a_default() -> None:
    found = one({"PersistentVolumeClaim": [claim()], "StorageClass": [storage_class("fast")]})
    assert found.problem == "is Pending: it names no storage class and the cluster has no default one"


def test_a_claim_of_a_class_that_does_not_exist() -> None:
    found = one({"PersistentVolumeClaim": [claim(storageClassName="fats")]})
    assert (found.problem, found.fix) == ("is Pending: there is no storage class fats", "choose one of: fast")


def test_a_claim_that_waits_for_its_first_consumer_is_in_no_trouble() -> None:
    lazy = storage_class("lazy", mode="WaitForFirstConsumer")
    assert findings({"PersistentVolumeClaim": [claim(storageClassName="lazy")], "StorageClass": [lazy]}) == []


def test_a_young_claim_is_in_no_trouble() -> None:
    young = claim(storageClassName="fats")
    young["metadata"]["creationTimestamp"] = stamp(5)
    assert findings({"PersistentVolumeClaim": [young]}) == []


def test_a_claim_of_somebody_else_is_not_ours_to_judge() -> None:
    foreign = claim(storageClassName="fats")
    foreign["metadata"]["labels"] = {}
    assert findings({"PersistentVolumeClaim": [foreign]}) == []


def test_a_token_secret_that_is_not_there() -> None:
    message = 'secret "hugging-face" not found'
    stuck = pod("llama-0-0", "engine", containerStatuses=[waiting("engine", "CreateContainerConfigError", message)])
    found = one({"Pod": [stuck]}, routers=[])
    assert found.problem == "needs Secret hugging-face, which is not there"
    assert "huggingFaceTokenSecretRef" in found.fix


def test_a_key_that_is_not_in_its_secret() -> None:
    message = "couldn't find key token in Secret d/hugging-face"
    stuck = pod("llama-0-0", "engine", containerStatuses=[waiting("engine", "CreateContainerConfigError", message)])
    assert one({"Pod": [stuck]}, routers=[]).problem == "needs key token in Secret hugging-face, which is not there"


def test_an_api_keys_secret_that_is_not_there_is_found_by_its_mount() -> None:
    event = {
        "kind": "Event",
        "metadata": {"name": "e", "namespace": "d"},
        "reason": "FailedMount",
        "note": 'MountVolume.SetUp failed for volume "api-keys" : secret "tenants" not found',
        "regarding": {"kind": "Pod", "namespace": "d", "name": "prod-router-1"},
    }
    found = one({"Event": [event]})
    assert found.problem == "needs Secret tenants, which is not there"
    assert "router.apiKeys.existingSecret" in found.fix


def test_a_mount_that_failed_before_the_pod_became_ready_is_over() -> None:
    ready = pod("prod-router-1", "router", conditions=[{"type": "Ready", "status": "True"}])
    event = {
        "kind": "Event",
        "metadata": {"name": "e", "namespace": "d"},
        "reason": "FailedMount",
        "note": 'secret "tenants" not found',
        "regarding": {"kind": "Pod", "namespace": "d", "name": "prod-router-1"},
    }
    assert findings({"Event": [event], "Pod": [ready]}) == []


def mount_event(seconds_ago: float | None = None, **regarding: str) -> dict[str, object]:
    event: dict[str, object] = {
        "kind": "Event",
        "metadata": {"name": "e", "namespace": "d"},
        "reason": "FailedMount",
        "note": 'secret "tenants" not found',
        "regarding": {"kind": "Pod", "namespace": "d", "name": "llama-0-0", **regarding},
    }
    return event if seconds_ago is None else {**event, "deprecatedLastTimestamp": stamp(seconds_ago)}


def test_a_mount_that_failed_before_a_container_started_is_over() -> None:
    started = {"name": "engine", "state": {"running": {"startedAt": stamp(1700)}}}
    loading = pod("llama-0-0", "engine", containerStatuses=[started])
    crashed = pod(
        "llama-0-0",
        "engine",
        containerStatuses=[{"name": "engine", "lastState": {"terminated": {"startedAt": stamp(1700)}}}],
    )
    for one_pod in (loading, crashed):
        assert findings({"Event": [mount_event(1800)], "Pod": [one_pod]}, routers=[]) == []
        assert findings({"Event": [mount_event()], "Pod": [one_pod]}, routers=[]) == []
        late = one({"Event": [mount_event(60)], "Pod": [one_pod]}, routers=[])
        assert late.problem == "needs Secret tenants, which is not there"


def test_a_mount_that_failed_for_an_earlier_pod_of_the_name_is_over() -> None:
    new = pod("llama-0-0", "engine")
    new["metadata"]["uid"] = "new"
    assert findings({"Event": [mount_event(60, uid="old")], "Pod": [new]}, routers=[]) == []
    assert one({"Event": [mount_event(60, uid="new")], "Pod": [new]}, routers=[]).check == "secrets"


@pytest.mark.parametrize(
    ("security", "fix"),
    [
        ({}, "name it in security.huggingFaceTokenSecretRef"),
        (
            {"huggingFaceTokenSecretRef": {"name": "hf"}},
            "with the account of the token in Secret hf",
        ),
    ],
)
def test_a_gated_model(security: dict[str, object], fix: str) -> None:
    words = "rank 0 exited: Cannot access gated repo for url https://example.com/org/llama"
    found = one({"LLMCluster": [instance(reason="ModelLoadFailed", message=words, security=security)]})
    assert found.check == "token"
    assert fix in found.fix


@pytest.mark.parametrize(
    ("reason", "check"),
    [
        ("UpdateHalted", "roll-out"),
        ("CanaryFailed", "roll-out"),
        ("Unschedulable", "instances"),
        ("CrashLoop", "instances"),
        ("StartupTimeout", "instances"),
        ("InvalidSpec", "instances"),
        ("ImagePullFailed", "instances"),
        ("ModelLoadFailed", "instances"),
    ],
)
def test_an_instance_in_trouble_is_said_in_its_own_words(reason: str, check: str) -> None:
    found = one({"LLMCluster": [instance(reason=reason, message="the message")]})
    assert (found.check, found.problem) == (check, f"{reason}: the message")
    assert found.fix


@pytest.mark.parametrize("reason", ["Serving", "Starting", "Updating", "Draining", "GroupRestarting", "WaitingForTurn"])
def test_an_instance_on_its_way_is_no_fault(reason: str) -> None:
    assert findings({"LLMCluster": [instance(reason=reason)]}) == []


def test_an_instance_that_nobody_looks_at() -> None:
    forgotten = instance()
    forgotten["status"] = {"observedGeneration": -1}
    forgotten["metadata"]["creationTimestamp"] = stamp(120)
    assert "no operator follows it" in one({"LLMCluster": [forgotten]}).problem


def test_an_instance_of_a_moment_ago_was_not_looked_at_yet() -> None:
    fresh = instance()
    fresh["status"] = {"observedGeneration": -1}
    fresh["metadata"]["creationTimestamp"] = stamp(2)
    assert findings({"LLMCluster": [fresh]}) == []


@pytest.mark.parametrize("reason", ["SignalsStale", "LowerBoundAboveCapacity", "AtMaximum"])
def test_a_fleet_that_cannot_see_or_grow_is_a_warning(reason: str) -> None:
    found = one({"LLMClusterAutoscaler": [scaler(reason, "words")]})
    assert (found.severity, found.problem) == (Severity.WARNING, f"{reason}: words")
    assert not has_errors([found])


def test_a_fleet_whose_replacement_did_not_start_either() -> None:
    broken = scaler("StartupTimeout")
    condition = {"type": "Degraded", "status": "True", "reason": "StartupTimeout", "message": "did not start: llama-3"}
    broken["status"]["conditions"] = [condition]
    assert one({"LLMClusterAutoscaler": [broken]}).problem == "did not start: llama-3"


def test_a_document_that_was_never_written() -> None:
    empty = document()
    del empty["data"]
    assert one({"ConfigMap": [empty]}).problem == "has no document yet: operator system/prod never wrote one"


def test_a_document_that_is_none() -> None:
    broken = document()
    broken["data"]["backends.json"] = "{"
    assert "holds no valid document: not JSON" in one({"ConfigMap": [broken]}).problem


def test_a_router_without_models() -> None:
    found = one({"ConfigMap": [document(models={})]})
    assert "the router has no model: 1 LLMClusters match" in found.problem


def test_a_model_without_a_ready_engine() -> None:
    found = one({"ConfigMap": [document(models={"llama": Model()})]})
    assert found.problem == "model llama has no ready engine: requests for it wait or are refused"


def test_a_model_that_sleeps_needs_no_engine() -> None:
    assert findings({"ConfigMap": [document(models={"llama": Model(state=ModelState.ASLEEP)})]}) == []


def test_a_router_that_follows_an_old_document() -> None:
    found = one(routers=[router(generation=GENERATION - 1)])
    assert (found.check, found.where) == ("route-sync", "Pod d/prod-router-1")
    assert "since 3600 s" in found.problem


def test_a_document_of_a_moment_ago_may_still_be_on_its_way() -> None:
    now = int(NOW.timestamp() * 1000) - 2000
    assert findings({"ConfigMap": [document(generation=now)]}) == []


def test_a_sidecar_that_does_not_stay_up() -> None:
    stuck = pod("prod-router-1", "router", containerStatuses=[waiting("route-sync", "CrashLoopBackOff")])
    found = one({"Pod": [stuck]})
    assert (found.check, found.problem) == ("route-sync", "container route-sync does not stay up")
    assert found.fix == "kubectl logs -n d prod-router-1 -c route-sync --previous"


REFUSED = "llmfleet_queue_redis_refused 1.0\nllmfleet_queue_redis_up 0.0\n"
AWAY = "llmfleet_queue_redis_refused 0.0\nllmfleet_queue_redis_up 0.0\n"
OWN = "redis://prod-redis.d.svc:6379/0"


@pytest.mark.parametrize(
    ("reason", "fix"),
    [
        ("Redis evicts (maxmemory-policy is allkeys-lru) and would lose jobs", "set maxmemory-policy noeviction"),
        ("this Redis is a replica: jobs need the address of the primary", "write the primary's address into"),
        ("this Redis is a cluster: jobs need a single primary", "use another one: a single Redis 7"),
        ("Redis 6.2.1 is too old: jobs need 7.0 or newer", "use another one: a single Redis 7"),
    ],
)
def test_a_redis_that_must_not_keep_jobs(reason: str, fix: str) -> None:
    found = one(routers=[router(REFUSED, jobs={"redis": "redis://cache:6379/0", "primary": "", "problem": reason})])
    assert (found.check, found.problem) == ("redis", f"takes no jobs: {reason} (redis://cache:6379/0)")
    assert found.fix.startswith(fix)


def test_a_redis_that_does_not_answer() -> None:
    found = one(routers=[router(AWAY)])
    assert found.problem == "takes no jobs: Redis does not answer"
    assert "redis.external.url" in found.fix


def test_sentinels_without_a_primary() -> None:
    reason = "2 of 3 Sentinels say nothing: no answer"
    found = one(routers=[router(AWAY, jobs={"redis": "jobs of 3 Sentinels", "primary": "", "problem": reason})])
    assert found.problem == f"takes no jobs: {reason} (jobs of 3 Sentinels)"
    assert "redis.external.sentinel's addresses and masterName" in found.fix


@pytest.mark.parametrize(
    ("pods", "fix"),
    [
        ([], "it has no pod: kubectl scale statefulset -n d prod-redis --replicas=1"),
        ([{"phase": "Pending"}], "its pod is not ready: kubectl describe pod -n d prod-redis-0"),
        ([{"conditions": [{"type": "Ready", "status": "True"}]}], "its pod is ready: does a policy keep"),
    ],
)
def test_the_releases_own_redis_is_missing_or_away(pods: list[dict[str, object]], fix: str) -> None:
    jobs = {"redis": OWN, "primary": "", "problem": "Redis cannot be reached"}
    found = one({"Pod": [pod("prod-redis-0", "redis", **status) for status in pods]}, routers=[router(AWAY, jobs=jobs)])
    assert found.problem == f"takes no jobs: Redis cannot be reached ({OWN})"
    assert found.fix.startswith(fix)


def test_a_redis_that_does_not_stay_up() -> None:
    stuck = pod("prod-redis-0", "redis", containerStatuses=[waiting("redis", "CrashLoopBackOff")])
    found = one({"Pod": [stuck]})
    assert (found.check, found.problem) == ("redis", "container redis does not stay up")


def test_a_redis_that_keeps_jobs_is_no_fault() -> None:
    jobs = {"redis": OWN, "primary": "prod-redis.d.svc:6379", "problem": ""}
    assert (
        findings(routers=[router("llmfleet_queue_redis_refused 0.0\nllmfleet_queue_redis_up 1.0\n", jobs=jobs)]) == []
    )


def test_a_keys_file_that_is_not_valid() -> None:
    found = one(routers=[router("llmfleet_router_keys_errors_total 4.0\nllmfleet_router_keys_loads_total 0.0\n")])
    assert found.problem == "has no valid keys file: every client is refused"


def test_a_router_that_cannot_be_asked_is_a_warning() -> None:
    found = one(routers=[router(problem="timed out")])
    assert (found.severity, found.problem) == (Severity.WARNING, "could not be asked: timed out")


def test_what_could_not_be_read_is_said_and_judged_by_nobody() -> None:
    found = findings(without=["Node", "Lease", "Deployment"], refused={"Node": "403 forbidden"})
    assert [(item.check, item.severity) for item in found] == [("access", Severity.WARNING)]


def test_errors_come_before_warnings() -> None:
    found = findings({"LLMClusterAutoscaler": [scaler("AtMaximum")], "Node": [node(0)]})
    assert [item.check for item in found] == ["devices", "fleets"]
    lines = [*text(snapshot(), found)]
    assert lines[-1] == "1 errors, 1 warnings"
    assert as_json(snapshot(), found)["findings"][0]["check"] == "devices"


def test_every_finding_has_a_place_in_the_order() -> None:
    assert len(set(NAMES)) == len(NAMES)


def test_a_broken_exposition_reads_as_far_as_it_is_whole() -> None:
    found = parse_metrics('a{x="1"} 2\nb NaN\nc{ 3\n')
    assert found.total("a", x="1") == 2
    assert not found.known("b")


def test_a_check_that_trips_costs_only_itself() -> None:
    odd = instance()
    odd["spec"]["gpusPerPod"] = "many"
    found = findings({"LLMCluster": [odd], "Lease": [lease("operator")]})
    assert [(item.check, item.severity) for item in found] == [
        ("controllers", Severity.ERROR),
        ("access", Severity.WARNING),
    ]
    assert found[1].problem.startswith("check devices could not run: ValueError: ")


def test_a_condition_of_a_kind_without_a_status_is_not_true() -> None:
    made = crds()
    made[0]["status"] = {"conditions": [{"type": "Established"}]}
    assert one({"CustomResourceDefinition": made}).problem == "is not served"


def test_a_time_without_a_zone_is_utc() -> None:
    new = instance()
    new["status"] = {}
    new["metadata"]["creationTimestamp"] = "2026-01-01T11:59:50"
    assert findings({"LLMCluster": [new]}) == []
    new["metadata"]["creationTimestamp"] = "2026-01-01T11:00:00"
    assert one({"LLMCluster": [new]}).problem == "has no condition: no operator follows it"


def test_a_router_that_names_no_generation_is_of_another_version() -> None:
    found = one(routers=[replace(router(), fleet={"generation": "abc"})])
    assert (found.check, found.severity) == ("route-sync", Severity.WARNING)
    assert found.problem == "names its document 'abc', which is no generation"


def test_a_claim_without_a_class_on_purpose_waits_for_a_volume_made_by_hand() -> None:
    for classes in ([storage_class("fast")], [storage_class("fast", default=True)]):
        found = one({"PersistentVolumeClaim": [claim(storageClassName="")], "StorageClass": classes})
        assert found.problem == "is Pending: it waits for a volume without a class (one made by hand)"
        assert "kubectl get pv" in found.fix
    bound = claim(storageClassName="")
    bound["status"] = {"phase": "Bound"}
    assert findings({"PersistentVolumeClaim": [bound]}) == []


def test_cordoned_nodes_are_a_fault_for_who_waits_to_start() -> None:
    nodes = [{**node(), "spec": {"unschedulable": True}}]
    found = one({"Node": nodes})
    assert (found.check, found.severity) == ("devices", Severity.WARNING)
    assert found.problem == "every node is cordoned: no pod can start"
    assert one({"Node": nodes, "Pod": [pod("llama-0-0", "engine", phase="Pending")]}).severity is Severity.ERROR
    assert findings({"Node": [*nodes, node()]}) == []


def test_an_autoscaler_at_zero_is_missed_only_by_who_needs_it() -> None:
    off = controller("autoscaler")
    off["spec"]["replicas"], off["status"] = 0, {}
    deployments = [controller("operator"), off]
    assert findings({"Deployment": deployments, "LLMClusterAutoscaler": []}) == []
    assert one({"Deployment": deployments}).problem == "is scaled to 0"


@pytest.mark.helm
def test_the_charts_own_controllers_are_recognized() -> None:
    made = [obj for obj in of_kind(render("dev"), "Deployment") if "router" not in obj["metadata"]["name"]]
    for obj in made:
        obj["status"] = {"readyReplicas": 1}
    found = findings({"Deployment": made, "Lease": []})
    assert {item.problem for item in found if "Lease" in item.problem} == {
        "the operator has no Lease: no pod leads",
        *(["the autoscaler has no Lease: no pod leads"] if len(made) > 1 else []),
    }
    assert not any("is installed" in item.problem and "operator" in item.problem for item in found)
