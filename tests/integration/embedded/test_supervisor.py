"""The one command that runs everything, on real servers, with stand-ins for API and worker."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agent_relay.embedded import environment
from agent_relay.embedded.environment import LaunchEnvironment
from agent_relay.embedded.process import command_of
from tests.support.eventually import DEADLINE_SECONDS, eventually

CHECKOUT = Path(__file__).parents[3]

STUB_API = """
import http.server, os
class Agents(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/metrics" else 404)
        self.end_headers()
        self.wfile.write(b'\\nagent_relay_workers{pool="default"} 1.0\\n')
    def log_message(self, *_): pass
print("api", os.getpid(), os.environ["API_KEYS"])
http.server.HTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Agents).serve_forever()
"""
STUB_WORKER = """
import os, signal
print("worker", os.getpid(), os.environ["DATABASE_URL"], os.environ["REDIS_URL"])
signal.pause()
"""
LAUNCHER = """
import sys
from pathlib import Path
from agent_relay.embedded import DataDir
from agent_relay.embedded.supervisor import Commands, Supervisor
from agent_relay.embedded.environment import LaunchEnvironment
home, *stand_ins = sys.argv[1:]
with DataDir(Path(home)) as locked:
    commands = Commands(*([sys.executable, "-c", stand_in] for stand_in in stand_ins))
    raise SystemExit(Supervisor(locked, LaunchEnvironment.read(), commands).run())
"""


class Launched:
    """A run of the launcher with stand-ins for API and worker."""

    def __init__(self, home: Path, worker: str = STUB_WORKER, **environment: str) -> None:
        self.home = home
        self._said, said = tempfile.mkstemp(dir=home.parent)
        self._file = Path(said)
        free = {name: value for name, value in os.environ.items() if name not in {"PORT", "API_KEYS", "OPERATOR_KEYS"}}
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(home), "print('migrated')", STUB_API, worker],
            stdout=self._said,
            stderr=subprocess.STDOUT,
            env={**free, "PORT": "0", **environment},
            cwd=CHECKOUT,
        )

    def said(self) -> str:
        """Return what it has printed."""
        return self._file.read_text()

    def until(self, pattern: str, times: int = 1) -> str:
        """Wait for a line, or for the n-th of its kind."""

        def look() -> list[str]:
            found = re.findall(pattern, self.said(), re.MULTILINE)
            assert self.process.poll() is None or len(found) >= times, self.said()
            return found if len(found) >= times else []

        return eventually(look)[-1]

    def pids(self) -> dict[str, int]:
        """Return the processes that run now."""
        servers = {name: int((self.home / f"{name}.running").read_text().split()[0]) for name in ("postgres", "redis")}
        return servers | {name: int(self.until(rf"^{name} (\d+) ")) for name in ("api", "worker")}

    def socket_folders(self) -> list[Path]:
        """Return the folders of the sockets."""
        return [Path((self.home / f"{name}.running").read_text().split()[1]) for name in ("postgres", "redis")]

    def close(self) -> None:
        """Stop it if it runs."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(DEADLINE_SECONDS)
        os.close(self._said)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # One home for all tests, as for all runs of a checkout. Every account may enter it, unlike pytest's own.
    path = Path(tempfile.mkdtemp(prefix="a folder "))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def launch(folder: Path) -> Iterator[Callable[..., Launched]]:
    runs: list[Launched] = []

    def start(**environment: str) -> Launched:
        runs.append(Launched(folder / ".local", **environment))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_everything_runs_until_told_to_stop_and_then_nothing(
    launch: Callable[..., Launched], number: signal.Signals
) -> None:
    run = launch()
    run.until("^ready$")
    pids, folders = run.pids(), run.socket_folders()

    run.process.send_signal(number)

    assert run.process.wait(DEADLINE_SECONDS) == 0, run.said()
    assert not any(command_of(pid) for pid in pids.values())
    assert not any(path.exists() for path in folders)


def test_the_lines_to_paste_name_the_address_the_key_and_the_user(launch: Callable[..., Launched]) -> None:
    run = launch()
    run.until("^ready$")

    assert re.search(r"^export BASE_URL=http://127\.0\.0\.1:\d+/api/v1$", run.said(), re.MULTILINE)
    assert f"\nexport API_KEY={(run.home / 'api-key').read_text()}" in run.said()
    assert f"\nexport USER_ID={(run.home / 'user-id').read_text()}" in run.said()
    for line in re.findall("^(?:export|curl) .*", run.said(), re.MULTILINE):
        subprocess.run(["/bin/bash", "-n", "-c", line], check=True)


