"""A setting does what it says, or stops the start with a sentence that names it; none is taken and has no effect."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from agent_relay.api.keys import main as keys
from agent_relay.client.__main__ import main as client
from agent_relay.embedded.__main__ import main as launcher
from agent_relay.embedded.environment import LaunchEnvironment
from agent_relay.shared.settings import Settings, WrongSettings, read
from agent_relay.worker.__main__ import main as worker

SERVERS = {"DATABASE_URL": "postgresql://relay@127.0.0.1/relay", "REDIS_URL": "redis://127.0.0.1"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in SERVERS.items():
        monkeypatch.setenv(name, value)


def told(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> Any:
    """Read a setting."""
    monkeypatch.setenv(name, value)
    return getattr(read(), name.lower())


@pytest.mark.parametrize(
    ("given", "origins"),
    [
        ("http://localhost:3000/", ["http://localhost:3000"]),
        ("HTTPS://App.Example.COM", ["https://app.example.com"]),
        ("https://app.example.com:443/,http://a:80", ["https://app.example.com", "http://a"]),
        ("http://a:443 https://a:80", ["http://a:443", "https://a:80"]),
        ("https://bücher.example", ["https://xn--bcher-kva.example"]),
        ("http://[::1]:3000/", ["http://[::1]:3000"]),
        ("http://a/ http://a", ["http://a"]),
        ("capacitor://localhost", ["capacitor://localhost"]),
        ("*", ["*"]),
        ("null", ["null"]),
        ("", []),
    ],
)
def test_origins_are_written_as_browsers_send_them(
    monkeypatch: pytest.MonkeyPatch, given: str, origins: list[str]
) -> None:
    assert told(monkeypatch, "CORS_ORIGINS", given) == origins


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("CORS_ORIGINS", "localhost:3000", "'localhost:3000' has no scheme"),
        ("JWT_ISSUER", "login.example.com", "must be a URL such as https://login.example.com/"),
        ("JWT_ISSUER", "http://login.example.com", "http is taken of this machine only"),
        ("JWT_ISSUER", "https://a:b@login.example.com", "must be a URL such as"),
        ("JWT_ISSUER", "https://login.example.com/", "JWT_ISSUER needs JWT_AUDIENCE"),
        ("JWT_AUDIENCE", "relay", "JWT_AUDIENCE has no effect without JWT_ISSUER"),
        ("JWT_TENANT", "Acme, Inc.", "must be a tenant"),
        ("JWT_JWKS_URL", "file:///etc/passwd", "must be a URL such as"),
        ("CORS_ORIGINS", "app.example.com", "has no scheme"),
        ("CORS_ORIGINS", "//app.example.com", "has no scheme"),
        ("CORS_ORIGINS", "https://app.example.com/app", "without path"),
        ("CORS_ORIGINS", "https://app.example.com?x=1", "without path"),
        ("CORS_ORIGINS", "https://user@app.example.com", "without path and user"),
        ("CORS_ORIGINS", "https://*.example.com", "each in full"),
        ("CORS_ORIGINS", "https://", "each in full"),
        ("CORS_ORIGINS", "https://app.example.com:port", "each in full"),
        ("CORS_ORIGINS", '"https://app.example.com"', "has no scheme"),
        ("CORS_ORIGINS", "*,https://app.example.com", "or * alone"),
        ("HOST", "http://0.0.0.0", "without scheme and port"),
        ("HOST", "0.0.0.0:8000", "without scheme and port"),
        ("HOST", "", "must be an address or a name"),
        ("HOST", "*", "0.0.0.0 for all"),
        ("LOG_LEVEL", "INFORMATION", "must be DEBUG, INFO, WARNING or ERROR"),
        ("LOG_LEVEL", "warn", "must be DEBUG, INFO, WARNING or ERROR"),
        ("POOL", "my pool", "must be a name"),
        ("POOL", "GPU", "must be a name"),
        ("WEBHOOK_TRUSTED_HOSTS", "https://hooks.internal", "without scheme, port, path or *"),
        ("WEBHOOK_TRUSTED_HOSTS", "hooks.internal:8080", "'hooks.internal:8080' is none"),
        ("WEBHOOK_TRUSTED_HOSTS", "*.internal", "'*.internal' is none"),
        ("WEBHOOK_TRUSTED_HOSTS", "10.0.0.0/8", "'10.0.0.0/8' is none"),
        ("AGENTS", "haiku:my_agents:haiku", "'haiku:my_agents:haiku=' is neither"),
        ("AGENTS", "Haiku=my_agents:haiku", "names of a-z, 0-9, _ and -"),
        ("AGENTS", "haiku=my_agents.haiku", "'haiku=my_agents.haiku' is neither"),
        ("AGENTS", "haiku=./poet.yaml:poet", "'haiku=./poet.yaml:poet' is neither"),
        ("AGENTS", "haiku=./poet.toml", "'haiku=./poet.toml' is neither"),
        ("API_KEYS", "acme:ar_not-a-hash", "the hash of a key, never the key"),
        ("PORT", "70000", "less than or equal to 65535"),
        ("PORT", "tcp://10.0.0.1:8000", "must be a whole number in plain digits"),
        ("AGENT_UNSERVED_SECONDS", "100000", "less than or equal to 86400"),
        ("AGENTS", "", "at least one agent"),
        ("AGENTS", " , ", "at least one agent"),
        ("LEASE_SECONDS", "inf", "must be a number in plain digits"),
        ("DRAIN_SECONDS", "1e300", "must be at most 3153600000"),
        ("WEBHOOK_RETRY_SECONDS", "5,1e20", "must be at most 3153600000"),
        ("RUN_RETENTION_DAYS", "1e9", "must be at most 36500"),
        ("IDEMPOTENCY_RETENTION_HOURS", "99999999999", "must be at most 876000"),
        ("MAX_QUEUED", "99999999999999999999", "must be at most 1000000000000000"),
        ("MAX_REQUESTS_PER_SECOND_PER_USER", "1e400", "must be at most 1000000000000000"),
        ("BEAT_SECONDS", "nan", "must be a number in plain digits"),
        ("TICKET_SECRET", "ar_not", "must have at least 16 characters"),
        ("REDIS_PREFIX", "my relay:", "must be at most 64 characters of A-Z"),
        ("ACCESS_LOG", "perhaps", "must be a valid boolean"),
    ],
)
def test_what_could_have_no_effect_stops_the_start_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    with pytest.raises(WrongSettings) as wrong:
        told(monkeypatch, name, value)

    assert str(wrong.value).startswith(f"{name} ")
    assert sentence in str(wrong.value)
    assert "\n" not in str(wrong.value)
    assert "ar_not" not in str(wrong.value)


NUMBERS = {
    name.upper(): field
    for name, field in Settings.model_fields.items()
    if re.search(r"\b(int|float)\b", str(field.annotation))
}
"""The settings that are a number, or a list of them."""
NOT_PLAIN = [
    *(
        "1_000",
        "1__0",
        "\u0665",
        "\uff15",
        "\u00b2",
        " 5",
        "5 ",
        "5\n",
        "\t5",
        "5\xa0",
        "+5",
        "--5",
        "- 5",
        "-",
        "\u22125",
    ),
    *(
        "05",
        "00",
        "0x10",
        "0b1",
        "0o7",
        "5.",
        ".5",
        "1e",
        "e1",
        "1e+",
        "1e1_0",
        "1e1.5",
        "1e5000",
        "5,5",
        "1'000",
        "1 000",
    ),
    *(
        "nan",
        "NaN",
        "-nan",
        "inf",
        "-inf",
        "Infinity",
        "1e400",
        "-1e400",
        "true",
        "True",
        "None",
        "null",
        "5s",
        "10%",
        "1MB",
    ),
    *('"5"', "[5]", "{}", "\udcff", "\u200b5", "\ufeff5", "9" * 400, "9" * 5_000, "-" + "9" * 5_000, "5" + "\u0661"),
]
"""What Python, pydantic, a shell or another program may read as a number."""


def test_every_number_is_known() -> None:
    assert {"PORT", "MAX_QUEUED_PER_USER", "INTERACTIVE_SHARE", "WEBHOOK_RETRY_SECONDS"} < NUMBERS.keys()
    assert len(NUMBERS) > 50


@pytest.mark.parametrize("value", sorted(set(NOT_PLAIN)), ids=ascii)
def test_a_number_that_is_not_plain_stops_the_start_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    is_list = value in {" 5", "5 ", "5\n", "\t5", "5\xa0", "5,5", "1 000"}  # Lists are split at blanks and commas.
    names = [name for name, field in NUMBERS.items() if not (is_list and "list" in str(field.annotation))]
    for name in names:
        monkeypatch.setenv(name, value)

    with pytest.raises(WrongSettings) as refused:
        read()

    sentences = str(refused.value).split("\n")
    assert sorted(sentence.partition(" must ")[0] for sentence in sentences) == sorted(names)
    for sentence in sentences:
        assert sentence.endswith(".")
        assert len(sentence.splitlines()) == 1
        assert len(sentence) < 200


@pytest.mark.parametrize(
    ("name", "value", "number"),
    [
        ("PORT", "0", 0),
        ("MAX_QUEUED", "100000", 100_000),
        ("MAX_QUEUED_PER_USER", "\t", None),
        ("LEASE_SECONDS", "15.5", 15.5),
        ("LEASE_SECONDS", "3E2", 300),
        ("KEEPALIVE_SECONDS", "1e-3", 0.001),
        ("WEBHOOK_RETRY_SECONDS", "5, 0.5\n1e2 ", [5, 0.5, 100]),
    ],
)
def test_a_plain_number_is_taken(monkeypatch: pytest.MonkeyPatch, name: str, value: str, number: object) -> None:
    assert told(monkeypatch, name, value) == number


NO_NUMBERS = ["1_0", "\u0665", "+5", "nan", "inf", "05", "0x5", ".5", "", "\uff15"]
NO_COUNTS = [*NO_NUMBERS, "0", "-1", "5.0", "9" * 5_000]


@pytest.mark.parametrize(
    ("main", "words", "sentence"),
    [
        *((worker, f"--processes={count}", r"--processes: must be [^\n]+\n$") for count in (*NO_COUNTS, "1e1", "1001")),
        *((worker, f"requeue --all --deadline={seconds}", "--deadline: must be ") for seconds in (*NO_NUMBERS, "-1")),
        *((keys, f"create acme --days={days}", "--days: must be ") for days in (*NO_NUMBERS, "36501", "1e400", "-1")),
        *(
            (keys, f"rotate {UUID(int=1)} --overlap-hours={hours}", "hours: must be ")
            for hours in (*NO_NUMBERS, "9000")
        ),
        *((client, f"threads --limit={count}", "--limit: must be 1 or more, not ") for count in (*NO_COUNTS, "1e3")),
        *((client, f"agents --patience={seconds}", "--patience: must be 0 seconds") for seconds in (*NO_NUMBERS, "-1")),
        *((client, f"agents --wait={seconds}", "--wait: must be 0 seconds ") for seconds in (*NO_NUMBERS, "1e400")),
        *((launcher, f"--port {port}", r"^PORT must [^\n]+$") for port in ("1_0", "+5", "-1", "65536", "9" * 5_000)),
    ],
)
def test_a_number_of_the_command_line_is_plain_too(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    main: Callable[[list[str]], object],
    words: str,
    sentence: str,
) -> None:
    monkeypatch.setenv("PORT", "1")
    with pytest.raises(SystemExit) as wrong:
        main(words.split(" "))

    assert re.search(sentence, capsys.readouterr().err if wrong.value.code == 2 else str(wrong.value))


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("HOST", "[::1]", "::1"),
        ("HOST", " 0.0.0.0 ", "0.0.0.0"),
        ("HOST", "api.internal", "api.internal"),
        ("LOG_LEVEL", "debug", "DEBUG"),
        (
            "WEBHOOK_TRUSTED_HOSTS",
            "Hooks.Internal,[2001:DB8:0::1],10.0.0.1",
            ["hooks.internal", "2001:db8::1", "10.0.0.1"],
        ),
        ("MODEL", "", None),
        ("MODEL", " test ", "test"),
        ("TICKET_SECRET", "", None),
        ("MAX_QUEUED_PER_USER", "", None),
        ("MAX_OPEN_CALLS_PER_TENANT", " ", None),
        ("MAX_BATCH_UNFINISHED_PER_TENANT", "0", 0),
        ("REDIS_PREFIX", "", ""),
    ],
)
def test_what_can_be_meant_is(monkeypatch: pytest.MonkeyPatch, name: str, value: str, meant: object) -> None:
    assert told(monkeypatch, name, value) == meant


@pytest.mark.parametrize(
    ("name", "meant"),
    [("API_KEY", "API_KEYS"), ("AGENT", "AGENTS"), ("CORS_ORIGIN", "CORS_ORIGINS"), ("WORKERS_SLOTS", "WORKER_SLOTS")],
)
def test_a_variable_that_is_nearly_ours_is_told_about(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, meant: str
) -> None:
    monkeypatch.setenv(name, "s3cret")
    read()

    assert capsys.readouterr().err == f"{name} is set, which means nothing here; did you mean {meant}?\n"


def test_one_that_is_set_beside_ours_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("API_KEY", "API_KEYS", "HOSTNAME", "OPENAI_API_KEY", "REDIS_HOST", "AGENT_RELAY_URL"):
        monkeypatch.setenv(name, "")
    read()

    assert capsys.readouterr().err == ""


def test_a_missing_one_that_is_misspelt_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL")
    monkeypatch.setenv("REDIS_URI", "redis://127.0.0.1")
    with pytest.raises(
        WrongSettings, match=r"REDIS_URL is not set\. REDIS_URI is set, which means nothing here; did you"
    ):
        read()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"MODEL=caf\xe9\n", ".env is not encoded in UTF-8: save it so."),
        ("MODEL=test\n".encode("utf-16"), ".env is not encoded in UTF-8: save it so."),
        (b"MODEL=test\nMAX_QUEUED: s3cret\n", ".env holds something other than NAME=value in line 2."),
        (b'MODEL=test\n\nPOOL="s3cret\n', ".env holds something other than NAME=value in line 3."),
    ],
)
def test_a_file_that_cannot_be_read_is_said_in_a_sentence(content: bytes, sentence: str) -> None:
    Path(".env").write_bytes(content)
    with pytest.raises(WrongSettings) as from_settings:
        read()
    with pytest.raises(WrongSettings) as from_launcher:
        LaunchEnvironment.read()

    assert str(from_settings.value) == str(from_launcher.value) == sentence


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_file_says_what_the_environment_does_not(monkeypatch: pytest.MonkeyPatch, mark: bytes) -> None:
    Path(".env").write_bytes(mark + b"# MODEL=none\r\nexport POOL=gpu\r\nMAX_QUEUED=7 # few\r\n")
    monkeypatch.setenv("MAX_QUEUED", "8")

    assert (read().pool, read().max_queued) == ("gpu", 8)


def test_the_example_may_be_used_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    example = (Path(__file__).parents[3] / ".env.example").read_text()
    plain = read().model_dump(exclude={"database_url", "redis_url"})
    for name, value in re.findall(r"^# ([A-Z_]+)=(.*)$", example, re.MULTILINE):
        monkeypatch.setenv(name, value)

    assert read().model_dump(exclude={"database_url", "redis_url"}) == plain
