"""`docker-compose.yml` keeps the promises of production: order of start, time to stop, no secret, more workers."""

import re
from pathlib import Path
from typing import Any

import pytest

from agent_relay.shared.settings import Settings
from tests.support.compose import DOTENV, PASSWORDS, TEXT, VARIABLE, WORKER_DOTENV, environment_of, filled, read
from tests.support.service import ROOT


@pytest.fixture
def services() -> dict[str, Any]:
    return read()


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


def test_the_services_are_those_of_the_design(services: dict[str, Any]) -> None:
    assert set(services) == {"postgres", "redis", "roles", "migrate", "key", "api", "worker"}


def test_api_and_worker_start_after_the_migrations_on_healthy_servers(services: dict[str, Any]) -> None:
    for name in ("api", "worker"):
        conditions = {on: how["condition"] for on, how in services[name]["depends_on"].items()}
        assert conditions == ({"key": "service_completed_successfully"} if name == "api" else {}) | {
            "migrate": "service_completed_successfully",
            "postgres": "service_healthy",
            "redis": "service_healthy",
        }


def test_a_migration_runs_once(services: dict[str, Any]) -> None:
    assert services["migrate"]["restart"] == "no"
    assert services["migrate"]["command"] == ["agent-relay", "migrate"]


def test_a_worker_has_longer_to_stop_than_its_runs_have_to_end(services: dict[str, Any]) -> None:
    assert seconds(services["worker"]["stop_grace_period"]) > Settings.model_fields["drain_seconds"].default


def test_there_can_be_many_workers(services: dict[str, Any]) -> None:
    assert not {"container_name", "ports", "hostname"} & set(services["worker"])


def test_only_the_api_is_published(services: dict[str, Any]) -> None:
    assert {name: service["ports"] for name, service in services.items() if "ports" in service} == {
        "api": ["127.0.0.1:8000:8000"]
    }


def test_api_and_worker_run_the_same_image(services: dict[str, Any]) -> None:
    assert services["api"]["image"] == services["worker"]["image"] == services["migrate"]["image"]


def test_the_passwords_come_from_outside_and_must_be_given() -> None:
    assert {name for name in VARIABLE.findall(TEXT) if name.endswith("_PASSWORD")} == PASSWORDS
    assert re.findall(r"\$\{[A-Z]+_PASSWORD(?!:\?set it)", TEXT) == []
    assert re.findall(r"//[a-z_-]+:(?!\$\{[A-Z]+_PASSWORD:\?)", TEXT) == []


def test_each_service_gets_only_the_secrets_that_it_needs(services: dict[str, Any]) -> None:
    secrets = DOTENV | WORKER_DOTENV
    found = {
        name: {
            secret
            for secret, value in secrets.items()
            if value in " ".join([*environment_of(service, DOTENV).values(), *map(str, service.get("command", []))])
            or value in filled(" ".join(map(str, service.get("command", []))), DOTENV)
        }
        for name, service in services.items()
    }

    assert found == {
        "postgres": {"POSTGRES_PASSWORD"},
        "roles": PASSWORDS - {"REDIS_PASSWORD"},
        "redis": {"REDIS_PASSWORD"},
        "migrate": {"MIGRATIONS_PASSWORD"},
        "key": {"API_PASSWORD", "API_KEYS"},
        "api": {"API_PASSWORD", "REDIS_PASSWORD", "API_KEYS", "OPERATOR_KEYS", "TICKET_SECRET"},
        "worker": {"WORKER_PASSWORD", "AGENTS_PASSWORD", "REDIS_PASSWORD", "OPENAI_API_KEY"},
    }


def test_the_user_of_redis_may_do_what_is_documented(services: dict[str, Any]) -> None:
    command = " ".join(services["redis"]["command"])
    documented = re.search(r"^ACL SETUSER \S+ on >\S+ (.*)$", (ROOT / "docs/operating.md").read_text(), re.MULTILINE)

    assert documented is not None
    assert command.endswith(documented[1])
    assert "--user default off --user agent-relay on >" in command


def test_losing_a_machine_loses_no_acknowledged_write(services: dict[str, Any]) -> None:
    redis = " ".join(services["redis"]["command"])

    assert "--appendonly yes" in redis
    assert "--maxmemory-policy noeviction" in redis
    assert services["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]


def test_the_image_runs_as_nobody_special_on_locked_packages() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()

    assert "--require-hashes -r requirements/production.txt" in dockerfile
    assert dockerfile.index("USER relay") < dockerfile.index("CMD")


def test_an_image_that_builds_on_ours_can_install_packages_as_its_user() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()

    folder = re.search(r"^ENV PYTHONUSERBASE=(\S+)$", dockerfile, re.MULTILINE)
    assert folder is not None
    assert re.search(rf"install --directory --owner relay .*{folder[1]}$", dockerfile, re.MULTILINE)


@pytest.mark.parametrize("lock", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda lock: lock.stem)
def test_a_lock_names_versions_and_hashes_but_no_address(lock: Path) -> None:
    text = lock.read_text()

    assert re.findall(r"://|--index-url|--extra-index-url|--find-links|file:", text) == []
    for requirement in re.split(r"\n(?=[a-z0-9])", text)[1:]:
        assert re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==\S+", requirement), requirement
        assert "--hash=sha256:" in requirement, requirement
