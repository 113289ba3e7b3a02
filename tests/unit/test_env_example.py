"""`.env.example` tells an operator everything that can be set, and nothing that cannot."""

import re
from pathlib import Path

from agent_relay.shared.settings import Settings

CHECKOUT = Path(__file__).parents[2]
REQUIRED = {"DATABASE_URL": "postgresql://u:p@h/d", "REDIS_URL": "redis://h"}


def examples() -> dict[str, str]:
    lines = (CHECKOUT / ".env.example").read_text().splitlines()
    matches = [re.fullmatch(r"# ([A-Z][A-Z_]+)=(.*)", line) for line in lines]
    return {match[1]: match[2] for match in matches if match}


def test_the_example_names_every_setting_and_what_compose_needs() -> None:
    compose = (CHECKOUT / "docker-compose.yml").read_text()
    needed = set(re.findall(r"\$\{([A-Z_]+)", compose))

    assert set(examples()) == {name.upper() for name in Settings.model_fields} | needed


def test_the_example_shows_the_defaults() -> None:
    shown = {name.lower(): value for name, value in examples().items() if value and name not in REQUIRED}

    told = Settings.model_validate({**{k.lower(): v for k, v in REQUIRED.items()}, **shown})

    for name in shown:
        default = Settings.model_fields[name].get_default(call_default_factory=True)
        assert getattr(told, name) == default, name


def test_nothing_is_set_by_copying_the_example() -> None:
    lines = (CHECKOUT / ".env.example").read_text().splitlines()

    assert [line for line in lines if line and not line.startswith("#")] == []
