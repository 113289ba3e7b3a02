"""schemathesis asks the live service whatever its OpenAPI document allows, and much that it does not."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fuzz_hooks import AGENTS
from tests.support.service import ROOT, TEST_AGENTS, Service

SEED = 20_260
LEAST_CASES = 2_000
ENVIRONMENT = {
    "AGENTS": ",".join(f"{name}={TEST_AGENTS[name]}" for name in AGENTS),
    "MAX_REQUESTS_PER_SECOND_PER_USER": "0",
    "MAX_REQUESTS_PER_SECOND_PER_TENANT": "0",
    "MAX_QUEUED": "0",
    "MAX_BATCH_UNFINISHED": "0",
    "SCRIPTED_TOKENS_PER_SECOND": "0",
    "WEBHOOK_TRUSTED_HOSTS": "127.0.0.1",
}


def fuzz(service: Service, *options: str) -> str:
    """Run schemathesis against a service of its own; returns its report."""
    service.environment |= ENVIRONMENT
    api = service.api()
    service.worker()
    command = [
        Path(sys.executable).with_name("schemathesis"),
        *("--config-file", ROOT / "tests" / "fuzz.toml", "run", f"{api.url}/openapi.json"),
        *("--checks", "all", "--no-color", *options),
    ]
    environment = service.surroundings() | {"SCHEMATHESIS_HOOKS": "tests.support.fuzz_hooks", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command,
        cwd=service.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    report = "\n".join(line[:1000] for line in done.stdout.splitlines())
    assert done.returncode == 0, f"{report[-30_000:]}{done.stderr}"
    return report


@pytest.mark.timeout(600)
def test_generated_requests_are_answered_as_documented(service: Service) -> None:
    report = fuzz(service, "--seed", str(SEED), "--max-examples", "30", "--no-shrink")

    cases = re.search(r"([\d,]+) generated", report)
    assert cases is not None
    assert int(cases[1].replace(",", "")) >= LEAST_CASES
    assert "Internal Server Error" not in report


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_more_generated_requests_are_answered_as_documented(service: Service) -> None:
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
    print(f"SEED={seed}")  # noqa: T201

    fuzz(service, "--seed", str(seed), "--max-examples", os.environ.get("EXAMPLES", "300"))
