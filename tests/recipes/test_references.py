"""Names, ports, labels and sums that one file of a recipe takes from another, from the chart or from the operator."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from charts.rendering import VALUES, Object, find, pod_templates
from llmfleet.deploy.objects.identity import Identity
from llmfleet.deploy.objects.statefulset import QUEUE_LABEL, build_statefulset
from recipes.building import engine, pods, rendered, specs, template
from recipes.recipes import FOLDER, ROOT, documents

pytestmark = pytest.mark.helm

GPU = "nvidia.com/gpu"


def of(path: str, kind: str) -> list[Object]:
    """The objects of a kind in a file of a recipe."""
    return [one for one in documents(FOLDER / path) if one["kind"] == kind]


def profile(*names: str) -> list[Object]:
    """A profile as Helm renders it."""
    return template((str(ROOT / "charts/llmfleet"), *(f"--values={VALUES / name}.yaml" for name in names)))


def the(found: list[Any]) -> Any:
    """The only one."""
    assert len(found) == 1, found
    return found[0]


# -- gateway, certificates, secrets ----------------------------------------------------------------------------------


def test_the_route_leads_to_the_client_service_and_the_gateway_may_call_the_router() -> None:
    things = rendered(FOLDER / "gateway-api/values.yaml")
    route, gateway = the(of("gateway-api/route.yaml", "HTTPRoute")), the(of("gateway-api/route.yaml", "Gateway"))
    backend = the(route["spec"]["rules"][0]["backendRefs"])
    service = find(things, "Service", backend["name"])
    assert backend["port"] in [port["port"] for port in service["spec"]["ports"]]
    parent = the(route["spec"]["parentRefs"])
    assert (parent["name"], parent["namespace"]) == (gateway["metadata"]["name"], gateway["metadata"]["namespace"])
    assert parent["sectionName"] in [one["name"] for one in gateway["spec"]["listeners"]]
    policy = json.dumps(find(things, "NetworkPolicy", "llmfleet-router"))
    assert gateway["metadata"]["namespace"] in policy


def test_the_pool_selects_the_pods_that_answer_on_the_port_they_answer_on() -> None:
    pool = the(of("gateway-api/inferencepool.yaml", "InferencePool"))["spec"]
    things = rendered(FOLDER / "gateway-api/values.yaml")
    fleet = find(things, "LLMCluster", "llmfleet-llama-3-70b-0")["metadata"]["labels"]["serving.ai/fleet"]
    pod = pods(things, fleet)["LLMCluster/llmfleet-llama-3-70b-0"]
    # The StatefulSet controller adds the number of the pod as a label.
    labels = {**pod["metadata"]["labels"], "apps.kubernetes.io/pod-index": "0"}
    assert pool["selector"]["matchLabels"].items() <= labels.items()
    ports = {port["containerPort"] for port in engine(pod)["ports"] if port["name"] == "http"}
    assert {port["number"] for port in pool["targetPorts"]} == ports


@pytest.mark.parametrize("path", ["gateway-api/route.yaml", "cert-manager/clients.yaml"])
def test_the_listener_shows_the_certificate_that_cert_manager_makes(path: str) -> None:
    listener = the(the(of(path, "Gateway"))["spec"]["listeners"])
    made = {
        one["spec"]["secretName"]: one["spec"]["dnsNames"]
        for one in of("cert-manager/certificates.yaml", "Certificate")
    }
    assert listener["hostname"] in made[the(listener["tls"]["certificateRefs"])["name"]]


def test_the_gateway_asks_clients_for_certificates_of_the_authority_that_signs_them() -> None:
    path = "cert-manager/clients.yaml"
    asked = the(of(path, "Gateway"))["spec"]["tls"]["frontend"]["default"]["validation"]["caCertificateRefs"]
    signing = {
        one["metadata"]["name"]: one["spec"]["ca"]["secretName"] for one in of(path, "Issuer") if "ca" in one["spec"]
    }
    team = next(one for one in of(path, "Certificate") if one["metadata"]["name"] == "team-a")
    assert the(asked)["name"] == signing[team["spec"]["issuerRef"]["name"]]


def secrets_of(value: Any) -> set[tuple[str, str]]:
    """Every Secret that a pod asks for, and the key where it says so."""
    found: set[tuple[str, str]] = set()
    if isinstance(value, dict):
        if isinstance(one := value.get("secretKeyRef"), dict):
            found.add((one["name"], one["key"]))
        if isinstance(one := value.get("secret"), dict) and "secretName" in one:
            found |= {(one["secretName"], item["key"]) for item in one.get("items", [{"key": ""}])}
        found |= {(one["name"], "") for one in value.get("imagePullSecrets", [])}
        return found.union(*map(secrets_of, value.values()))
    return found.union(*map(secrets_of, value)) if isinstance(value, list) else found


def test_every_secret_that_a_pod_asks_for_is_made_by_an_external_secret() -> None:
    things = rendered(FOLDER / "external-secrets/values.yaml")
    made = {
        (one["spec"]["target"]["name"], item["secretKey"])
        for one in of("external-secrets/secrets.yaml", "ExternalSecret")
        for item in one["spec"]["data"]
    }
    asked = secrets_of(list(pod_templates(things).values())) | secrets_of(list(pods(things).values()))
    names = {name for name, _ in made}
    assert {name for name, _ in asked} == names
    assert {pair for pair in asked if pair[1]} <= made


# -- quotas and groups -----------------------------------------------------------------------------------------------


def quotas() -> dict[str, dict[str, int]]:
    """Of each queue and of the cohort itself: what is said of GPUs."""
    found = {}
    for one in [*of("kueue/quotas.yaml", "ClusterQueue"), *of("kueue/quotas.yaml", "Cohort")]:
        flavor = the(the(one["spec"]["resourceGroups"])["flavors"])
        found[one["metadata"]["name"]] = the(flavor["resources"])
    return found


def test_the_quotas_of_three_teams_are_the_cluster_and_what_each_was_promised() -> None:
    found = quotas()
    assert {name: one["nominalQuota"] for name, one in found.items()} == {
        "training-a": 64,
        "training-b": 32,
        "serving-c": 16,
        "gpus": 16,
    }
    assert sum(one["nominalQuota"] for one in found.values()) == 128
    # Team A may use what others leave idle; serving lends all of its own, never borrows, and takes it back.
    assert found["training-a"]["borrowingLimit"] == 32
    assert (found["serving-c"]["borrowingLimit"], found["serving-c"]["lendingLimit"]) == (0, 16)
    serving = next(one for one in of("kueue/quotas.yaml", "ClusterQueue") if one["metadata"]["name"] == "serving-c")
    assert serving["spec"]["preemption"]["reclaimWithinCohort"] == "Any"
    assert {one["spec"]["cohortName"] for one in of("kueue/quotas.yaml", "ClusterQueue")} == {"gpus"}


def test_instances_stand_in_the_queue_of_their_team_and_never_want_more_than_it_has() -> None:
    scaler = find(rendered(FOLDER / "kueue/values.yaml"), "LLMClusterAutoscaler", "llmfleet-llama-3-70b")["spec"]
    spec = scaler["instanceTemplate"]["spec"]
    queue = spec["scheduling"]["queueName"]
    local = next(one for one in of("kueue/quotas.yaml", "LocalQueue") if one["metadata"]["namespace"] == "llmfleet")
    assert (queue, local["spec"]["clusterQueue"]) == (local["metadata"]["name"], "serving-c")
    gpus = spec["replicas"] * spec["gpusPerPod"] * scaler["maxInstances"]
    assert gpus <= quotas()["serving-c"]["nominalQuota"]
    identity = Identity(namespace="llmfleet", name="a", uid="u", fleet="f", manager="a/b")
    built = build_statefulset(identity, replicas=2, template={}, template_hash="h", annotations={}, queue=queue)
    assert built["metadata"]["labels"][QUEUE_LABEL] == queue
    pod = next(iter(pods(rendered(FOLDER / "kueue/values.yaml")).values()))
    classes = [one["metadata"]["name"] for one in of("kueue/quotas.yaml", "WorkloadPriorityClass")]
    assert pod["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] in classes


def test_the_leader_worker_set_has_the_shape_of_the_profile() -> None:
    spec = find(profile("production-monolithic"), "LLMCluster", "llmfleet-llama-3-70b-0")["spec"]
    group = the(of("lws/leaderworkerset.yaml", "LeaderWorkerSet"))["spec"]["leaderWorkerTemplate"]
    templates = [group["leaderTemplate"], group["workerTemplate"]]
    containers = [the(one["spec"]["containers"]) for one in templates]
    assert group["size"] == spec["replicas"]
    for container in containers:
        assert container["resources"]["limits"][GPU] == spec["gpusPerPod"]
        assert f"--tensor-parallel-size={spec['tensorParallelSize']}" in container["args"][0]
        assert (container["image"], spec["model"] in container["args"][0]) == (spec["image"], True)


# -- GPUs that are cut or shared -------------------------------------------------------------------------------------

# Compute slices and memory slices of an H100 with 80 GB, of seven and eight: NVIDIA's MIG user guide.
SLICES = {"1g.10gb": (1, 1), "2g.20gb": (2, 2), "3g.40gb": (3, 4), "7g.80gb": (7, 8)}


def layouts() -> dict[str, list[dict[str, Any]]]:
    configuration = the(of("mig/mig-parted.yaml", "ConfigMap"))["data"]["config.yaml"]
    return dict(yaml.safe_load(configuration)["mig-configs"])


def test_no_layout_cuts_more_out_of_a_gpu_than_there_is() -> None:
    for name, devices in layouts().items():
        for one in devices:
            cut = one.get("mig-devices", {})
            compute, memory = (sum(SLICES[key][side] * count for key, count in cut.items()) for side in (0, 1))
            assert (compute <= 7, memory <= 8) == (True, True), name


def test_the_layout_that_the_profile_asks_for_has_every_slice_that_its_models_ask_for() -> None:
    found = list(specs(profile("mig")).values())
    [label] = {one["scheduling"]["nodeSelector"]["nvidia.com/mig.config"] for one in found}
    cut = the(layouts()[label])["mig-devices"]
    asked = [one["accelerator"]["resourceName"].removeprefix("nvidia.com/mig-") for one in found]
    assert len(asked) == 3
    assert all(asked.count(name) <= cut[name] for name in asked)


def test_three_models_on_a_shared_gpu_fit_into_its_memory_and_into_its_places() -> None:
    things = specs(rendered(FOLDER / "gpu-sharing/values.yaml")).values()
    shares = [float(one["inferenceArgs"]["gpuMemoryUtilization"]) for one in things]
    assert (len(shares), sum(shares) < 0.95) == (3, True)
    [label] = {one["scheduling"]["nodeSelector"]["nvidia.com/device-plugin.config"] for one in things}
    configurations = the(of("gpu-sharing/device-plugin.yaml", "ConfigMap"))["data"]
    assert set(configurations) == {"time-slicing", "mps"}
    for name, way in (("time-slicing", "timeSlicing"), ("mps", "mps")):
        sharing = yaml.safe_load(configurations[name])["sharing"][way]
        resource = the(sharing["resources"])
        assert (resource["name"], resource["replicas"] >= len(shares)) == (GPU, True)
        # Renamed: the plug-in offers NAME.shared, and a pod that asks for a whole GPU gets none of these.
        assert sharing["renameByDefault"] is True
    assert label in configurations
    assert {one["accelerator"]["resourceName"] for one in things} == {f"{GPU}.shared"}


# -- nodes and networks ----------------------------------------------------------------------------------------------


def tolerated(taint: dict[str, str], tolerations: list[dict[str, str]]) -> bool:
    """Kubernetes' rule."""
    return any(
        one["key"] == taint["key"]
        and one.get("effect", taint["effect"]) == taint["effect"]
        and (one.get("operator") == "Exists" or one.get("value") == taint.get("value"))
        for one in tolerations
    )


