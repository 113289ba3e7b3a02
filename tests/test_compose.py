"""`docker-compose.yml` keeps the promises of production: order of start, time to stop, no secret, more workers."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.keys import hash_key
from shared.settings import Settings

CHECKOUT = Path(__file__).parents[1]
TEXT = (CHECKOUT / "docker-compose.yml").read_text()


@pytest.fixture
def services() -> dict[str, Any]:
    return yaml.safe_load(TEXT)["services"]


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


def test_the_services_are_those_of_the_design(services: dict[str, Any]) -> None:
    assert set(services) == {"postgres", "redis", "migrate", "key", "api", "worker"}


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
    assert services["migrate"]["command"] == ["python", "-m", "shared.migrations"]


def test_a_worker_has_longer_to_stop_than_its_runs_have_to_end(services: dict[str, Any]) -> None:
    assert seconds(services["worker"]["stop_grace_period"]) > Settings.model_fields["drain_seconds"].default


def test_there_can_be_many_workers(services: dict[str, Any]) -> None:
    assert not {"container_name", "ports", "hostname"} & set(services["worker"])


def test_only_the_api_is_published(services: dict[str, Any]) -> None:
    assert [name for name, service in services.items() if "ports" in service] == ["api"]


def test_api_and_worker_run_the_same_image(services: dict[str, Any]) -> None:
    assert services["api"]["image"] == services["worker"]["image"] == services["migrate"]["image"]


def test_the_password_comes_from_outside_and_must_be_given() -> None:
    assert set(re.findall(r"(POSTGRES_PASSWORD): (?!\$\{\1:\?)", TEXT)) == set()
    assert re.search(r"://agent_relay:\$\{POSTGRES_PASSWORD:\?[^}]+\}@postgres", TEXT)


@pytest.mark.parametrize("given", ["", "acme:given"])
def test_without_keys_a_first_one_is_made_once(services: dict[str, Any], tmp_path: Path, given: str) -> None:
    def run(service: str, **environment: str) -> str:
        """Run the command of a service as Compose would, in this checkout."""
        command = [part.replace("$$", "$").replace("/keys/", f"{tmp_path}/") for part in services[service]["command"]]
        environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    first, second = run("key"), run("key")
    key = re.search(r"ar_\S+", first)
    assert key is not None
    assert "ar_" not in second
    pair = f"local:{hash_key(key[0].encode())}"
    assert (tmp_path / "pair").read_text() == f"{pair}\n"

    services["api"]["command"][2] = services["api"]["command"][2].replace("python -m api", "printenv API_KEYS")
    assert run("api", API_KEYS=given) == f"{given or pair}\n"


def test_a_key_is_made_by_any_python_without_any_package(tmp_path: Path) -> None:
    bare = [sys.executable, "-I", "-S", "-c", "import sys; sys.path[:0] = ['.']; from shared.keys import main; main()"]
    done = subprocess.run([*bare, "acme"], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    wrong = subprocess.run([*bare, "Acme Inc"], cwd=CHECKOUT, capture_output=True, text=True, check=False)

    key, pair = re.findall(r"(ar_\S+|acme:\S+)", done.stdout)
    assert pair == f"acme:{hash_key(key.encode())}"
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (1, "", 1)
    recipe = subprocess.run(
        ["make", "--dry-run", "key", "TENANT=acme", f"VENV={tmp_path}/none"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "pip" not in recipe.stdout


def test_losing_a_machine_loses_no_acknowledged_write(services: dict[str, Any]) -> None:
    redis = " ".join(services["redis"]["command"])

    assert "--appendonly yes" in redis
    assert "--maxmemory-policy noeviction" in redis
    assert services["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]


def test_the_image_runs_as_nobody_special_on_locked_packages() -> None:
    dockerfile = (CHECKOUT / "Dockerfile").read_text()

    assert "--require-hashes -r requirements/production.txt" in dockerfile
    assert dockerfile.index("USER relay") < dockerfile.index("CMD")


def test_an_image_that_builds_on_ours_can_install_packages_as_its_user() -> None:
    dockerfile = (CHECKOUT / "Dockerfile").read_text()

    folder = re.search(r"^ENV PYTHONUSERBASE=(\S+)$", dockerfile, re.MULTILINE)
    assert folder is not None
    assert re.search(rf"install --directory --owner relay .*{folder[1]}$", dockerfile, re.MULTILINE)


@pytest.mark.parametrize("lock", sorted((CHECKOUT / "requirements").glob("*.txt")), ids=lambda lock: lock.stem)
def test_a_lock_names_versions_and_hashes_but_no_address(lock: Path) -> None:
    text = lock.read_text()

    assert re.findall(r"://|--index-url|--extra-index-url|--find-links|file:", text) == []
    for requirement in re.split(r"\n(?=[a-z0-9])", text)[1:]:
        assert re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==\S+", requirement), requirement
        assert "--hash=sha256:" in requirement, requirement
