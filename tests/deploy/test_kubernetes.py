"""The manifests: by Kubernetes' schemas, by policy, and in step with the program they run."""

from __future__ import annotations

import copy
import re

import kubernetes_validate
import pytest
from pydantic import ValidationError

from gateway.settings import Settings, check_names
from optimizer.cli import main
from tests.deploy.crds import CUSTOM
from tests.deploy.engine import MODEL_SERVER
from tests.deploy.rendering import (
    KUSTOMIZATIONS,
    Json,
    containers_of,
    of_kind,
    pod_of,
    render,
    setting,
    workloads,
)
from tests.fakes import ROOT

PROBES = ("startup", "liveness", "readiness")
OLDEST = "1.33"  # a Kubernetes that is still maintained
SERVING = ("overlays/cpu", "overlays/gpu", "overlays/bucket", "overlays/secure")
each_kustomization = pytest.mark.parametrize("name", KUSTOMIZATIONS)
each_overlay = pytest.mark.parametrize("name", SERVING)


def check(resource: Json) -> None:
    """Raise where the resource is not one that an API server would take."""
    if resource["kind"] in CUSTOM:
        CUSTOM[resource["kind"]].model_validate(resource)
    else:
        kubernetes_validate.validate(resource, OLDEST, strict=True)


@each_kustomization
def test_every_resource_fits_its_schema(name: str) -> None:
    """Strictly: a misspelled field would be dropped in silence by some servers."""
    assert render(name)
    for resource in render(name):
        check(resource)


def test_a_misspelled_field_fits_no_schema() -> None:
    """Else the test above could not fail."""
    deployment = copy.deepcopy(workloads("overlays/cpu")["gateway"])
    deployment["spec"]["replica"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        check(deployment)
    scaled = copy.deepcopy(of_kind("overlays/cpu", "ScaledObject")["triton"])
    scaled["spec"]["minReplicas"] = 3
    with pytest.raises(ValidationError):
        check(scaled)


@each_kustomization
def test_no_container_has_more_rights_than_it_needs(name: str) -> None:
    """What Kubernetes calls restricted, and a root file system that nobody writes."""
    for workload in workloads(name).values():
        pod = pod_of(workload)
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] >= 1000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert not any("hostPath" in volume for volume in pod["volumes"])
        for container in containers_of(workload):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }


@each_kustomization
def test_every_container_has_requests_limits_and_a_pinned_image(name: str) -> None:
    """A node is shared; what runs today runs tomorrow."""
    for workload in workloads(name).values():
        for container in containers_of(workload):
            resources = container["resources"]
            assert resources["requests"].keys() >= {"cpu", "memory"}
            assert resources["limits"].keys() >= {"cpu", "memory"}
            _, colon, tag = container["image"].rpartition(":")
            assert colon, container["image"]
            assert re.search(r"\d+\.\d+", tag)


ENDPOINTS_MS = 3_000.0  # until every node knows that a pod ends


@each_overlay
def test_serving_containers_are_probed_on_ports_they_have(name: str) -> None:
    """One that hangs is started anew, one that cannot answer gets no traffic."""
    for workload in workloads(name).values():
        (container,) = pod_of(workload)["containers"]
        ports = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] in ports


@each_overlay
def test_the_models_are_where_the_program_looks(name: str) -> None:
    """Each overlay brings them another way."""
    for workload in workloads(name).values():
        mounts = {m["name"]: m for m in pod_of(workload)["containers"][0]["volumeMounts"]}
        assert mounts["models"] == {"mountPath": "/models", "name": "models", "readOnly": True}
        (volume,) = [v for v in pod_of(workload)["volumes"] if v["name"] == "models"]
        filled = "persistentVolumeClaim" in volume or pod_of(workload).get("initContainers")
        assert filled, "an empty folder has no models"


@each_overlay
def test_pods_are_spread_and_not_taken_away_together(name: str) -> None:
    """A node or a zone that goes away takes a part of the service, not all of it."""
    budgets = of_kind(name, "PodDisruptionBudget")
    for service, workload in workloads(name).items():
        labels = workload["spec"]["template"]["metadata"]["labels"]
        spread = pod_of(workload)["topologySpreadConstraints"]
        keys = {constraint["topologyKey"] for constraint in spread}
        assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
        for constraint in (*spread, {"labelSelector": budgets[service]["spec"]["selector"]}):
            assert constraint["labelSelector"]["matchLabels"].items() <= labels.items()


