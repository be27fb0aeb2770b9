"""The Helm chart, rendered by Helm's own engine for sets of values that users have.

What comes out is held against the schemas of Kubernetes and our services' settings. Without the engine the values,
their schema and what templates read of them are still compared.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from declared import DEPLOY
from jsonschema import Draft202012Validator

from headway.config import ServiceConfig, read
from services.dit_worker.config import DitWorkerConfig
from services.prefix_cache.config import PrefixCacheConfig
from services.router.config import KINDS, RouterConfig
from services.splat_worker.config import SplatWorkerConfig
from services.text_worker.config import TextWorkerConfig

CHART = DEPLOY / "helm" / "headway"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
KUBERNETES = ("1.29", "1.34")
CONFIGS: dict[str, type[ServiceConfig]] = {
    "router": RouterConfig,
    "prefix-cache": PrefixCacheConfig,
    "text-worker": TextWorkerConfig,
    "splat-worker": SplatWorkerConfig,
    "dit-worker": DitWorkerConfig,
    "dit-worker-cuda": DitWorkerConfig,
}
GPU = {"name": "image", "kind": "image", "target": "dit-worker-cuda", "port": 50063, "gpus": 1, "extraArgs": []}
SECURE = {
    "tls": {
        "front": {"secret": "front", "clientCa": True},
        "mesh": {"workersSecret": "workers", "routersSecret": "routers"},
    },
    "auth": {"apiKeysSecret": "keys", "leaseSecret": "lease", "cacheSecret": "cache", "quotasConfigMap": "quotas"},
    "redis": {"urlSecret": {"name": "redis"}},
}
SCALED = {
    "pools": {
        "shared": None,
        "gpu": {
            "workers": [GPU],
            "cacheClaim": "calibrations",
            "autoscaling": {
                "enabled": True,
                "minReplicas": 1,
                "maxReplicas": 8,
                "signal": "prometheus",
                "deviceShare": 0.6,
            },
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        },
    },
    "images": {"registry": "registry.example/team", "tag": "1.2.3", "pullSecrets": [{"name": "pull"}]},
    "monitoring": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "rules": {"enabled": True},
        "dashboards": {"enabled": True},
        "prometheus": "http://prometheus.monitoring:9090",
    },
    "otlpEndpoint": "http://collector.observability:4317",
    "networkPolicy": {"clients": [{"namespaceSelector": {"matchLabels": {"team": "painters"}}}]},
    "router": {"extraArgs": ["--endpoint-picker", "--endpoint-picker-spares", "1"]},
}
COUNTED = {"auth": {"quotasConfigMap": "quotas", "quotaStore": {"redis": True}}}
BARE = {"prefixCache": {"enabled": False}, "networkPolicy": {"enabled": False}, "router": {"replicas": 1}}
SETS = {"defaults": {}, "secure": SECURE, "scaled": SCALED, "counted": COUNTED, "bare": BARE}

Object = dict[str, Any]
Render = Callable[[Object], list[Object]]


@pytest.fixture(scope="module")
def render() -> Render:
    chart = pytest.importorskip("helm_python.chart", reason="no wheel of Helm's engine for this platform")

    def rendered(values: Object) -> list[Object]:
        with chart.Chart.load(CHART) as loaded:
            files = loaded.render(values, name="demo", namespace="mesh")
        texts = [text for name, text in files.items() if name.endswith(".yaml")]
        return [found for text in texts for found in yaml.safe_load_all(text) if found]

    return rendered


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [found for found in objects if found["kind"] == kind]


def containers(objects: list[Object]) -> list[tuple[Object, Object]]:
    """Every (pod, container) of Headway's own images."""
    pods = [found["spec"]["template"]["spec"] for found in of_kind(objects, "Deployment")]
    both = [(pod, one) for pod in pods for one in [*pod.get("initContainers", ()), *pod["containers"]]]
    return [(pod, one) for pod, one in both if "headway-" in one["image"]]


def target_of(container: Object) -> str:
    return re.split(r"[/:]", container["image"])[-2].removeprefix("headway-")


def test_the_default_values_keep_to_their_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator(SCHEMA).validate(DEFAULTS)


