"""Tokens of the tenant's own identity provider are enough; none that only looks like one is."""

from __future__ import annotations

import base64
import hmac
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID, uuid4

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from agent_relay.api.requests import identity_provider
from agent_relay.api.requests.identity_provider import IdentityProvider, ProviderAway
from agent_relay.api.requests.key_cache import KeyCache, KeysUnknown
from agent_relay.shared import database
from agent_relay.shared.api_keys import ApiKey
from agent_relay.shared.settings import Settings
from tests.support.client import Client, names, read_events
from tests.support.eventually import soon
from tests.support.problems import CANARY, problem_of
from tests.support.service import KEYS, OPERATOR_KEY, Running, Service, serving

AUDIENCE = "https://relay.example.com"
RSA = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
CURVE = ec.generate_private_key(ec.SECP256R1())


def jwk(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, kid: str) -> dict[str, Any]:
    if isinstance(key, rsa.RSAPrivateKey):
        return RSAAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid, "use": "sig"}
    return ECAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid, "alg": "ES256"}


@dataclass
class Provider:
    """What publishes keys."""

    url: str = ""
    keys: list[dict[str, Any]] = field(default_factory=lambda: [jwk(RSA, "one"), jwk(CURVE, "two")])
    status: int = 200
    fetches: int = 0
    named: str | None = None
    """What it calls itself, if not its URL."""

    def token(self, key: Any = RSA, kid: str | None = "one", algorithm: str = "RS256", **changed: Any) -> str:
        """Sign a token, as it does for somebody who signs in."""
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "auth0|ann",
            "org": "acme",
            "iat": int(time.time()),
            "exp": int(time.time()) + 600,
        } | changed
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, key, algorithm, {} if kid is None else {"kid": kid})