@pytest.mark.parametrize(
    ("pool", "instances"), [("gpu-on-demand", ["llmfleet-llama-8b-0"]), ("gpu-spot", ["llmfleet-llama-8b-spot-0"])]
)
def test_each_model_goes_to_its_pool_and_to_no_other(pool: str, instances: list[str]) -> None:
    things = profile("spot")
    for one in of("spot/nodepools.yaml", "NodePool"):
        node = one["spec"]["template"]["spec"]
        requirements = {need["key"]: need["values"] for need in node["requirements"]}
        for name in instances:
            rules = find(things, "LLMCluster", name)["spec"]["scheduling"]
            fits = all(value in requirements.get(key, []) for key, value in rules["nodeSelector"].items())
            fits = fits and all(tolerated(taint, rules["tolerations"]) for taint in node["taints"])
            assert fits == (one["metadata"]["name"] == pool), (name, one["metadata"]["name"])


def test_a_node_waits_longer_for_its_pods_than_an_instance_drains() -> None:
    for one in of("spot/nodepools.yaml", "NodePool"):
        assert int(one["spec"]["template"]["spec"]["terminationGracePeriod"].removesuffix("m")) * 60 >= 300


def test_engines_ask_for_the_functions_and_the_network_that_the_policy_makes() -> None:
    pod = next(iter(pods(rendered(FOLDER / "rdma/values.yaml")).values()))
    policy = the(of("rdma/sriov.yaml", "SriovNetworkNodePolicy"))["spec"]
    network = the(of("rdma/sriov.yaml", "SriovNetwork"))
    assert network["spec"]["resourceName"] == policy["resourceName"]
    asked = engine(pod)["resources"]["limits"][f"openshift.io/{policy['resourceName']}"]
    networks = pod["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"].split(",")
    assert (len(networks), set(networks)) == (int(asked), {network["metadata"]["name"]})
    assert int(asked) == int(engine(pod)["resources"]["limits"][GPU])
    assert network["spec"]["networkNamespace"] == "llmfleet"