def test_templates_read_only_values_that_the_schema_has() -> None:
    for path in (CHART / "templates").iterdir():
        for dotted in re.findall(r"\.Values((?:\.\w+)+)", path.read_text()):
            found = SCHEMA
            for part in dotted.strip(".").split("."):
                assert part in found["properties"], f"{path.name}: .Values{dotted}"
                found = found["properties"][part]


def test_files_of_the_chart_are_those_of_prometheus_and_grafana() -> None:
    linked = {path.name: path.resolve() for path in (CHART / "files").iterdir()}
    rules = {path.name: path for path in (DEPLOY / "prometheus").glob("headway.[ra]*s.yaml")}
    assert linked == rules | {path.name: path for path in (DEPLOY / "grafana" / "dashboards").iterdir()}


@pytest.mark.parametrize("values", SETS.values(), ids=SETS)
def test_the_chart_lints_and_every_object_is_one_that_kubernetes_knows(render: Render, values: Object) -> None:
    chart = pytest.importorskip("helm_python.chart")
    kubernetes = pytest.importorskip("kubernetes_validate")
    assert not chart.lint(CHART, values, strict=True)["errors"]
    for found in render(values):
        if "." in found["apiVersion"].partition("/")[0] and "k8s.io" not in found["apiVersion"]:
            assert found["kind"] in {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
            continue
        for version in KUBERNETES:
            kubernetes.validate(found, version, strict=True)


@pytest.mark.parametrize("values", SETS.values(), ids=SETS)
def test_every_container_is_started_with_settings_that_its_service_takes(
    render: Render, values: Object, tmp_path: Path
) -> None:
    started = set()
    for pod, container in containers(render(values)):
        if (target := target_of(container)) == "device":
            continue
        given = {item["name"]: item.get("value", "redis://from-a-secret:6379") for item in container["env"]}
        for name, value in given.items():
            if value.startswith(("/tls/", "/auth/")):
                assert any(value.startswith(mount["mountPath"] + "/") for mount in container["volumeMounts"])
                given[name] = str(tmp_path / value.replace("/", "_"))
                Path(given[name]).write_text("x")
        config = read(CONFIGS[target], container.get("args") or [], prog=target, env=given)
        unknown = {name for name in given if name.startswith("HEADWAY_")} - {
            f"HEADWAY_{field.upper()}" for field in type(config).model_fields
        }
        assert not unknown
        assert config.max_deadline_s < config.drain_s
        assert config.drain_s + 5 < pod["terminationGracePeriodSeconds"]
        started.add(target)
    assert "router" in started


@pytest.mark.parametrize("values", SETS.values(), ids=SETS)
def test_pods_can_do_no_more_than_they_must(render: Render, values: Object) -> None:
    for found in of_kind(render(values), "Deployment"):
        pod = found["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
        mounted = {mount["name"] for _, one in containers([found]) for mount in one["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("values", SETS.values(), ids=SETS)
def test_names_that_parts_call_are_services_with_pods_behind_them(render: Render, values: Object) -> None:
    objects = render(values)
    services = {found["metadata"]["name"]: found["spec"] for found in of_kind(objects, "Service")}
    pods = [found["spec"]["template"] for found in of_kind(objects, "Deployment")]
    called = re.findall(r"([\w-]+)\.mesh\.svc:(\d+)", yaml.safe_dump_all(objects, width=10_000))
    assert called
    for name, port in called:
        spec = services[name]
        behind = [pod for pod in pods if spec["selector"].items() <= pod["metadata"]["labels"].items()]
        assert len(behind) == 1
        wanted = next(item["targetPort"] for item in spec["ports"] if item["port"] == int(port))
        offered = {item["name"] for one in behind[0]["spec"]["containers"] for item in one["ports"]}
        assert wanted in offered


@pytest.mark.parametrize("values", SETS.values(), ids=SETS)
def test_who_calls_a_part_is_let_through_to_it(render: Render, values: Object) -> None:
    objects = render(values)
    policies = {found["metadata"]["name"]: found["spec"] for found in of_kind(objects, "NetworkPolicy")}
    for caller in of_kind(objects, "Deployment"):
        labels = caller["spec"]["template"]["metadata"]["labels"]
        started = [(one.get("args"), one.get("env")) for one in caller["spec"]["template"]["spec"]["containers"]]
        for name, port in set(re.findall(r"([\w-]+)\.mesh\.svc:(\d+)", json.dumps(started))):
            if not policies:
                continue
            rules = [
                rule for rule in policies[name]["ingress"] if {"protocol": "TCP", "port": int(port)} in rule["ports"]
            ]
            peers = [
                peer["podSelector"]["matchLabels"] for rule in rules for peer in rule["from"] if "podSelector" in peer
            ]
            assert any(peer.items() <= labels.items() for peer in peers), f"{caller['metadata']['name']} to {name}"


def test_text_workers_tell_the_prefix_cache_what_they_hold_where_there_is_one(render: Render) -> None:
    def told(values: Object) -> set[str]:
        flags = [one["args"] for _, one in containers(render(values)) if one["name"] in ("text", "splat", "image")]
        return {given[given.index("--prefix-cache") + 1] for given in flags if "--prefix-cache" in given}

    assert told({}) == told(SECURE) == {"demo-headway-prefix-cache.mesh.svc:50054"}
    assert told(BARE) == told(SCALED) == set()
    shares = [
        (one["name"], "--kv-store" in one["args"])
        for values in ({}, SECURE, BARE, SCALED)
        for _, one in containers(render(values))
        if "--prefix-cache" in one.get("args", ()) and one["name"] == "text"
    ]
    assert shares
    assert all(given for _, given in shares)
    (text,) = [one for _, one in containers(render(SECURE)) if one["name"] == "text"]
    assert {"name": "HEADWAY_UPSTREAM_CA", "value": "/tls/ca.crt"} in text["env"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, None),
        (COUNTED, {"value": "redis://demo-headway-redis.mesh.svc:6379"}),
        (COUNTED | {"redis": {"url": "rediss://ours:6380"}}, {"value": "rediss://ours:6380"}),
        (
            COUNTED | {"redis": {"urlSecret": {"name": "ours"}}},
            {"valueFrom": {"secretKeyRef": {"name": "ours", "key": "url"}}},
        ),
        ({"auth": {"quotasConfigMap": "q", "quotaStore": {"url": "redis://own:1"}}}, {"value": "redis://own:1"}),
        (
            {"auth": {"quotasConfigMap": "q", "quotaStore": {"urlSecret": {"name": "own", "key": "k"}}}},
            {"valueFrom": {"secretKeyRef": {"name": "own", "key": "k"}}},
        ),
    ],
)
def test_routers_count_quotas_together_where_they_are_told_to(
    render: Render, values: Object, expected: Object | None
) -> None:
    (router,) = [one for _, one in containers(render(values)) if one["name"] == "router"]
    stores = [item for item in router["env"] if item["name"] == "HEADWAY_QUOTA_STORE"]
    assert stores == ([] if expected is None else [{"name": "HEADWAY_QUOTA_STORE", **expected}])


def test_images_are_targets_of_the_dockerfile(render: Render) -> None:
    dockerfile = (DEPLOY.parent / "Dockerfile").read_text()
    for values in SETS.values():
        for _, container in containers(render(values)):
            assert f" AS {target_of(container)}\n" in dockerfile


def test_workers_of_one_pod_share_its_device_and_a_worker_alone_has_its_own(render: Render) -> None:
    shared = [env for _, one in containers(render({})) for env in one.get("env", ()) if "SOCKET" in env["name"]]
    assert [env["value"] for env in shared] == ["/run/headway/device.sock"] * 3
    (alone,) = [one for _, one in containers(render(SCALED)) if one["name"] == "image"]
    assert {"name": "HEADWAY_DEVICE_SOCKET", "value": "off"} in alone["env"]
    assert alone["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_with_secrets_every_hop_is_encrypted_and_probed_with_a_certificate(render: Render) -> None:
    objects = render(SECURE)
    for _, container in containers(objects):
        if target_of(container) == "device":
            continue
        names = {item["name"] for item in container["env"]}
        assert {"HEADWAY_TLS_CERT", "HEADWAY_TLS_KEY", "HEADWAY_TLS_CLIENT_CA"} <= names
        probe = container["readinessProbe"]
        assert "grpc" not in probe
        assert probe.get("tcpSocket") or "--cert" in probe["exec"]["command"]
    assert not [found for found in objects if found["metadata"]["name"].endswith("-redis")]


def test_what_is_scraped_are_ports_of_services_that_carry_the_label(render: Render) -> None:
    objects = render(SCALED)
    (monitor,) = of_kind(objects, "ServiceMonitor")
    scraped = [
        found["spec"]["ports"]
        for found in of_kind(objects, "Service")
        if monitor["spec"]["selector"]["matchLabels"].items() <= found["metadata"]["labels"].items()
    ]
    assert len(scraped) == 3
    wanted = {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]}
    assert {port["name"] for ports in scraped for port in ports if "metrics" in port["name"]} == wanted
    assert {found["metadata"]["name"] for found in of_kind(objects, "PrometheusRule")} == {
        "demo-headway-rules",
        "demo-headway-alerts",
    }


def test_a_pool_that_scales_has_no_count_of_its_own(render: Render) -> None:
    objects = render(SCALED)
    (scaled,) = of_kind(objects, "ScaledObject")
    (pool,) = [found for found in of_kind(objects, "Deployment") if found["metadata"]["name"] == "demo-headway-gpu"]
    assert "replicas" not in pool["spec"]
    assert scaled["spec"]["scaleTargetRef"]["name"] == "demo-headway-gpu"
    assert 'job="demo-headway-gpu"' in scaled["spec"]["triggers"][0]["metadata"]["query"]


def test_keda_asks_routers_for_each_kind_of_a_pool(render: Render) -> None:
    scaling = {"autoscaling": {"enabled": True, "minReplicas": 1, "maxReplicas": 3}}
    (scaled,) = of_kind(render({"pools": {"shared": scaling}}), "ScaledObject")
    asked = [trigger["metadata"] for trigger in scaled["spec"]["triggers"]]
    assert {trigger["scalerAddress"] for trigger in asked} == {"demo-headway-router.mesh.svc:50050"}
    assert {KINDS[trigger["kind"]] for trigger in asked} == set(KINDS.values())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"routers": {"replicas": 3}}, "routers"),
        ({"router": {"replica": 3}}, "replica"),
        ({"drainS": 30}, "drainS"),
        ({"maxDeadlineS": "long"}, "maxDeadlineS"),
        ({"pools": {"shared": {"workers": [{**GPU, "kind": "video"}]}}}, "kind"),
        ({"pools": {"shared": {"workers": [GPU, {**GPU, "name": "other"}]}}}, "50063"),
        ({"pools": {"redis": {"workers": [GPU]}}}, "redis"),
        ({"redis": {"url": "redis://user:secret@host:6379"}}, "url"),
        ({"tls": {"mesh": {"workersSecret": "one"}}}, "routersSecret"),
        ({"auth": {"quotaStore": {"url": "redis://user:secret@host:6379"}}}, "url"),
        ({"auth": {"quotaStore": {"redis": True}}}, "auth.quotasConfigMap"),
        ({"auth": {"quotasConfigMap": "q", "quotaStore": {"redis": True, "url": "redis://own:1"}}}, "set one of"),
        (BARE | COUNTED, "auth.quotaStore.redis: there is none"),
        ({"auth": {"quotaStore": {"shared": True}}}, "shared"),
        ({"tls": {"front": {"clientCa": True}}}, "tls.front.secret"),
        ({"pools": {"shared": {**SCALED["pools"]["gpu"]}}}, "monitoring.prometheus"),
        ({"otlpEndpoint": "collector:4317"}, "otlpEndpoint"),
        (SECURE | {"pools": {"shared": {"autoscaling": {"enabled": True}}}}, "in the clear"),
    ],
)
def test_values_that_cannot_work_are_refused_with_the_words_that_say_which(
    render: Render, values: Object, said: str
) -> None:
    errors = pytest.importorskip("helm_python.errors")
    with pytest.raises(errors.HelmError, match=re.escape(said)):
        render(values)