@each_overlay
def test_selectors_choose_the_pods_that_are_there(name: str) -> None:
    """A service or policy of no pod says nothing, and nobody notices."""
    pods = [w["spec"]["template"]["metadata"]["labels"] for w in workloads(name).values()]
    policies = of_kind(name, "NetworkPolicy").values()
    chosen = [policy["spec"]["podSelector"].get("matchLabels", {}) for policy in policies]
    chosen += [service["spec"]["selector"] for service in of_kind(name, "Service").values()]
    for selector in chosen:
        assert any(selector.items() <= labels.items() for labels in pods), selector
    monitored = [each["spec"]["selector"] for each in of_kind(name, "ServiceMonitor").values()]
    services = [each["metadata"]["labels"] for each in of_kind(name, "Service").values()]
    for selector in monitored:
        assert any(selector["matchLabels"].items() <= labels.items() for labels in services)


@each_overlay
def test_nothing_is_reachable_unless_a_policy_says_so(name: str) -> None:
    """Triton has no authentication."""
    policies = of_kind(name, "NetworkPolicy")
    assert policies["nothing-else"]["spec"]["podSelector"] == {}
    assert "ingress" not in policies["nothing-else"]["spec"]
    callers = policies["triton"]["spec"]["ingress"]
    opened = {port["port"]: rule["from"] for rule in callers for port in rule["ports"]}
    assert opened.keys() == {8001, 8002}
    assert opened[8001] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "gateway"}}}]


@each_overlay
def test_the_gateway_is_given_the_time_it_needs_to_stop(name: str) -> None:
    """The time it still answers in, gRPC callers leaving, both protocols draining one after the other, and what Triton's end takes."""
    gateway = workloads(name)["gateway"]
    delay_s = float(setting(gateway, "BERTIER_STOP_DELAY_MS")) / 1e3
    drain_s = float(setting(gateway, "BERTIER_DRAIN_MS")) / 1e3
    age_s = Settings.model_fields["grpc_connection_age_ms"].default / 1e3
    assert pod_of(gateway)["terminationGracePeriodSeconds"] >= delay_s + age_s + 2 * drain_s + 20


@each_overlay
def test_no_grpc_connection_outlives_the_time_in_which_a_gateway_leaves(name: str) -> None:
    """They end a tenth earlier or later than configured, the last made until endpoints are taken out; the rest would be cut."""
    delay_ms = float(setting(workloads(name)["gateway"], "BERTIER_STOP_DELAY_MS"))
    age_ms = 1.1 * Settings.model_fields["grpc_connection_age_ms"].default
    assert delay_ms >= age_ms + ENDPOINTS_MS


@each_overlay
def test_the_gateway_is_given_settings_that_exist(name: str) -> None:
    """A variable of no setting would end it at its start."""
    (container,) = pod_of(workloads(name)["gateway"])["containers"]
    check_names({each["name"]: "x" for each in container["env"]})
    assert {"BERTIER_TRITON_URL"} <= {each["name"] for each in container["env"]}
    assert "triton_url" in Settings.model_fields


@each_overlay
def test_the_gateway_knows_every_triton_that_may_be_started(name: str) -> None:
    """One that it does not know would stand idle."""
    urls = setting(workloads(name)["gateway"], "BERTIER_TRITON_URL").split(",")
    scaled = of_kind(name, "ScaledObject")["triton"]["spec"]
    triton = workloads(name)["triton"]
    service = triton["spec"]["serviceName"]
    assert urls == [f"triton-{n}.{service}:8001" for n in range(scaled["maxReplicaCount"])]
    assert of_kind(name, "Service")[service]["spec"]["clusterIP"] == "None"