@contextmanager
def providing() -> Generator[Provider]:
    """Publish keys on a port of this machine."""
    provider = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found: dict[str, Any] = {"keys": provider.keys}
            if self.path == "/.well-known/openid-configuration":
                found = {"issuer": provider.named or provider.url, "jwks_uri": f"{provider.url}/keys"}
            else:
                provider.fetches += 1
            body = json.dumps(found).encode()
            self.send_response(provider.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (its name there)
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with providing() as provider:
        yield provider


@pytest.fixture(scope="module")
def api(
    provider: Provider,
    new_database: Callable[[], str],
    new_redis: Callable[[], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    """An API process that trusts the provider, and a worker."""
    environment = {"JWT_ISSUER": provider.url, "JWT_AUDIENCE": AUDIENCE, "JWT_TENANT_CLAIM": "org"}
    with serving(new_database(), new_redis(), tmp_path_factory.mktemp("service"), environment) as service:
        api = service.api()
        service.worker()
        yield api


@pytest.fixture
async def http(api: Running) -> AsyncGenerator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"{api.url}/api/v1", verify=False, timeout=60) as http:
        yield http


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_a_token_of_the_provider_is_enough(provider: Provider, api: Running, http: httpx.AsyncClient) -> None:
    subject = f"auth0|{uuid4()}"
    token = bearer(provider.token(sub=subject))

    thread = (await http.post("/threads", headers=token, json={"agent_type": "echo"})).json()
    asked = {"thread_id": thread["id"], "query": "hello"}
    answer = await http.post("/agent/query", headers=token, json=asked)

    assert answer.json()["response"] == "You said: hello"
    async with Client(api.url, user_id=subject) as with_key, Client(api.url, "other", subject) as of_other:
        assert len(await with_key.messages(thread["id"])) == 2
        problem_of(await of_other.http.get(f"/threads/{thread['id']}"), 404)
    for algorithm, key, kid in (("RS512", RSA, "one"), ("PS256", RSA, "one"), ("ES256", CURVE, "two")):
        same = bearer(provider.token(key, kid, algorithm, sub=subject))
        assert (await http.get(f"/threads/{thread['id']}", headers=same)).status_code == 200
    other = bearer(provider.token(sub=subject, org="other"))
    problem_of(await http.get(f"/threads/{thread['id']}", headers=other), 404)
    assert (await http.get("/threads", headers=token | {"X-User-ID": subject})).status_code == 200
    problem_of(await http.get("/threads", headers=token | {"X-User-ID": "bob"}), 400)
    by_uuid = bearer(provider.token(sub=thread["user_id"]))
    assert (await http.get(f"/threads/{thread['id']}", headers=by_uuid)).status_code == 200
    listed = await http.get("/threads", headers=bearer(provider.token(sub=subject, aud=["x", AUDIENCE])))
    assert UUID(listed.json()["items"][0]["user_id"]).version == 5


async def test_it_reads_nothing_of_the_tenant(provider: Provider, http: httpx.AsyncClient) -> None:
    token = bearer(provider.token())
    body = {"user_id": "bob", "ttl_s": 60}
    for method, url, sent in (
        ("POST", "/user-tokens", body),
        ("GET", "/usage", None),
        ("GET", "/webhooks/secret", None),
    ):
        problem_of(await http.request(method, url, headers=token, json=sent), 403, "key_needed")


async def test_its_tickets_and_streams_end_with_it(provider: Provider, http: httpx.AsyncClient) -> None:
    almost = int(time.time()) - 56  # It is taken for four seconds more: the clocks may differ by a minute.
    token = bearer(provider.token(exp=almost))
    body = {"agent_type": "patient", "query": "/nowhere"}
    run_id = (await http.post("/runs", headers=token, json=body)).json()["id"]
    ticket = (await http.post(f"/runs/{run_id}/stream-ticket", headers=token)).json()["url"].partition("/api/v1")[2]
    async with (
        http.stream("GET", ticket) as by_ticket,
        http.stream("GET", f"/runs/{run_id}/stream", headers=token) as one,
    ):
        assert by_ticket.status_code == one.status_code == 200
        for stream in (by_ticket, one):
            assert "done" not in names([event async for event in read_events(stream)])

    async def is_void() -> bool:
        return (await http.get("/runs", headers=token)).status_code == 401

    await soon(is_void)
    problem_of(await http.get(ticket), 401)
    assert (await http.post(f"/runs/{run_id}/cancel", headers=bearer(provider.token()))).is_success


async def test_a_schedule_goes_on_without_the_token(provider: Provider, http: httpx.AsyncClient) -> None:
    new = {"agent_type": "echo", "query": "hello", "cron": "@yearly"}
    made = await http.post("/schedules", headers=bearer(provider.token()), json=new)
    assert made.status_code == 201, made.text

    key = ApiKey.of_issuer(provider.url, "acme")
    for issuer, tenant, found in ((provider.url, "acme", key), (provider.url, "other", None), (None, "acme", None)):
        settings = Settings(database_url="postgresql://no/where", redis_url="redis://nowhere", jwt_issuer=issuer)
        keys = KeyCache(settings, database.connect(settings), lambda _: None, lambda _: None)
        try:
            assert keys.find_by_reference(key.reference, tenant) == found
        except KeysUnknown:
            assert found is None


def segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def with_public_key_as_secret(provider: Provider) -> str:
    """Sign with HMAC, and with what everybody knows as the secret."""
    public = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    payload = provider.token().split(".")[1]
    signed = f"{segment({'alg': 'HS256', 'kid': 'one', 'typ': 'JWT'})}.{payload}"
    signature = hmac.digest(public, signed.encode(), "sha256")
    return f"{signed}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def unsigned(provider: Provider, algorithm: str) -> str:
    return f"{segment({'alg': algorithm, 'kid': 'one'})}.{provider.token().split('.')[1]}."


FORGED: dict[str, Callable[[Provider], str]] = {
    "no algorithm": lambda p: unsigned(p, "none"),
    "no signature": lambda p: unsigned(p, "RS256"),
    "the public key for a secret": with_public_key_as_secret,
    "the key of somebody else": lambda p: p.token(OTHER),
    "an unknown key": lambda p: p.token(OTHER, "three"),
    "no key named": lambda p: p.token(kid=None),
    "another key named": lambda p: p.token(kid="two"),
    "another audience": lambda p: p.token(aud="https://another.example.com"),
    "no audience": lambda p: p.token(aud=None),
    "another issuer": lambda p: p.token(iss="https://evil.example.com"),
    "expired": lambda p: p.token(exp=int(time.time()) - 70),
    "endless": lambda p: p.token(exp=None),
    "an odd end": lambda p: p.token(exp=CANARY),
    "beyond all times": lambda p: p.token(exp=float("inf")),
    "not yet valid": lambda p: p.token(nbf=int(time.time()) + 70),
    "issued in the future": lambda p: p.token(iat=int(time.time()) + 70),
    "no subject": lambda p: p.token(sub=None),
    "an empty subject": lambda p: p.token(sub=""),
    "a subject beyond ASCII": lambda p: p.token(sub="\u00e4nn"),
    "a long subject": lambda p: p.token(sub=CANARY * 30),
    "no tenant": lambda p: p.token(org=None),
    "no possible tenant": lambda p: p.token(org="Acme, Inc."),
    "several tenants": lambda p: p.token(org=["acme"]),
    "very long": lambda p: p.token(padding="x" * 40_000),
    "changed": lambda p: p.token()[:-8] + "AAAAAAAA",
    "its payload changed": lambda p: ".".join(
        [p.token().split(".")[0], segment({"sub": "x"}), p.token().split(".")[2]]
    ),
}


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
async def test_what_is_not_the_providers_is_as_wrong_as_any_key(
    provider: Provider, http: httpx.AsyncClient, forge: Callable[[Provider], str]
) -> None:
    response = await http.get("/runs", headers=bearer(forge(provider)))

    problem = problem_of(response, 401, "unauthorized")
    assert problem["detail"] == "A valid key or token is needed, in X-API-Key or as Authorization: Bearer."
    assert response.headers["www-authenticate"] == "ApiKey, Bearer"


async def test_a_token_that_ends_after_all_times_is_one(provider: Provider, http: httpx.AsyncClient) -> None:
    token = bearer(provider.token(exp=10**300))
    run_id = (await http.post("/runs", headers=token, json={"agent_type": "echo", "query": "hello"})).json()["id"]

    assert (await http.post(f"/runs/{run_id}/stream-ticket", headers=token)).status_code == 201
    assert (await http.get(f"/runs/{run_id}/stream", headers=token)).status_code == 200


async def test_keys_and_tokens_of_the_service_go_on(provider: Provider, http: httpx.AsyncClient) -> None:
    body = {"user_id": "ann", "ttl_s": 60}
    made = (await http.post("/user-tokens", headers={"X-API-Key": KEYS["acme"]}, json=body)).json()
    assert (await http.get("/runs", headers=bearer(made["token"]))).status_code == 200
    assert (await http.get("/runs", headers=bearer(KEYS["acme"]))).status_code == 200
    problem_of(await http.get("/operator/keys", headers=bearer(provider.token())), 401)
    assert (await http.get("/operator/keys", headers=bearer(OPERATOR_KEY))).status_code == 200


async def test_unknown_keys_make_no_fetches(provider: Provider, http: httpx.AsyncClient) -> None:
    await http.get("/runs", headers=bearer(provider.token(OTHER, "three")))
    before = provider.fetches
    for number in range(20):
        problem_of(await http.get("/runs", headers=bearer(provider.token(OTHER, f"unknown {number}"))), 401)
    assert provider.fetches <= before + 1


async def test_without_a_provider_the_answer_is_to_come_later(service: Service, provider: Provider) -> None:
    with providing() as away:
        away.status = 500
        environment = {"JWT_ISSUER": away.url, "JWT_AUDIENCE": AUDIENCE, "JWT_TENANT": "acme"}
        api = service.api(**environment)
        async with httpx.AsyncClient(base_url=f"{api.url}/api/v1", verify=False) as http:
            response = await http.get("/runs", headers=bearer(away.token()))
            assert int(response.headers["retry-after"]) > 0
            problem_of(response, 503, "service_unavailable")
            assert (await http.get("/runs", headers=bearer(KEYS["acme"]))).status_code == 200
            problem_of(await http.get("/runs", headers=bearer(unsigned(provider, "none"))), 401)


# The keys of the provider.


def reader(provider: Provider, keys_url: str | None = None) -> IdentityProvider:
    settings = Settings(
        database_url="postgresql://no/where",
        redis_url="redis://nowhere",
        jwt_issuer=provider.url,
        jwt_audience=AUDIENCE,
        jwt_tenant="acme",
        jwt_jwks_url=keys_url,
    )
    return IdentityProvider(settings)


async def test_a_new_key_is_fetched_once_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with providing() as provider:
        reading = reader(provider)
        assert await reading.read(provider.token()) is not None
        provider.keys = [jwk(OTHER, "three")]
        assert await reading.read(provider.token(OTHER, "three")) is None
        assert provider.fetches == 1
        monkeypatch.setattr(identity_provider, "AGAIN_SECONDS", 0.0)
        assert await reading.read(provider.token(OTHER, "three")) is not None
        assert await reading.read(provider.token()) is None
        assert await reading.read(provider.token(OTHER, None)) is not None


async def test_known_keys_are_believed_while_the_provider_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_provider, "AGAIN_SECONDS", 0.0)
    with providing() as provider:
        reading = reader(provider, f"{provider.url}/keys")
        assert await reading.read(provider.token()) is not None
        provider.status = 503
        with pytest.raises(ProviderAway):
            await reading.read(provider.token(OTHER, "three"))
        assert await reading.read(provider.token()) is not None
        monkeypatch.setattr(identity_provider, "BELIEVED_SECONDS", 0.0)
        with pytest.raises(ProviderAway):
            await reading.read(provider.token())


@pytest.mark.parametrize(
    "keys",
    [
        [],
        [{"kty": "oct", "kid": "one", "k": "AAAA"}],
        [{"kty": "RSA", "kid": "one"}],
        [jwk(RSA, "one") | {"use": "enc"}],
        [1],
        None,
    ],
)
async def test_what_is_no_public_key_is_none(keys: Any) -> None:
    with providing() as provider:
        provider.keys = keys
        with pytest.raises(ProviderAway):
            await reader(provider).read(provider.token())


async def test_an_odd_key_does_not_take_the_others_away() -> None:
    odd = {"kty": "EC", "kid": "odd", "crv": "P-256", "x": 1}
    with providing() as provider:
        provider.keys = [{"kty": "EC", "kid": "curve", "crv": "P-1"}, odd, *provider.keys]
        assert await reader(provider).read(provider.token()) is not None


async def test_an_issuer_that_calls_itself_otherwise_is_none() -> None:
    with providing() as provider:
        provider.named = "https://another.example.com"
        with pytest.raises(ProviderAway):
            await reader(provider).read(provider.token())
