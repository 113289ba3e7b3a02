"""`docker-compose.yml`, read as Compose reads it."""

import re
from typing import Any

import yaml

from tests.support.service import ROOT

TEXT = (ROOT / "docker-compose.yml").read_text()
PASSWORDS = {f"{name}_PASSWORD" for name in ("POSTGRES", "MIGRATIONS", "API", "WORKER", "AGENTS", "REDIS")}
DOTENV = {name: f"secret-{name}" for name in (*sorted(PASSWORDS), "API_KEYS", "OPERATOR_KEYS", "TICKET_SECRET")}
WORKER_DOTENV = {"OPENAI_API_KEY": "secret-OPENAI_API_KEY"}
VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::[?-][^}]*)?\}")


def filled(value: str, variables: dict[str, str]) -> str:
    """Write variables out as Compose does."""
    return VARIABLE.sub(lambda match: variables.get(match[1], ""), value).replace("$$", "$")


def environment_of(service: dict[str, Any], variables: dict[str, str]) -> dict[str, str]:
    """Make the environment that Compose gives to a container."""
    files = service.get("env_file", [])
    found: dict[str, str] = {}
    for file in [files] if isinstance(files, str) else files:
        found |= variables if file == ".env" else WORKER_DOTENV
    return found | {name: filled(value, variables) for name, value in service.get("environment", {}).items()}


def read() -> dict[str, Any]:
    """Read the services."""
    return yaml.safe_load(TEXT)["services"]
