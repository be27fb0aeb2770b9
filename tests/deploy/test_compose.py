"""What compose.yaml promises about every container. `make compose-proof` shows that it runs; here it is read."""

import json
import re
from typing import Any

import pytest
import yaml
from declared import DEPLOY

from headway.config import ServiceConfig, read
from services.dit_worker.config import DitWorkerConfig
from services.prefix_cache.config import PrefixCacheConfig
from services.router.config import RouterConfig
from services.splat_worker.config import SplatWorkerConfig
from services.text_worker.config import TextWorkerConfig

CONFIGS: dict[str, type[ServiceConfig]] = {
    "router": RouterConfig,
    "prefix-cache": PrefixCacheConfig,
    "text-worker": TextWorkerConfig,
    "splat-worker": SplatWorkerConfig,
    "dit-worker": DitWorkerConfig,
    "dit-worker-cuda": DitWorkerConfig,
}
COMPOSE = yaml.safe_load((DEPLOY.parent / "compose.yaml").read_text())
SERVICES = [pytest.param(name, service, id=name) for name, service in COMPOSE["services"].items()]
ALIASES = {
    name: service["networks"]["mesh"]["aliases"]
    for name, service in COMPOSE["services"].items()
    if isinstance(service["networks"], dict)
}


@pytest.mark.parametrize(("name", "service"), SERVICES)
def test_a_container_can_do_no_more_than_it_must(name: str, service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].split(":")[0]) > 0
    assert service["mem_limit"] and service["cpus"] and service["pids_limit"]


def test_ports_are_published_on_loopback_and_only_by_the_front() -> None:
    published = {name: service["ports"] for name, service in COMPOSE["services"].items() if "ports" in service}
    assert published.keys() == {"router", "router-2", "envoy", "prometheus", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    outside = {name for name, service in COMPOSE["services"].items() if "front" in service["networks"]}
    assert outside == published.keys()
    assert COMPOSE["networks"]["mesh"]["internal"] is True


def test_what_is_admitted_may_finish_before_a_container_is_killed() -> None:
    for name in ("router", "text-worker", "splat-worker", "dit-worker", "prefix-cache"):
        service = COMPOSE["services"][name]
        longest_s, drain_s = (float(service["environment"][f"HEADWAY_{key}_S"]) for key in ("MAX_DEADLINE", "DRAIN"))
        assert longest_s < drain_s < float(service["stop_grace_period"].removesuffix("s"))


def test_prometheus_scrapes_every_service_that_has_metrics() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    scraped = {name for job in config["scrape_configs"] for found in job["dns_sd_configs"] for name in found["names"]}
    aliased = {name: alias for name, (alias,) in ALIASES.items()}
    others = {"redis", "device", "envoy", "prometheus", "grafana", "collector"}
    assert scraped == {aliased.get(name, name) for name in COMPOSE["services"].keys() - others}


def test_routers_know_every_worker_by_a_name_that_the_network_has() -> None:
    flags = COMPOSE["services"]["router"]["command"]
    named = {part.partition("=")[2].partition(":")[0] for part in flags[flags.index("--workers") + 1].split(",")}
    workers = {name for name in COMPOSE["services"] if "-worker" in name}
    assert named == workers - ALIASES.keys()
    assert {alias for aliases in ALIASES.values() for alias in aliases} <= named


def test_what_is_not_for_everybody_waits_for_its_profile() -> None:
    profiles = {name: service["profiles"] for name, service in COMPOSE["services"].items() if "profiles" in service}
    watching = {name: ["observability"] for name in ("prometheus", "grafana", "collector")}
    assert profiles == {**watching, "envoy": ["envoy"], "dit-worker-gpu": ["gpu"]}


def test_what_is_built_is_a_target_of_the_dockerfile() -> None:
    dockerfile = (DEPLOY.parent / "Dockerfile").read_text()
    for service in COMPOSE["services"].values():
        if "build" in service:
            assert f" AS {service['build']['target']}\n" in dockerfile


def entrypoint(target: str) -> list[str]:
    """What the image of a target runs, with the models where they are in a checkout."""
    stages = re.split(r"^FROM ", (DEPLOY.parent / "Dockerfile").read_text(), flags=re.MULTILINE)
    base, stage = next(
        (stage.split()[0], stage) for stage in stages if re.match(rf"\S+ AS {re.escape(target)}\n", stage)
    )
    found = re.search(r"^ENTRYPOINT (\[.*\])$", stage, flags=re.MULTILINE)
    if found is None:
        return entrypoint(base)
    program = [str(part).replace("/app/", f"{DEPLOY.parent}/") for part in json.loads(found[1])]
    return program[1:] if program[0] == "start.sh" else program


@pytest.mark.parametrize(("name", "service"), SERVICES)
def test_a_container_is_started_with_settings_that_its_service_takes(name: str, service: dict[str, Any]) -> None:
    target = service.get("build", {}).get("target")
    if target not in CONFIGS:
        assert target in (None, "device")
        return
    config, program = CONFIGS[target], entrypoint(target)
    assert program[0] == f"headway-{target.removesuffix('-cuda')}"
    given = {key: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value)) for key, value in service["environment"].items()}
    unknown = {key for key in given if key.startswith("HEADWAY_")} - {
        f"HEADWAY_{field.upper()}" for field in config.model_fields
    }
    assert not unknown
    read(config, [*program[1:], *service.get("command", ())], prog=name, env=given)


def test_text_workers_and_routers_share_the_prefix_cache() -> None:
    flags = {name: COMPOSE["services"][name]["command"] for name in ("router", "text-worker")}
    assert {given[given.index("--prefix-cache") + 1] for given in flags.values()} == {"prefix-cache:50054"}


def test_text_workers_share_blocks_through_the_prefix_cache() -> None:
    flags = COMPOSE["services"]["text-worker"]["command"]
    assert flags[flags.index("--kv-store") + 1] == "grpc"


def test_what_is_mounted_from_the_checkout_is_there_and_cannot_be_written_to() -> None:
    mounts = [mount for service in COMPOSE["services"].values() for mount in service.get("volumes", ())]
    bound = [mount.split(":") for mount in mounts if mount.startswith("./")]
    assert bound
    for source, _, mode in bound:
        assert (DEPLOY.parent / source).exists()
        assert mode == "ro"


def test_the_collector_passes_what_it_takes_to_an_exporter() -> None:
    config = yaml.safe_load((DEPLOY / "otel" / "collector.yaml").read_text())
    pipeline = config["service"]["pipelines"]["traces"]
    for part in ("receivers", "processors", "exporters"):
        assert pipeline[part] == list(config[part])


@pytest.mark.parametrize("file", ["envoy.yaml", "endpoint-picker.yaml"])
def test_envoy_calls_the_routers_that_there_are(file: str) -> None:
    config = yaml.safe_load((DEPLOY / "envoy" / file).read_text())
    cluster = config["static_resources"]["clusters"][0]
    (group,) = cluster["load_assignment"]["endpoints"]
    called = [end["endpoint"]["address"]["socket_address"] for end in group["lb_endpoints"]]
    assert called == [{"address": name, "port_value": 50050} for name in ("router", "router-2")]