def test_the_secure_gateway_asks_for_keys_over_tls_and_is_watched_elsewhere() -> None:
    """Probes and Prometheus have no key, and reach a port that callers do not."""
    name = "overlays/secure"
    gateway = workloads(name)["gateway"]
    pod = pod_of(gateway)
    secrets = {v["name"]: v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
    assert secrets == {"keys": "gateway-keys", "tls": "gateway-tls"}
    mounts = {m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    for setting_of_file in ("API_KEYS_FILE", "TLS_CERTIFICATE", "TLS_KEY"):
        assert setting(gateway, f"BERTIER_{setting_of_file}").rpartition("/")[0] in mounts
    probes = [pod["containers"][0][f"{kind}Probe"]["httpGet"]["port"] for kind in PROBES]
    assert probes == ["metrics"] * 3
    assert setting(gateway, "BERTIER_METRICS_HOST") == "0.0.0.0"
    assert of_kind(name, "ServiceMonitor")["gateway"]["spec"]["endpoints"][0]["port"] == "metrics"
    for rule in of_kind(name, "NetworkPolicy")["gateway"]["spec"]["ingress"]:
        ports = {port["port"] for port in rule["ports"]}
        assert ports in ({8080, 8081}, {int(setting(gateway, "BERTIER_METRICS_PORT"))})


@each_overlay
def test_the_autoscaler_owns_the_number_of_replicas(name: str) -> None:
    """A number in the manifest would set it back at every apply."""
    scaled = {
        each["spec"]["scaleTargetRef"]["name"] for each in of_kind(name, "ScaledObject").values()
    }
    assert scaled == set(workloads(name))
    assert not any("replicas" in workload["spec"] for workload in workloads(name).values())


@each_overlay
def test_the_autoscaler_asks_for_metrics_that_exist(name: str) -> None:
    """A query without a result never scales."""
    documented = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    for scaled in of_kind(name, "ScaledObject").values():
        for trigger in scaled["spec"]["triggers"]:
            for metric in re.findall(r"bertier_\w+(?=\{)", trigger["metadata"].get("query", "")):
                assert f"`{metric}`" in documented, metric


@each_overlay
def test_triton_is_the_one_that_the_repository_is_checked_for(name: str) -> None:
    """Models and image go together."""
    assert pod_of(workloads(name)["triton"])["containers"][0]["image"] == MODEL_SERVER.image


@pytest.mark.parametrize("name", ["overlays/gpu", "optimizer-gpu"])
def test_a_gpu_is_asked_for_and_its_taint_tolerated(name: str) -> None:
    """Else the pod lands where there is none, or nowhere."""
    (workload,) = [w for n, w in workloads(name).items() if n in ("triton", "search")]
    pod = pod_of(workload)
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod[
        "tolerations"
    ]


@pytest.mark.parametrize("name", ["optimizer", "optimizer-gpu"])
def test_workers_share_a_study_on_hosts_of_one_kind(name: str) -> None:
    """Latencies cannot be compared across processors, nor beside each other."""
    job = workloads(name)["search"]
    pod = pod_of(job)
    assert job["spec"]["parallelism"] == job["spec"]["completions"] > 1
    assert pod["nodeSelector"]["bertier.workers"] == "true"
    (rule,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert rule["topologyKey"] == "kubernetes.io/hostname"
    assert "postgresql" not in str(job), "the address has a password: it belongs in the secret"


def test_workers_that_finish_are_started_like_those_that_search() -> None:
    """They train, and measure no latency: any node may take several."""
    (job,) = workloads("optimizer-finish").values()
    pod = pod_of(job)
    (container,) = pod["containers"]
    args = main._parser().parse_args(container["args"])
    assert (container["args"][0], args.storage) == ("finish", "$(STORAGE)")
    assert "affinity" not in pod
    assert job["metadata"]["name"] == "finish"


def test_cost_workers_measure_on_idle_hosts_of_one_kind() -> None:
    """Nobody else works there; search workers, which measure nothing then, may be anywhere."""
    jobs = workloads("optimizer-costs")
    asked = {name: main._parser().parse_args(args_of(job)) for name, job in jobs.items()}
    assert (asked["search"].cost_workers, asked["search"].storage) == (True, "$(STORAGE)")
    assert (args_of(jobs["costs"])[0], asked["costs"].storage) == ("costs", "$(STORAGE)")
    assert asked["costs"].study == asked["search"].study
    assert "affinity" not in pod_of(jobs["search"])
    assert pod_of(jobs["search"])["nodeSelector"] == {"bertier.workers": "true"}
    pod = pod_of(jobs["costs"])
    assert pod["nodeSelector"] == {"bertier.costs": "true"}
    (rule,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (names,) = rule["labelSelector"]["matchExpressions"]
    assert set(names["values"]) == {"costs", "search", "finish"}


def args_of(job: Json) -> list[str]:
    (container,) = pod_of(job)["containers"]
    args: list[str] = container["args"]
    return args


@pytest.mark.parametrize("name", ["optimizer", "optimizer-gpu"])
def test_a_worker_is_started_by_a_command_that_exists(name: str) -> None:
    """A flag of no command ends every pod."""
    (container,) = pod_of(workloads(name)["search"])["containers"]
    assert main._parser().parse_args(container["args"]).storage == "$(STORAGE)"
