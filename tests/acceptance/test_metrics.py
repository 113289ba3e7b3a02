"""What an operator sees: counters of each process, and lines of the log that say which request and run they are of."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise

import httpx
import psycopg
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from agent_relay.embedded import PostgresServer
from agent_relay.shared import metrics
from agent_relay.shared.metrics import REGISTRY, Server
from tests.support.client import Client
from tests.support.eventually import eventually, soon
from tests.support.service import KEYS, Running, Service

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


def free_ports(count: int) -> int:
    """Find ports that are free and follow one another; returns the first."""
    while True:
        with ExitStack() as taken:
            first = taken.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                for other in range(port + 1, port + count):
                    taken.enter_context(socket.socket()).bind(("127.0.0.1", other))
            except (OSError, OverflowError):
                continue
            return port


def samples(url: str) -> dict[tuple[str, ...], float]:
    """Read metrics: by their names and the values of their labels, which stand in the order of the labels' names."""
    text = httpx.get(f"{url}/metrics").raise_for_status().text
    return {
        (sample.name.removeprefix("agent_relay_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("agent_relay_")
    }


def lines(process: Running, words: str) -> list[str]:
    """Read the lines of its log that hold these words."""
    return [line for line in process.log.read_text().splitlines() if words in line]


async def test_requests_are_counted_by_the_template_of_their_route(service: Service) -> None:
    api = service.api()
    service.worker()
    async with Client(api.url) as client:
        run = await client.run("hello", agent_type="echo")
        await client.ended(run["id"])
        await client.events(run["id"])
        await client.read(run["id"])
        await client.http.head(f"/runs/{run['id']}")
        await client.http.get("/runs/stream")  # An id that cannot be one.
        for path in ("/nowhere", "/nowhere/else", "/runs/a/b/c"):
            await client.http.get(path)
        await client.http.post("/runs", json={"query": 1})
        await client.http.request("PROPFIND", "/runs")
    counted = {key[1:]: value for key, value in samples(api.url).items() if key[0] == "http_requests_total"}

    assert counted["GET", "/api/v1/runs/{run_id}", "200"] >= 2
    assert counted["HEAD", "/api/v1/runs/{run_id}", "200"] == 1
    assert counted["GET", "/api/v1/runs/{run_id}", "404"] == 1
    assert counted["GET", "/api/v1/runs/{run_id}/stream", "200"] == 1
    assert counted["POST", "/api/v1/runs", "202"] == 1
    assert counted["POST", "/api/v1/runs", "422"] == 1
    assert counted["GET", "", "404"] == 3
    assert [status for method, _, status in counted if method == "other"] == ["405"]
    assert not any(UUID.search(label) for labels in counted for label in labels)


async def test_a_worker_counts_what_became_of_its_runs(service: Service) -> None:
    port = free_ports(1)
    api = service.api()
    worker = service.worker(METRICS_PORT=str(port))
    async with Client(api.url) as client:
        for agent_type in ("echo", "echo", "breaks"):
            await client.ended((await client.run("hello", agent_type=agent_type))["id"])
        slow = await client.run("tick 600", agent_type="slow")
        async with client.following(slow["id"]) as stream:
            async for event in stream:
                if event["event"] == "text_delta":
                    break
        await client.http.post(f"/runs/{slow['id']}/cancel?wait=30")
        batch = await client.http.post(
            "/batches", json={"agent_type": "echo", "items": [{"custom_id": "1", "query": "one"}]}
        )
        while (await client.http.get(f"/batches/{batch.json()['id']}")).json()["status"] != "completed":
            pass
    url = f"http://127.0.0.1:{port}"
    await soon(lambda: _has(url, ("runs_ended_total", "slow", "", "cancelled")))
    seen = samples(url)

    assert seen["runs_ended_total", "echo", "", "succeeded"] == 3
    assert seen["runs_ended_total", "breaks", "agent_error", "failed"] == 1
    assert seen["attempts_total", "echo", "first"] == 3
    assert seen["pick_up_seconds_count", "interactive"] == 4
    assert seen["pick_up_seconds_count", "batch"] == 1
    assert 0 <= seen["pick_up_seconds_sum", "interactive"] < 240
    assert seen["first_partial_seconds_count", "echo"] == 3
    assert seen["model_requests_total", "echo"] == 3
    assert seen["tokens_total", "echo", "output"] > 0
    assert "metrics.served" in worker.log.read_text()


async def _has(url: str, sample: tuple[str, ...]) -> bool:
    return sample in samples(url)


async def test_without_a_port_a_worker_listens_nowhere(service: Service) -> None:
    worker = service.worker()

    assert not lines(worker, "metrics.")


@contextmanager
def showing(monkeypatch: pytest.MonkeyPatch, seconds: float = 5) -> Generator[tuple[str, int]]:
    """Show the metrics of this process; gives the address."""
    port = free_ports(1)
    monkeypatch.setattr(metrics, "PEER_SECONDS", seconds)
    metrics.serve("127.0.0.1", [port])
    yield "127.0.0.1", port


def ask(address: tuple[str, int], request: bytes) -> tuple[bytes, bytes]:
    """Send bytes; returns the status line and the rest of what comes, nothing where the connection is closed."""
    with socket.create_connection(address, timeout=60) as connection, suppress(ConnectionError):
        connection.sendall(request)
        line, _, rest = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n")
        return line, rest
    return b"", b""


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/1.1", 200),
        (b"GET /metrics?name[]=up HTTP/1.0", 200),
        (b"HEAD /metrics HTTP/1.1", 200),
        *(
            (b"GET " + path + b" HTTP/1.1", 404)
            for path in (b"/", b"/favicon.ico", b"/metrics/", b"/metrics/x", b"/Metrics")
        ),
        *(
            (b"GET " + path + b" HTTP/1.1", 404)
            for path in (b"/%6detrics", b"/x/../metrics", b"http://a/b", b"*", b"\xff")
        ),
        (b"HEAD /nowhere HTTP/1.1", 404),
        *((method + b" /metrics HTTP/1.1", 405) for method in (b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH")),
        (b"BREW /metrics HTTP/1.1", 501),
        (b"GET /metrics HTTP/x", 400),
        (b"GET /metrics HTTP/2.0", 505),
        (b"nonsense", 400),
        (b"GET /metrics HTTP/1.1" + b"\r\nA: b" * 200, 431),
    ],
)
def test_the_port_of_a_worker_answers_for_metrics_only(
    monkeypatch: pytest.MonkeyPatch, request_: bytes, status: int
) -> None:
    with showing(monkeypatch) as address:
        line, rest = ask(address, request_ + b"\r\n\r\n")
    head, _, body = rest.partition(b"\r\n\r\n")

    assert int(line.split()[1]) == status
    assert (b"agent_relay_" in body) == (status == 200 and not request_.startswith(b"HEAD"))
    assert body == b"" or not request_.startswith(b"HEAD")
    assert b"X-Content-Type-Options: nosniff" in head
    assert b"Cache-Control: no-store" in head
    assert b"python" not in head.lower()


@pytest.mark.parametrize(
    "said",
    [b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: a\r\n", b"\x16\x03\x01" * 50, b"GET /" + b"a" * (1 << 20)],
)
def test_who_does_not_end_a_request_is_let_go(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    with showing(monkeypatch, seconds=0.2) as address:
        assert ask(address, said) == (b"", b"")


def test_who_sends_a_byte_now_and_then_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    with showing(monkeypatch, seconds=0.3) as address, socket.create_connection(address, timeout=60) as connection:

        def is_let_go() -> bool:
            try:
                connection.sendall(b"G")
            except ConnectionError:
                return True
            return False

        eventually(is_let_go)


def test_slow_and_many_scrapers_leave_the_worker_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred connections that say nothing: few are served at once, none for long, and then others are."""
    with showing(monkeypatch, seconds=0.5) as address, ExitStack() as open_:
        before = threading.active_count()
        for _ in range(100):
            open_.enter_context(socket.create_connection(address, timeout=60))
        most = 0
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask, address, b"GET /metrics HTTP/1.1\r\n\r\n")
            while not answer.done():
                most = max(most, threading.active_count() - before)
                time.sleep(0.005)

    assert answer.result()[0].split()[1] == b"200"
    assert most <= metrics.MOST_CONNECTIONS + 2


def test_the_counters_are_written_once_a_second_however_many_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[float] = []

    def write(registry: CollectorRegistry) -> bytes:
        written.append(time.monotonic())
        return generate_latest(registry)

    monkeypatch.setattr(metrics, "generate_latest", write)
    with showing(monkeypatch) as address, ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(ask, [address] * 60, [b"GET /metrics HTTP/1.1\r\n\r\n"] * 60))

    assert all(line.split()[1] == b"200" for line, _ in answers)
    assert all(later - earlier >= 1 for earlier, later in pairwise(written))


async def test_each_process_of_several_has_a_port_and_the_dead_are_counted(service: Service) -> None:
    port = free_ports(3)
    api = service.api()
    worker = service.begin("worker", "--processes", "2", METRICS_PORT=str(port), MAX_CRASHES="1")
    eventually(lambda: len(lines(worker, "worker.ready")) == 2)
    urls = [api.url, *(f"http://127.0.0.1:{port + number}" for number in range(3))]
    crashed = ("runs_ended_total", "poison", "worker_crashed", "failed")
    async with Client(api.url) as client:
        assert (await client.ended((await client.run("die", agent_type="poison"))["id"]))["error"]
    eventually(lambda: len(lines(worker, "worker.ready")) == 3)  # It was started again, on the port that was left.

    assert sum(samples(url).get(crashed, 0) for url in urls) == 1
    assert len(lines(worker, "metrics.served")) == 4


async def test_a_port_that_is_taken_keeps_no_worker_from_its_work(service: Service) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        worker = service.worker(METRICS_PORT=str(taken.getsockname()[1]))

        assert lines(worker, "metrics.not_served")


async def test_a_suspects_end_is_counted_by_whoever_made_its_process(service: Service) -> None:
    port = free_ports(1)
    api = service.api()
    patience = {"LEASE_SECONDS": "3", "BEAT_SECONDS": "1"}
    service.begin("worker", **patience).await_line("worker.ready")  # It dies, and nobody starts it again.
    async with Client(api.url) as client:
        run = await client.run("die", agent_type="poison")
        eventually(lambda: service.processes[-1].process.poll() is not None)
        worker = service.worker(METRICS_PORT=str(port), SUSPECTS_AT_ONCE="1", **patience)
        await client.ended(run["id"])
        worker.await_line("isolation.died")
    crashed = ("runs_ended_total", "poison", "worker_crashed", "failed")
    urls = [api.url, f"http://127.0.0.1:{port}"]
    eventually(lambda: sum(samples(url).get(crashed, 0) for url in urls) == 1)


async def test_the_api_shows_its_counters_without_postgresql(service: Service, postgres: PostgresServer) -> None:
    api = service.api()
    async with Client(api.url) as client:
        assert (await client.http.get("/agents")).is_success
        name = service.database_url.partition("/test_")[2].partition("?")[0]
        with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE test_{name} ALLOW_CONNECTIONS false")  # pyright: ignore[reportArgumentType, reportCallIssue]
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [f"test_{name}"]
            )
        assert (await client.http.get("/agents")).status_code == httpx.codes.SERVICE_UNAVAILABLE
    seen = samples(api.url)

    assert seen["http_requests_total", "GET", "/api/v1/agents", "503"] == 1
    assert any(key[0] == "server_errors_total" and key[2] == "postgresql" for key in seen)


async def test_lines_say_which_request_and_which_run_they_are_about(service: Service) -> None:
    api = service.api()
    worker = service.worker()
    async with Client(api.url) as client:
        headers = {"X-Request-ID": "req-of-the-test"}
        accepted = await client.http.post("/runs", json={"query": "?", "agent_type": "breaks"}, headers=headers)
        run_id = accepted.json()["id"]
        await client.ended(run_id)
        items = [{"custom_id": "1", "query": "one"}]
        batch = await client.http.post("/batches", json={"agent_type": "breaks", "items": items}, headers=headers)
        batch_id = batch.json()["id"]
        eventually(lambda: lines(worker, f"batch_id={batch_id}"))

    (line,) = lines(api, f"run_id={run_id}")
    assert "asking.accepted" in line
    assert "request_id=req-of-the-test" in line
    (line,) = lines(api, f"batch_id={batch_id}")
    assert "batches.accepted" in line
    assert "request_id=req-of-the-test" in line
    (line,) = [line for line in lines(worker, f"run_id={run_id}") if "job.agent_error" in line]
    assert re.search(r" worker_id=[0-9a-f-]{36}$", line)
    assert line.count(run_id) == 1
    (line,) = lines(worker, f"batch_id={batch_id}")
    assert "run_id=" in line


def answered(api: Running) -> Iterator[dict[str, str]]:
    """Read the lines of the access log, taken apart."""
    for line in lines(api, "access.answered"):
        pairs = (pair.partition("=") for pair in line.partition("access.answered ")[2].split(" "))
        yield {name: value for name, _, value in pairs}


async def test_the_access_log_has_a_line_for_each_request_and_no_secret(service: Service) -> None:
    api = service.api(ACCESS_LOG="true")
    service.worker()
    async with Client(api.url) as client:
        run = await client.run("hello", agent_type="echo")
        await client.ended(run["id"])
        ticket = (await client.http.post(f"/runs/{run['id']}/stream-ticket")).json()
        stream = await client.http.get(
            httpx.URL(api.url).join(ticket["url"]), headers={"X-Request-ID": "streamed"}, timeout=30
        )
        await client.http.get("/nowhere%0Aaccess.answered%20method=POST", headers={"X-Request-ID": "odd"})
        await client.http.head(f"/runs/{run['id']}", headers={"X-Request-ID": "head"})
    written = eventually(lambda: {line["request_id"]: line for line in answered(api) if "head" in api.log.read_text()})

    streamed = written["streamed"]
    assert streamed["method"] == "GET"
    assert streamed["path"] == f"/api/v1/runs/{run['id']}/stream"
    assert streamed["route"] == "/api/v1/runs/{run_id}/stream"
    assert (streamed["status"], streamed["response"]) == ("200", "whole")
    assert int(streamed["bytes"]) == len(stream.content)
    assert float(streamed["seconds"]) >= 0
    assert written["odd"]["path"] == "/api/v1/nowhere%0Aaccess.answered%20method%3DPOST"
    assert (written["odd"]["route"], written["odd"]["status"]) == ("", "404")
    assert written["head"]["method"] == "HEAD"
    log = api.log.read_text()
    assert "ticket=" not in log
    assert not any(key in log for key in KEYS.values())


async def test_nobody_asks_for_an_access_log_and_there_is_none(service: Service) -> None:
    api = service.api()
    async with Client(api.url) as client:
        await client.http.get("/agents")

    assert not lines(api, "access.answered")


def test_an_error_of_a_server_is_counted_under_a_code_from_a_closed_list() -> None:
    def counted(code: str) -> float:
        return REGISTRY.get_sample_value("agent_relay_server_errors_total", {"server": "redis", "code": code}) or 0

    before = {code: counted(code) for code in ("READONLY", "connection", "other")}
    metrics.server_error(Server.REDIS, "READONLY")
    metrics.server_error(Server.REDIS, None)
    for odd in ("", "max number of clients reached", "x" * 1000, "a\nb"):
        metrics.server_error(Server.REDIS, odd)

    assert {code: counted(code) - count for code, count in before.items()} == {
        "READONLY": 1,
        "connection": 1,
        "other": 4,
    }


async def test_many_who_ask_for_metrics_have_the_servers_asked_once_and_keep_no_caller_waiting(
    service: Service, database_url: str
) -> None:
    """The count of runs is held up, as a long queue would: all who ask wait for one answer, on one connection."""
    api = service.api()
    async with Client(api.url) as client, await psycopg.AsyncConnection.connect(database_url) as blocker:
        await blocker.execute("LOCK workers IN ACCESS EXCLUSIVE MODE")
        asking = [
            asyncio.create_task(client.http.get(f"{api.url}/metrics", headers={"X-API-Key": ""})) for _ in range(100)
        ]
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%sum(slots)%'"

        async def is_held_up() -> bool:
            async with await psycopg.AsyncConnection.connect(database_url) as observer:
                return await (await observer.execute(waiting)).fetchone() == (1,)

        await soon(is_held_up)
        for _ in range(5):
            assert (await client.http.get("/threads")).is_success
            assert (await client.http.get(f"{api.url}/health/ready")).is_success
        assert await is_held_up(), "a hundred who ask hold one connection"
        assert not any(task.done() for task in asking)
        await blocker.rollback()
        responses = await asyncio.gather(*asking)
    assert len({response.text for response in responses}) == 1
