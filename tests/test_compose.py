"""`docker-compose.yml` keeps the promises of production: order of start, time to stop, no secret, more workers."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.settings import Settings

CHECKOUT = Path(__file__).parents[1]
TEXT = (CHECKOUT / "docker-compose.yml").read_text()


@pytest.fixture
def services() -> dict[str, Any]:
    return yaml.safe_load(TEXT)["services"]


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


def test_the_services_are_those_of_the_design(services: dict[str, Any]) -> None:
    assert set(services) == {"postgres", "redis", "migrate", "api", "worker"}


def test_api_and_worker_start_after_the_migrations_on_healthy_servers(services: dict[str, Any]) -> None:
    for name in ("api", "worker"):
        conditions = {on: how["condition"] for on, how in services[name]["depends_on"].items()}
        assert conditions == {
            "migrate": "service_completed_successfully",
            "postgres": "service_healthy",
            "redis": "service_healthy",
        }


def test_a_migration_runs_once(services: dict[str, Any]) -> None:
    assert services["migrate"]["restart"] == "no"
    assert services["migrate"]["command"] == ["python", "-m", "shared.migrations"]


def test_a_worker_has_longer_to_stop_than_its_runs_have_to_end(services: dict[str, Any]) -> None:
    assert seconds(services["worker"]["stop_grace_period"]) > Settings.model_fields["drain_seconds"].default


def test_there_can_be_many_workers(services: dict[str, Any]) -> None:
    assert not {"container_name", "ports", "hostname"} & set(services["worker"])


def test_only_the_api_is_published(services: dict[str, Any]) -> None:
    assert [name for name, service in services.items() if "ports" in service] == ["api"]


def test_api_and_worker_run_the_same_image(services: dict[str, Any]) -> None:
    assert services["api"]["image"] == services["worker"]["image"] == services["migrate"]["image"]


def test_secrets_come_from_outside_and_must_be_given() -> None:
    assert set(re.findall(r"(POSTGRES_PASSWORD|API_KEYS): (?!\$\{\1:\?)", TEXT)) == set()
    assert re.search(r"://agent_relay:\$\{POSTGRES_PASSWORD:\?[^}]+\}@postgres", TEXT)


def test_losing_a_machine_loses_no_acknowledged_write(services: dict[str, Any]) -> None:
    redis = " ".join(services["redis"]["command"])

    assert "--appendonly yes" in redis
    assert "--maxmemory-policy noeviction" in redis
    assert services["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]


def test_the_image_runs_as_nobody_special_on_locked_packages() -> None:
    dockerfile = (CHECKOUT / "Dockerfile").read_text()

    assert "--require-hashes -r requirements/production.txt" in dockerfile
    assert dockerfile.index("USER relay") < dockerfile.index("CMD")


@pytest.mark.parametrize("lock", sorted((CHECKOUT / "requirements").glob("*.txt")), ids=lambda lock: lock.stem)
def test_a_lock_names_versions_and_hashes_but_no_address(lock: Path) -> None:
    text = lock.read_text()

    assert re.findall(r"://|--index-url|--extra-index-url|--find-links|file:", text) == []
    for requirement in re.split(r"\n(?=[a-z0-9])", text)[1:]:
        assert re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==\S+", requirement), requirement
        assert "--hash=sha256:" in requirement, requirement