def test_the_shared_network_is_the_one_that_the_profile_names() -> None:
    definition = the(of("rdma/shared.yaml", "NetworkAttachmentDefinition"))
    json.loads(definition["spec"]["config"])
    pod = next(iter(pods(profile("production-monolithic", "rdma")).values()))
    assert pod["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"] == definition["metadata"]["name"]


# -- models ----------------------------------------------------------------------------------------------------------


def test_the_job_fills_the_folder_that_the_engines_read() -> None:
    pod = next(iter(pods(rendered(FOLDER / "model-cache/values.yaml")).values()))
    claim = the(of("model-cache/claim.yaml", "PersistentVolumeClaim"))["metadata"]["name"]
    job = the(of("model-cache/claim.yaml", "Job"))["spec"]["template"]["spec"]
    for spec in (pod["spec"], job):
        assert claim in [
            v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v
        ]
    folder = the(job["containers"])["command"][-1]
    assert folder in json.dumps(engine(pod))
    assert claim == the(of("model-cache/buckets.yaml", "PersistentVolumeClaim"))["metadata"]["name"]


def test_a_model_of_s3_is_streamed_and_one_of_a_registry_is_mounted() -> None:
    streamed = next(iter(pods(rendered(FOLDER / "model-sources/values-s3.yaml")).values()))
    arguments = engine(streamed)["args"]
    assert arguments[arguments.index("--load-format") + 1] == "runai_streamer"
    assert streamed["spec"]["serviceAccountName"] == "model-reader"
    mounted = next(iter(pods(rendered(FOLDER / "model-sources/values-oci.yaml")).values()))
    images = [volume["image"]["reference"] for volume in mounted["spec"]["volumes"] if "image" in volume]
    assert images == ["registry.example.com/models/llama-3.3-70b-instruct:1.0"]
    for pod in (streamed, mounted):
        assert not [volume for volume in pod["spec"]["volumes"] if "persistentVolumeClaim" in volume]