@pytest.mark.parametrize("part", ["api", "worker", "redis", "postgres"])
def test_a_part_that_dies_is_named_and_started_again(launch: Callable[..., Launched], part: str) -> None:
    run = launch()
    run.until("^ready$")
    before = run.pids()[part]

    os.kill(before, signal.SIGKILL)

    run.until(f"^{part} died of SIGKILL; starting it again$")
    if part in {"api", "worker"}:
        run.until(rf"^{part} (\d+) ", times=2)
    after = eventually(lambda: (pid := run.pids()[part]) != before and pid)
    assert command_of(after)


def test_a_part_that_never_starts_ends_the_command_with_the_reason(launch: Callable[..., Launched]) -> None:
    run = launch(worker="raise SystemExit('no model for you')")

    assert run.process.wait(DEADLINE_SECONDS) == 1
    assert "no model for you" in run.said()
    assert re.search("^worker ended with status 1 before it was ready", run.said(), re.MULTILINE)


def test_a_second_run_of_one_home_is_refused_in_a_sentence(launch: Callable[..., Launched]) -> None:
    first = launch()
    first.until("^ready$")
    second = launch()

    assert second.process.wait(DEADLINE_SECONDS) == 1
    assert f"already runs from {first.home} (process {first.process.pid}); stop that one first." in second.said()
    assert first.process.poll() is None


def test_a_killed_launcher_leaves_nothing_that_the_next_one_does_not_clear(launch: Callable[..., Launched]) -> None:
    first = launch()
    first.until("^ready$")
    pids, folders = first.pids(), first.socket_folders()
    first.process.kill()
    first.process.wait()

    second = launch()
    second.until("^ready$")

    eventually(lambda: not any(command_of(pid) for pid in pids.values()))
    assert not any(path.exists() for path in folders)


def test_a_second_wish_makes_haste_with_a_worker_that_does_not_stop(launch: Callable[..., Launched]) -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + STUB_WORKER.replace(
        "signal.pause()", "\nwhile True: signal.pause()"
    )
    run = launch(worker=stubborn)
    run.until("^ready$")
    run.process.send_signal(signal.SIGINT)
    run.until("^Stopping")

    def ended() -> bool:  # Wishes within a second are one: `make` forwards what the terminal sent already.
        with suppress(subprocess.TimeoutExpired):
            run.process.wait(0.5)
        run.process.send_signal(signal.SIGINT)
        return run.process.poll() is not None

    eventually(ended)
    assert run.process.returncode == 0


def test_a_port_that_is_asked_for_must_be_free(launch: Callable[..., Launched]) -> None:
    first = launch()
    port = first.until(r"^export BASE_URL=http://127\.0\.0\.1:(\d+)")
    first.until("^ready$")
    with pytest.raises(SystemExit, match=f"PORT {port} is taken"):
        LaunchEnvironment(port=int(port)).free_port()


def test_without_a_wish_any_free_port_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PORT", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(environment, "_FAVOURITE_PORT", taken.getsockname()[1])
        assert LaunchEnvironment().free_port() not in {0, taken.getsockname()[1]}


def test_one_server_of_two_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://somewhere/else")
    monkeypatch.delenv("REDIS_URL", raising=False)
    with pytest.raises(SystemExit, match="Set both DATABASE_URL and REDIS_URL"):
        LaunchEnvironment.read()


NAMELESS = """
import os, pwd, runpy, sys

def nobody(key):
    raise KeyError(key)

pwd.getpwuid = pwd.getpwnam = nobody
if sys.argv.pop(1) == "user":
    os.geteuid = os.getuid = lambda: 12345
else:
    os.geteuid = os.getuid = lambda: 0
runpy.run_module("agent_relay.embedded", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(("who", "named"), [("user", "The user 12345"), ("root", "The user nobody")])
def test_a_user_without_a_name_is_told_what_private_servers_need(tmp_path: Path, who: str, named: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", NAMELESS, who, "--home", tmp_path / "home"],
        cwd=CHECKOUT,
        env={"PATH": os.defpath},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )

    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f"{named}")
    assert "DATABASE_URL and REDIS_URL" in ended.stderr
    assert "Traceback" not in ended.stderr
